//! `MillraceConfig`: what the server refuses, what nodes follow, what its status says.

use cni_tests::lab::{ControlPlane, Families, Lab, Node, Plan, Routing, Signal};
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

fn change_definition(control: &ControlPlane, changes: &Value) {
    let definition = [
        "patch",
        "crd",
        "millraceconfigs.millrace.dev",
        "--type=json",
        "--patch",
    ];
    let changes = changes.to_string();
    control
        .kubectl(&[&definition[..], &[changes.as_str()]].concat())
        .unwrap();
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
fn what_an_older_definition_lets_through_is_not_accepted_and_the_last_good_version_holds() {
    needs_control_plane!();
    let (control, lab) =
        Lab::start_with_control_plane(Plan::new(Routing::Direct, Families::V4).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let spec = json!({ "masquerade": { "nonMasqueradeCIDRs": ["198.18.0.0/15"] } });
    control.apply(&[settings("default", spec)]).unwrap();
    eventually(|| (!routes(node).contains("198.18.0.0")).then(|| routes(node)));
    // One without our rules, which the server then does not check.
    let rules = json!([{
        "op": "remove",
        "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/masquerade/properties/nonMasqueradeCIDRs/x-kubernetes-validations",
    }]);
    change_definition(&control, &rules);
    let bad = json!({ "masquerade": { "nonMasqueradeCIDRs": ["198.51.100.7/24"] } });
    eventually(|| {
        let refusal = control.apply(&[settings("default", bad.clone())]).err();
        refusal.map(|error| error.to_string())
    });
    eventually(|| {
        let said = accepted(&control);
        let message = said["message"].as_str().unwrap_or_default();
        let named = message.contains("spec.masquerade.nonMasqueradeCIDRs") && message.contains("last good");
        (said["status"] != "False" || !named).then(|| said.to_string())
    });
    complains(node, &["spec.masquerade.nonMasqueradeCIDRs", "198.51.100.7/24"]);
    assert!(routes(node).contains("198.18.0.0"));
    // Who changes it often is answered now and then, and in the end.
    let written = || control.times("patch", "millraceconfigs", "status").unwrap();
    let before = written();
    for mtu in 1400..1420 {
        control
            .apply(&[settings("default", json!({ "mtu": mtu }))])
            .unwrap();
    }
    eventually(|| {
        let said = accepted(&control);
        (said["status"] != "True").then(|| said.to_string())
    });
    let times = written() - before;
    assert!((1..=5).contains(&times), "{times}");
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
fn older_definitions_are_named_with_what_they_drop() {
    needs_control_plane!();
    let (control, lab) =
        Lab::start_with_control_plane(Plan::new(Routing::Direct, Families::Dual).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let schema = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    let older = json!([
        { "op": "remove", "path": format!("{schema}/mtu") },
        { "op": "remove", "path": format!("{schema}/services/properties/algorithm") },
    ]);
    change_definition(&control, &older);
    eventually(|| {
        let text = control
            .kubectl(&["get", "--raw", "/openapi/v3/apis/millrace.dev/v1alpha1"])
            .unwrap();
        let document: Value = serde_json::from_str(&text).unwrap();
        let kind = "/components/schemas/dev.millrace.v1alpha1.MillraceConfig/properties/spec/properties";
        let known = document
            .pointer(kind)
            .is_none_or(|fields| !fields["mtu"].is_null());
        known.then(|| "the server still tells of the field".to_owned())
    });
    node.end_agent(Signal::SIGKILL).unwrap();
    node.start_agent().unwrap();
    complains(node, &["spec.mtu", "spec.services.algorithm", "millrace crds"]);
    // What is left has its effect.
    let spec = json!({ "masquerade": { "nonMasqueradeCIDRs": ["198.18.0.0/15"] } });
    control.apply(&[settings("default", spec)]).unwrap();
    eventually(|| (!routes(node).contains("198.18.0.0")).then(|| routes(node)));
    control.define_kinds().unwrap();
    is_content(node);
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
