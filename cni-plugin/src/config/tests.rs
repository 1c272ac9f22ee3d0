use super::*;
use crate::{Mac, environment::Arguments, rpc::Shaping};
use proptest::prelude::*;
use serde_json::json;

fn config(extra: Value) -> Result<Config, CniError> {
    let mut fields = json!({"cniVersion": "1.1.0", "name": "net", "type": "millrace-cni"});
    fields
        .as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    Config::parse(fields.to_string().as_bytes())
}

fn allocate(extra: Value, args: &str) -> Result<crate::rpc::Allocate, CniError> {
    config(extra)?.allocate(
        &Attachment::new("c1", "eth0"),
        "/run/netns/x",
        &Arguments::parse(args).unwrap(),
    )
}

#[test]
fn cni_07_a_missing_or_malformed_name_is_code_7() {
    for name in [
        Value::Null,
        json!(""),
        json!("-a"),
        json!("a b"),
        json!("../a"),
        json!(7),
    ] {
        let error = config(json!({"name": name})).unwrap_err();
        assert_eq!(error.code, code::INVALID_CONFIG);
        assert!(error.details.contains("`name`"), "{error}");
    }
}

#[test]
fn what_is_no_object_is_a_decode_error() {
    for stdin in ["", "[]", "nonsense", "{", "null", "\"x\""] {
        assert_eq!(
            Config::parse(stdin.as_bytes()).unwrap_err().code,
            code::DECODE,
            "{stdin}"
        );
    }
}

#[test]
fn defaults_and_overrides() {
    let plain = config(json!({})).unwrap();
    assert_eq!(plain.agent_socket, PathBuf::from(AGENT_SOCKET));
    assert_eq!(plain.state_dir, PathBuf::from(STATE_DIR));
    assert_eq!(plain.timeout(Duration::from_secs(5)), Duration::from_secs(5));
    let own = config(json!({"agentSocket": "/a", "stateDir": "/b", "agentTimeout": 90})).unwrap();
    assert_eq!(
        (own.agent_socket, own.state_dir.clone()),
        (PathBuf::from("/a"), PathBuf::from("/b"))
    );
    assert_eq!(
        config(json!({"agentTimeout": 90}))
            .unwrap()
            .timeout(Duration::from_secs(5)),
        Duration::from_secs(90)
    );
    for wrong in [
        json!({"agentSocket": "a"}),
        json!({"stateDir": 1}),
        json!({"agentTimeout": 0}),
    ] {
        assert_eq!(config(wrong).unwrap_err().code, code::INVALID_CONFIG);
    }
}

#[test]
fn unknown_keys_pass_and_misspelt_ones_are_named() {
    for fine in [
        "isGateway",
        "example.org/x",
        "bridge",
        "mode",
        "master",
        "cni.dev/anything",
    ] {
        assert!(allocate(json!({fine: 1}), "").is_ok(), "{fine}");
    }
    for (wrong, meant) in [
        ("viastack", "viaStack"),
        ("via_stack", "viaStack"),
        ("viaStac", "viaStack"),
        ("MTU", "mtu"),
        ("agentSoket", "agentSocket"),
        ("stateDirs", "stateDir"),
        ("rcuExpedite", "rcuExpedited"),
    ] {
        let error = allocate(json!({wrong: 1}), "").unwrap_err();
        assert_eq!(error.code, code::INVALID_CONFIG, "{wrong}");
        assert!(error.details.contains(meant), "{error}");
    }
}

#[test]
fn cni_01_a_misspelt_key_does_not_stop_del() {
    assert!(config(json!({"viastack": true, "mtu": "big", "runtimeConfig": 5, "prevResult": "?"})).is_ok());
}

#[test]
fn capabilities_reach_the_agent() {
    let request = allocate(
        json!({"viaStack": true, "mtu": 9000, "runtimeConfig": {
            "ips": ["10.0.0.9/24", "fd00::9"], "mac": "02:00:00:00:00:09",
            "bandwidth": {"ingressRate": 8000, "ingressBurst": 800, "egressRate": 0}
        }}),
        "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
    )
    .unwrap();
    assert_eq!(
        request.requested_ips,
        [
            "10.0.0.9/24".parse().unwrap(),
            "fd00::9".parse::<ipnetwork::IpNetwork>().unwrap()
        ]
    );
    assert_eq!(request.requested_mac, Some(Mac([2, 0, 0, 0, 0, 9])));
    assert_eq!(
        request.bandwidth.ingress,
        Some(Shaping {
            rate: 8000,
            burst: 800
        })
    );
    assert_eq!(request.bandwidth.egress, None);
    assert_eq!((request.via_stack, request.mtu), (true, Some(9000)));
    assert_eq!(request.pod.unwrap().name, "web");
}

