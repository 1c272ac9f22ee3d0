//! Together with the reference plugins: `host-local` before us, `portmap`, `tuning` and `bandwidth` after us.

use crate::{
    node::{Answer, Node},
    not_run::cannot_run,
};
use cni_plugin::host_ifname;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The folder of the reference plugins, if this machine has them.
fn folder() -> Option<PathBuf> {
    let found = ["/opt/cni/bin", "/usr/lib/cni"]
        .iter()
        .map(Path::new)
        .find(|folder| folder.join("host-local").exists());
    if found.is_none() {
        cannot_run("the reference CNI plugins are not installed (package containernetworking-plugins)");
    }
    found.map(Path::to_owned)
}

#[test]
fn host_local_gives_the_addresses_and_takes_them_back() {
    let Some((folder, node)) = folder().zip(Node::new()) else {
        return;
    };
    let store = node.folder.path().join("host-local");
    let ipam = json!({"cniVersion": "1.0.0", "ipam": {
        "type": "host-local", "dataDir": store,
        "ranges": [[{"subnet": "10.66.0.0/24"}], [{"subnet": "fd66::/64"}]], "routes": [{"dst": "0.0.0.0/0"}],
    }});
    let call = |verb| {
        node.call(verb)
            .set("CNI_PATH", folder.display().to_string())
            .with(ipam.clone())
    };
    let result = call("ADD").run().ok();
    assert_eq!(result["ips"][0]["address"], "10.66.0.2/32");
    assert_eq!(result["ips"][1]["address"], "fd66::2/128");
    assert!(store.join("net/10.66.0.2").exists());
    call("CHECK").with(json!({"prevResult": result})).run().ok();
    call("DEL").run().ok();
    assert!(!store.join("net/10.66.0.2").exists());
    node.assert_empty();
}

/// Runs one plugin of a chain as a runtime would, with the result of the one before.
fn chained(node: &Node, verb: &'static str, plugin: PathBuf, keys: &Value, previous: &Value) -> Answer {
    node.call(verb)
        .program(plugin)
        .with(json!({"cniVersion": "1.0.0", "prevResult": previous}))
        .with(keys.clone())
        .run()
}

#[test]
fn later_plugins_find_what_they_look_for_in_our_result() {
    let Some((folder, node)) = folder().zip(Node::new()) else {
        return;
    };
    let ours = json!({"cniVersion": "1.0.0", "viaStack": true});
    let mut result = node.call("ADD").with(ours.clone()).run().ok();
    let chain = [
        (
            "portmap",
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}}),
        ),
        ("tuning", json!({"sysctl": {"net.core.somaxconn": "512"}})),
        (
            "bandwidth",
            json!({"ingressRate": 1_000_000, "ingressBurst": 1_000_000}),
        ),
    ];
    for (plugin, keys) in &chain {
        let next = chained(&node, "ADD", folder.join(plugin), keys, &result).ok();
        assert_eq!(next["interfaces"][1], result["interfaces"][1], "{plugin}");
        result = next;
    }
    let host = host_ifname("c1", "eth0");
    let limited = node.host.run(|| {
        std::process::Command::new("tc")
            .args(["qdisc", "show", "dev", &host])
            .output()
    });
    assert!(
        String::from_utf8(limited.unwrap().stdout)
            .unwrap()
            .contains("tbf"),
        "bandwidth limits the host's end"
    );
    node.call("CHECK")
        .with(ours.clone())
        .with(json!({"prevResult": result}))
        .run()
        .ok();
    for (plugin, keys) in chain.iter().rev() {
        chained(&node, "DEL", folder.join(plugin), keys, &result).ok();
    }
    node.call("DEL")
        .with(ours)
        .with(json!({"prevResult": result}))
        .run()
        .ok();
    node.assert_empty();
}
