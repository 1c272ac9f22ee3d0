//! Millrace taken off a cluster, as the README says.

use std::path::Path;

use serde_json::Value;

use super::{
    kubernetes::eventually,
    leftovers::{Named, machine},
};

const NODES: [&str; 2] = ["n1", "n2"];

const DAEMONSET: [&str; 4] = [
    "kubectl",
    "--namespace=kube-system",
    "patch",
    "daemonset/millrace",
];

/// What a node shows of Millrace, in its own words.
fn traces(cluster: &Named, node: &str) -> Vec<String> {
    let on_node = |words: &[&str]| cluster.run(&[&["exec", node, "--"], words].concat());
    let links: Value = serde_json::from_str(&on_node(&["ip", "-json", "link"])).unwrap();
    let devices = links
        .as_array()
        .unwrap()
        .iter()
        .map(|link| link["ifname"].to_string());
    let mut traces: Vec<_> = devices
        .filter(|name| ![r#""lo""#, r#""eth0""#].contains(&name.as_str()))
        .collect();
    // The kernel's own files stand in every file system for BPF.
    let folders = [
        "/sys/fs/bpf",
        "/var/lib/millrace",
        "/run/millrace",
        "/etc/cni/net.d",
    ];
    let files = on_node(
        &[
            &["find"][..],
            &folders,
            &["-mindepth", "1", "!", "-name", "*.debug"],
        ]
        .concat(),
    );
    traces.extend(files.lines().map(str::to_owned));
    for family in ["-4", "-6"] {
        let routes = [
            "ip", family, "-json", "route", "show", "table", "all", "protocol", "77",
        ];
        let routes: Value = serde_json::from_str(&on_node(&routes)).unwrap();
        traces.extend(routes.as_array().unwrap().iter().map(Value::to_string));
    }
    let plugin = on_node(&["find", "/opt/cni/bin", "-name", "*millrace*"]);
    traces.extend(plugin.lines().map(str::to_owned));
    traces
}

#[test]
fn svc_63_a_cluster_that_millrace_is_taken_off_shows_nothing_of_it() {
    let untouched = machine();
    let cluster = Named("mroff");
    cluster.run(&["up"]);
    for node in NODES {
        let before = traces(&cluster, node);
        for kind in [
            "millrace-cni",
            "/sys/fs/bpf/millrace",
            "/run/millrace",
            "/etc/cni/net.d",
            "10.244.",
            "fd00:10:244:",
        ] {
            assert!(
                before.iter().any(|trace| trace.contains(kind)),
                "{node}, {kind}: {before:?}"
            );
        }
    }
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cni-agent/deploy");
    let patch = deploy.join("components/uninstall/patch.yaml");
    let patch = ["--type=json", "--patch-file", patch.to_str().unwrap()];
    cluster.run(&[&DAEMONSET[..], &patch].concat());
    // Not by the rollout: a node without a network is not ready, and so are its pods.
    for node in NODES {
        eventually(|| match traces(&cluster, node) {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{node}: {left:?}")),
        });
    }
    let logs = [
        "kubectl",
        "--namespace=kube-system",
        "logs",
        "--selector=app.kubernetes.io/name=millrace",
        "--tail=1",
    ];
    eventually(|| {
        // A pod that is listed may have been replaced by the time that its log is asked for.
        let last = cluster.tried(&logs)?;
        let gone = last
            .lines()
            .filter(|line| line.contains("Millrace is gone from this node"));
        (gone.count() == NODES.len()).then_some(()).ok_or(last)
    });
    cluster.run(&["down"]);
    cluster.left_nothing(&untouched);
}
