use super::*;
use proptest::prelude::*;
use std::os::unix::ffi::OsStringExt;

fn read(variables: &[(&str, &str)]) -> Result<Environment, CniError> {
    Environment::read(|name| {
        variables
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| OsString::from(value))
    })
}

const ALL: [(&str, &str); 4] = [
    ("CNI_CONTAINERID", "c1"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_NETNS", "/run/netns/x"),
    ("CNI_PATH", "/opt/cni/bin"),
];

/// Which variables each verb requires, as the specification's table says.
#[test]
fn required_variables_by_verb() {
    let table: [(&str, &[&str]); 6] = [
        ("ADD", &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"]),
        ("CHECK", &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"]),
        ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"]),
        ("GC", &["CNI_PATH"]),
        ("STATUS", &[]),
        ("VERSION", &[]),
    ];
    for (verb, required) in table {
        for missing in ALL.map(|(name, _)| name) {
            let mut variables: Vec<_> = ALL.into_iter().filter(|(name, _)| *name != missing).collect();
            variables.push(("CNI_COMMAND", verb));
            match read(&variables) {
                Ok(environment) => {
                    assert!(!required.contains(&missing), "{verb} without {missing}");
                    assert_eq!(environment.verb.name(), verb);
                }
                Err(error) => {
                    assert!(required.contains(&missing), "{verb} without {missing}: {error}");
                    assert_eq!(error.code, code::INVALID_ENVIRONMENT);
                    assert!(error.details.contains(missing), "{error}");
                }
            }
        }
    }
}

#[test]
fn every_missing_variable_is_named_at_once() {
    let error = read(&[("CNI_COMMAND", "ADD")]).unwrap_err();
    for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
        assert!(error.details.contains(name), "{error}");
    }
}

#[test]
fn a_missing_or_unknown_command_is_code_4() {
    for variables in [
        &[][..],
        &[("CNI_COMMAND", "FROB")],
        &[("CNI_COMMAND", "")],
        &[("CNI_COMMAND", "add")],
    ] {
        let error = read(variables).unwrap_err();
        assert_eq!(error.code, code::INVALID_ENVIRONMENT);
        assert!(error.details.contains("CNI_COMMAND"), "{error}");
    }
}

#[test]
fn cni_07_container_id_and_ifname_syntax() {
    let del = |id, ifname| {
        read(&[
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", id),
            ("CNI_IFNAME", ifname),
        ])
    };
    for id in [
        "a",
        "0",
        "A.b_c-d",
        "f00d4f00d4f00d4f00d4f00d4f00d4f00d4f00d4f00d4f00d4f00d4f00d4f00d",
    ] {
        assert!(del(id, "eth0").is_ok(), "{id}");
    }
    for id in ["-a", ".a", "_a", "a/b", "../x", "a b", "ä", "a\n"] {
        assert_eq!(
            del(id, "eth0").unwrap_err().code,
            code::INVALID_ENVIRONMENT,
            "{id}"
        );
    }
    for ifname in ["eth0", "a", "net1.100", "fifteen-letters"] {
        assert!(del("c", ifname).is_ok(), "{ifname}");
    }
    for ifname in [
        ".",
        "..",
        "a/b",
        "a:b",
        "a b",
        "a\tb",
        "sixteen-letters-",
        "veth%d",
    ] {
        assert_eq!(
            del("c", ifname).unwrap_err().code,
            code::INVALID_ENVIRONMENT,
            "{ifname}"
        );
    }
}

#[test]
fn arguments_name_the_pod() {
    let text = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u";
    let pod = Arguments::parse(text).unwrap().pod().unwrap();
    assert_eq!(
        (pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()),
        ("default", "web-0", "u")
    );
    assert_eq!(pod.infra_container_id, "abc");
    assert_eq!(Arguments::parse("").unwrap().pod(), None);
    assert_eq!(Arguments::parse("K8S_POD_NAME=web-0").unwrap().pod(), None);
    assert_eq!(
        Arguments::parse("nonsense").unwrap_err().code,
        code::INVALID_ENVIRONMENT
    );
}

proptest! {
    #[test]
    fn arbitrary_variables_never_panic(
        command in prop_oneof!["ADD|DEL|CHECK|GC|STATUS|VERSION", ".*"],
        values in proptest::collection::vec(proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)), 5),
    ) {
        let names = ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH", "CNI_ARGS"];
        let result = Environment::read(|name| match names.iter().position(|known| *known == name) {
            Some(index) => values[index].clone().map(OsString::from_vec),
            None => Some(OsString::from(&command)),
        });
        if let Ok(environment) = result {
            let _ = Arguments::parse(&environment.args);
        }
    }
}
