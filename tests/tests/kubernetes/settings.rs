//! `MillraceConfig`: what the server refuses, what nodes follow, what its status says.

use cni_tests::lab::{ControlPlane, Families, Lab, Node, Plan, Routing};
use serde_json::{Value, json};

use crate::{
    control_plane::{complains, is_content},
    eventually, needs_control_plane,
};

fn settings(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": "MillraceConfig",
        "metadata": { "name": name }, "spec": spec,
    })
}

fn accepted(control: &ControlPlane) -> Value {
    let text = control.kubectl(&["get", "mrc", "default", "-o", "json"]).unwrap();
    let object: Value = serde_json::from_str(&text).unwrap();
    let current = object["status"]["observedGeneration"] == object["metadata"]["generation"];
    if current {
        object["status"]["conditions"][0].clone()
    } else {
        Value::Null
    }
}

fn routes(node: &Node) -> String {
    node.dump("routes").unwrap().join("\n")
}

#[test]
fn rel_52_bad_objects_are_refused_with_a_reason_and_good_ones_taken() {
    needs_control_plane!();
    let (control, _lab) =
        Lab::start_with_control_plane(Plan::new(Routing::Direct, Families::V4).nodes(1)).unwrap();
    for (object, words) in [
        (
            settings("other", json!({})),
            "the only MillraceConfig is called default",
        ),
        (settings("default", json!({ "mtu": 100 })), "use 576 to 65535"),
        (settings("default", json!({ "mtu": "big" })), "spec.mtu"),
        (settings("default", json!({ "routing": "bgp" })), "spec.routing"),
        (
            settings(
                "default",
                json!({ "services": { "nodePortAddresses": ["primary", "10.0.0.0/8"] } }),
            ),
            "write [primary]",
        ),
        (
            settings(
                "default",
                json!({ "masquerade": { "nonMasqueradeCIDRs": ["10.0.0.1/8"] } }),
            ),
            "without bits behind the prefix",
        ),
        (
            settings(
                "default",
                json!({ "nodes": [{ "nodeSelector": {}, "mtu": 1400 }] }),
            ),
            "nodeSelector",
        ),
        (
            settings("default", json!({ "nodes": [{ "mtu": 1400 }] })),
            "nodeSelector",
        ),
        (settings("default", json!({ "mtuu": 1400 })), "mtuu"),
    ] {
        let error = control
            .apply(std::slice::from_ref(&object))
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{object}: {error}");
    }
    let good = json!({
        "routing": "direct", "mtu": 1400, "masquerade": { "enabled": false, "nonMasqueradeCIDRs": ["10.0.0.0/8", "fd00::/8"] },
        "nodes": [{ "nodeSelector": { "fabric": "far" }, "routing": "vxlan", "mtu": 0 }],
    });
    control.apply(&[settings("default", good)]).unwrap();
    eventually(|| {
        let said = accepted(&control);
        (said["status"] != "True").then(|| said.to_string())
    });
    // By short name and by category, with its columns.
    let listed = control.kubectl(&["get", "millrace"]).unwrap();
    assert!(
        listed.contains("ROUTING") && listed.contains("direct") && listed.contains("1400"),
        "{listed}"
    );
}

#[test]
fn nodes_follow_the_clusters_settings_each_with_its_own() {
    needs_control_plane!();
    let (control, lab) = Lab::start_with_control_plane(Plan::new(Routing::Direct, Families::Dual)).unwrap();
    let [a, b] = [&lab.nodes[0], &lab.nodes[1]];
    let before = [a.intent().unwrap(), b.intent().unwrap()];
    control
        .kubectl(&["label", "node", "node1", "fabric=far"])
        .unwrap();
    let spec = json!({
        "masquerade": { "nonMasqueradeCIDRs": ["198.18.0.0/15"] },
        "nodes": [{ "nodeSelector": { "fabric": "far" }, "masquerade": { "nonMasqueradeCIDRs": ["100.64.0.0/10"] } }],
    });
    control.apply(&[settings("default", spec)]).unwrap();
    for (node, range) in [(a, "198.18.0.0"), (b, "100.64.0.0")] {
        eventually(|| (!routes(node).contains(range)).then(|| routes(node)));
    }
    assert!(!routes(b).contains("198.18.0.0"));
    // What one node cannot do (its pods have IPv6) leaves the last good settings in force there, and is said.
    let spec = json!({
        "masquerade": { "nonMasqueradeCIDRs": ["198.18.0.0/15"] },
        "nodes": [{ "nodeSelector": { "fabric": "far" }, "mtu": 600 }],
    });
    control.apply(&[settings("default", spec)]).unwrap();
    complains(b, &["MillraceConfig default", "mtu"]);
    assert!(routes(b).contains("100.64.0.0"));
    control.kubectl(&["delete", "mrc", "default"]).unwrap();
    for (node, before) in [a, b].into_iter().zip(before) {
        eventually(|| {
            let now = node.intent().unwrap();
            (now != before).then(|| format!("{now:?}"))
        });
        is_content(node);
    }
}

#[test]
fn absent_definitions_are_named_and_defaults_hold() {
    needs_control_plane!();
    let (control, lab) =
        Lab::start_with_control_plane(Plan::new(Routing::Direct, Families::Dual).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    control
        .kubectl(&["delete", "crd", "millraceconfigs.millrace.dev"])
        .unwrap();
    complains(node, &["millraceconfigs", "millrace crds"]);
    let pod = node.add_pod("a").unwrap();
    node.delete_pod(pod).unwrap();
    control.define_kinds().unwrap();
    is_content(node);
}
