//! What the Node object says, and the configuration for the container runtime.

use std::{fs, os::unix::fs::PermissionsExt};

use cni_tests::lab::{ControlPlane, Families, Lab, Plan, Routing, Signal, control_plane::node};
use serde_json::{Value, json};

use crate::{eventually, needs_control_plane};

fn object(control: &ControlPlane) -> Value {
    serde_json::from_str(&control.kubectl(&["get", "node", "node0", "-o", "json"]).unwrap()).unwrap()
}

#[test]
fn the_node_becomes_available_and_loses_its_startup_taint() {
    needs_control_plane!();
    let (control, lab) =
        Lab::start_with_control_plane(Plan::new(Routing::Direct, Families::V4).nodes(1)).unwrap();
    let agent = &lab.nodes[0];
    agent.end_agent(Signal::SIGTERM).unwrap();
    let mut own = node(&lab.plan, 0);
    own["spec"]["taints"] = json!([
        { "key": "gpu", "value": "yes", "effect": "NoSchedule" },
        { "key": "millrace.dev/agent-not-ready", "effect": "NoExecute" },
    ]);
    own["status"]["conditions"] = json!([{
        "type": "NetworkUnavailable", "status": "True", "reason": "NoRoute", "message": "cloud",
    }]);
    control.apply(std::slice::from_ref(&own)).unwrap();
    control.set_status(&own).unwrap();
    agent.start_agent().unwrap();
    eventually(|| {
        let object = object(&control);
        let conditions = object["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let available = conditions
            .iter()
            .any(|condition| condition["type"] == "NetworkUnavailable" && condition["status"] == "False");
        let taints = object["spec"]["taints"].to_string();
        (!available || taints.contains("agent-not-ready")).then(|| object.to_string())
    });
    assert_eq!(object(&control)["spec"]["taints"][0]["key"], "gpu");
    // An operator finds it with the node, and what is wrong later, with its remedy.
    let describes = |words: [&str; 2]| {
        eventually(|| {
            let said = control.kubectl(&["describe", "node", "node0"]).unwrap();
            (!words.iter().all(|word| said.contains(word))).then_some(said)
        });
    };
    describes(["MillraceReady", "pods can start"]);
    control
        .kubectl(&["delete", "crd", "millraceconfigs.millrace.dev"])
        .unwrap();
    describes(["MillraceDegraded", "millrace crds"]);
}

#[test]
fn cni_08_the_runtimes_configuration_comes_with_the_first_readiness() {
    needs_control_plane!();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("05-millrace.conflist");
    fs::write(folder.path().join("00-old.conflist"), "{}").unwrap();
    let cni = json!({ "cni": {
        "install": true, "conflist": path, "onExit": "withdraw", "moveOthersAside": true,
        "chained": [{ "type": "portmap", "capabilities": { "portMappings": true } }],
    } });
    let plan = Plan::new(Routing::Direct, Families::V4).nodes(1).config(cni);
    let (_control, lab) = Lab::start_with_control_plane(plan).unwrap();
    let agent = &lab.nodes[0];
    eventually(|| (!path.exists()).then(|| "no configuration".to_owned()));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
    let list: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(list["plugins"][0]["viaStack"], true);
    eventually(|| {
        let moved = folder.path().join("00-old.conflist.millrace-aside").exists();
        (!moved).then(|| "the other network's configuration is still there".to_owned())
    });
    // Pods go on; the runtime is told that no new one can start.
    agent.end_agent(Signal::SIGTERM).unwrap();
    assert!(!path.exists());
}