#[test]
fn the_runtime_outranks_args_and_args_outrank_the_environment() {
    let args = json!({"cni": {"ips": ["10.0.0.2"], "mac": "02:00:00:00:00:02"}});
    let first = |request: crate::rpc::Allocate| request.requested_ips[0].ip().to_string();
    let all = allocate(
        json!({"runtimeConfig": {"ips": ["10.0.0.1"]}, "args": args}),
        "IP=10.0.0.3",
    )
    .unwrap();
    assert_eq!(first(all), "10.0.0.1");
    assert_eq!(
        first(allocate(json!({"args": args}), "IP=10.0.0.3").unwrap()),
        "10.0.0.2"
    );
    assert_eq!(first(allocate(json!({}), "IP=10.0.0.3").unwrap()), "10.0.0.3");
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let mappings = json!({"runtimeConfig": {"portMappings": [{"hostPort": 80}]}});
    let error = allocate(mappings, "").unwrap_err();
    assert_eq!(error.code, code::UNSUPPORTED_FIELD);
    assert!(
        error.msg.contains("portMappings") && error.details.contains("80"),
        "{error}"
    );
    assert!(allocate(json!({"runtimeConfig": {"portMappings": []}}), "").is_ok());
    for wrong in [
        json!({"runtimeConfig": {"ips": ["10.0.0"]}}),
        json!({"runtimeConfig": {"mac": "01:00:00:00:00:01"}}),
        json!({"mtu": 100}),
        json!({"mtu": -1}),
        json!({"viaStack": "yes"}),
        json!({"rcuExpedited": "sys"}),
    ] {
        assert_eq!(
            allocate(wrong.clone(), "").unwrap_err().code,
            code::INVALID_CONFIG,
            "{wrong}"
        );
    }
}

#[test]
fn rel_27_an_ipam_type_is_a_bare_name() {
    for name in ["../evil", "/bin/sh", "a/b", "..", "a..b"] {
        assert_eq!(
            config(json!({"ipam": {"type": name}}))
                .unwrap()
                .ipam()
                .unwrap_err()
                .code,
            code::INVALID_CONFIG
        );
    }
    let plugin = |extra| config(extra).unwrap().ipam().unwrap().map(|ipam| ipam.plugin);
    assert_eq!(
        plugin(json!({"ipam": {"type": "host-local"}})).as_deref(),
        Some("host-local")
    );
    assert_eq!(plugin(json!({"ipam": {}})), None);
    assert_eq!(plugin(json!({})), None);
}

#[test]
fn gc_an_absent_list_is_not_an_empty_one() {
    assert_eq!(
        config(json!({})).unwrap().valid_attachments().unwrap_err().code,
        code::INVALID_CONFIG
    );
    let null = json!({"cni.dev/valid-attachments": null});
    assert_eq!(
        config(null).unwrap().valid_attachments().unwrap_err().code,
        code::INVALID_CONFIG
    );
    let empty = json!({"cni.dev/valid-attachments": []});
    assert_eq!(config(empty).unwrap().valid_attachments().unwrap(), []);
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let one = json!({key: [{"containerID": "c", "ifname": "eth0"}]});
        assert_eq!(
            config(one).unwrap().valid_attachments().unwrap(),
            [Attachment::new("c", "eth0")]
        );
    }
}

fn arbitrary_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let key = "ips|mac|bandwidth|portMappings|cni|interfaces|routes|type|[a-zA-Z./]{0,12}";
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map(key, inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn exercise(config: &Config) {
    let _ = config.allocate(&Attachment::new("c", "e"), "/n", &Arguments::default());
    let _ = config
        .previous_result()
        .map(|result| result.map(|result| result.render(config.version)));
    let _ = (
        config.ipam(),
        config.valid_attachments(),
        config.dns(),
        config.log_level(),
    );
}

proptest! {
    #[test]
    fn arbitrary_stdin_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Config::parse(&bytes);
    }

    #[test]
    fn arbitrary_values_never_panic(
        values in proptest::collection::hash_map(
            "runtimeConfig|args|prevResult|ipam|dns|mtu|viaStack|logLevel|stateDir|cni.dev/valid-attachments|.{0,9}",
            arbitrary_json(), 0..6)
    ) {
        if let Ok(config) = config(Value::Object(values.into_iter().collect())) {
            exercise(&config);
        }
    }
}
