//! What may be granted to the pods, whatever the values.

use std::{collections::BTreeMap, fs};

use serde_json::{Value, json};

use crate::chart::{deploy, kind, render};

/// Values that give more than the default does.
const VARIANTS: [&[&str]; 3] = [
    &[],
    &["http.host=0.0.0.0", "metrics.podMonitor.enabled=true"],
    &["config.routing=direct", "cni.binDir=/usr/libexec/cni"],
];

fn pods() -> Vec<Value> {
    let rendered = VARIANTS.map(|values| {
        let objects = render(values).unwrap();
        kind(&objects, "DaemonSet")["spec"]["template"]["spec"].clone()
    });
    rendered.to_vec()
}

fn containers(pod: &Value) -> BTreeMap<&str, &Value> {
    let lists = [&pod["initContainers"], &pod["containers"]];
    let all = lists.into_iter().filter_map(Value::as_array).flatten();
    all.map(|container| (container["name"].as_str().unwrap(), container))
        .collect()
}

#[test]
fn rel_15_no_container_is_privileged() {
    for pod in pods() {
        let containers = containers(&pod);
        let granted = |name: &str| containers[name]["securityContext"]["capabilities"]["add"].clone();
        assert_eq!(
            containers.keys().copied().collect::<Vec<_>>(),
            ["agent", "install"]
        );
        // SYS_ADMIN is as good as privileged.
        assert_eq!(granted("agent"), json!(["BPF", "NET_ADMIN", "PERFMON"]));
        assert_eq!(granted("install"), Value::Null);
        for (name, container) in containers {
            let context = &container["securityContext"];
            assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{name}");
            assert_eq!(context["privileged"], Value::Null, "{name}");
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
            for weakened in ["seccompProfile", "appArmorProfile", "seLinuxOptions", "procMount"] {
                assert_eq!(context[weakened], Value::Null, "{name}: {weakened}");
            }
        }
        assert_eq!(
            pod["securityContext"]["seccompProfile"],
            json!({"type": "RuntimeDefault"})
        );
        assert_eq!(pod["securityContext"]["appArmorProfile"], Value::Null);
        for namespace in ["hostPID", "hostIPC"] {
            assert_eq!(pod[namespace], Value::Null, "{namespace}");
        }
    }
}

/// (path on the host, containers that may write there)
fn writers(pod: &Value) -> BTreeMap<String, Vec<String>> {
    let mut writers = BTreeMap::new();
    for volume in pod["volumes"].as_array().unwrap() {
        let Some(path) = volume["hostPath"]["path"].as_str() else {
            continue;
        };
        let mut names = Vec::new();
        for (name, container) in containers(pod) {
            let mounts = container["volumeMounts"].as_array().unwrap();
            let mounted = mounts.iter().filter(|mount| mount["name"] == volume["name"]);
            for mount in mounted {
                assert_eq!(mount["mountPropagation"], Value::Null, "{path}");
                if mount["readOnly"] != true {
                    names.push(name.to_owned());
                }
            }
        }
        writers.insert(path.to_owned(), names);
    }
    writers
}

#[test]
fn rel_15_what_is_written_on_the_host_is_listed_here() {
    let agent = || vec!["agent".to_owned()];
    let expected = |bin: &str| {
        BTreeMap::from([
            ("/etc/cni/net.d".to_owned(), agent()),
            (bin.to_owned(), vec!["install".to_owned()]),
            ("/proc/sys/net".to_owned(), agent()),
            ("/run/millrace".to_owned(), agent()),
            ("/sys/fs/bpf".to_owned(), agent()),
            ("/sys/fs/cgroup".to_owned(), Vec::new()),
            ("/sys/kernel/rcu_expedited".to_owned(), agent()),
            ("/var/lib/millrace".to_owned(), agent()),
        ])
    };
    let bins = ["/opt/cni/bin", "/opt/cni/bin", "/usr/libexec/cni"];
    for (pod, bin) in pods().iter().zip(bins) {
        assert_eq!(writers(pod), expected(bin));
    }
}

/// What the agent writes: its node's taint and condition, its settings' status, events.
const WRITABLE: [&str; 4] = ["nodes", "nodes/status", "millraceconfigs/status", "events"];

#[test]
fn rel_15_the_agent_reads_no_secrets_and_writes_what_is_listed_here() {
    let objects = render(&[]).unwrap();
    for rule in kind(&objects, "ClusterRole")["rules"].as_array().unwrap() {
        let words = |key: &str| rule[key].as_array().unwrap().clone();
        for verb in words("verbs") {
            match verb.as_str().unwrap() {
                "get" | "list" | "watch" => {}
                "create" => assert_eq!(words("resources"), ["events"], "{rule}"),
                "patch" => {
                    for resource in words("resources") {
                        assert!(WRITABLE.contains(&resource.as_str().unwrap()), "{rule}");
                    }
                }
                other => panic!("{other}: {rule}"),
            }
        }
        for word in words("resources").iter().chain(&words("apiGroups")) {
            assert!(word != "*" && word != "secrets" && word != "configmaps", "{rule}");
        }
    }
}

/// RBAC lets an agent change any node; the policy takes all but its own out.
#[test]
fn rel_15_whoever_may_change_nodes_is_held_to_one() {
    let objects = render(&[]).unwrap();
    let policy = &kind(&objects, "ValidatingAdmissionPolicy")["spec"];
    let account = kind(&objects, "ServiceAccount");
    let user = format!(
        "system:serviceaccount:kube-system:{}",
        account["metadata"]["name"].as_str().unwrap()
    );
    let whom = policy["matchConditions"][0]["expression"].as_str().unwrap();
    assert!(whom.contains(&user), "{whom}");
    assert_eq!(policy["failurePolicy"], "Fail");
    assert_eq!(
        policy["matchConstraints"]["resourceRules"][0]["resources"],
        json!(["nodes", "nodes/status"])
    );
    let binding = &kind(&objects, "ValidatingAdmissionPolicyBinding")["spec"];
    assert_eq!(binding["validationActions"], json!(["Deny"]));
}

#[test]
fn the_kustomize_base_is_what_the_chart_gives() {
    let objects = render(&[]).unwrap();
    let mut base = Vec::new();
    for name in [
        "serviceaccount.yaml",
        "rbac.yaml",
        "admission.yaml",
        "daemonset.yaml",
    ] {
        let text = fs::read_to_string(deploy().join("base").join(name)).unwrap();
        base.extend(serde_saphyr::from_multiple::<Value>(&text).unwrap());
    }
    let sorted = |mut objects: Vec<Value>| {
        // kustomize makes the ConfigMap itself, with a hash in its name.
        objects.retain(|object| object["kind"] != "ConfigMap");
        objects.sort_by_key(|object| object["kind"].to_string());
        objects
    };
    assert_eq!(
        sorted(base),
        sorted(objects),
        "change the chart and run `cargo xtask manifests`"
    );
}

#[test]
fn the_chart_brings_the_kinds() {
    let kinds = "crds/millrace.dev.yaml";
    let ours = fs::read_to_string(deploy().join(kinds)).unwrap();
    let charts = fs::read_to_string(deploy().join("helm/millrace").join(kinds)).unwrap();
    assert_eq!(ours, charts, "run `cargo xtask manifests`");
}

#[test]
fn overlays_name_the_image_of_this_release() {
    for overlay in fs::read_dir(deploy().join("overlays")).unwrap() {
        let path = overlay.unwrap().path().join("kustomization.yaml");
        let text = fs::read_to_string(&path).unwrap();
        let overlay: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(
            overlay["images"],
            json!([{"name": "localhost/millrace", "newTag": env!("CARGO_PKG_VERSION")}]),
            "{}",
            path.display()
        );
    }
}
