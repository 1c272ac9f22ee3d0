//! Which endpoints are chosen.

use super::*;

#[test]
fn svc_11_the_cluster_policy_uses_ready_endpoints() {
    let lines = [
        "10.1.0.1@one",
        "10.1.0.2",
        "10.1.0.3 not-ready",
        "10.1.0.4 not-ready terminating",
    ];
    let compiled = compiled(&[service(json!({})), slice("s-1", endpoints(&lines))]);
    assert_eq!(at_vip(&compiled), ["10.1.0.1:8080", "10.1.0.2:8080"]);
}

#[test]
fn svc_12_without_a_ready_one_those_that_leave_and_still_serve_are_used() {
    let lines = [
        "10.1.0.3 not-ready",
        "10.1.0.4 not-ready terminating",
        "10.1.0.5 not-ready terminating not-serving",
    ];
    let compiled = compiled(&[service(json!({})), slice("s-1", endpoints(&lines))]);
    assert_eq!(at_vip(&compiled), ["10.1.0.4:8080"]);
}

#[test]
fn svc_13_the_local_policy_decides_about_local_endpoints_alone() {
    let compiled = node_port("Local", &["10.1.0.1", "10.1.0.2@one not-ready terminating"]);
    assert_eq!(
        from_outside(&compiled),
        ["10.1.0.2:8080"],
        "leaving, and the best of this node"
    );
    assert_eq!(from_inside(&compiled), ["10.1.0.1:8080"]);
    let compiled = node_port(
        "Local",
        &["10.1.0.1", "10.1.0.2@one not-ready terminating", "10.1.0.3@one"],
    );
    assert_eq!(from_outside(&compiled), ["10.1.0.3:8080"]);
}

#[test]
fn svc_14_endpoints_that_are_not_ready_get_nothing_unless_they_were_made_ready() {
    let compiled = compiled(&[
        service(json!({})),
        slice("s-1", endpoints(&["10.1.0.1 not-ready", "10.1.0.2"])),
    ]);
    assert_eq!(at_vip(&compiled), ["10.1.0.2:8080"]);
    // With publishNotReadyAddresses the controller says `ready`, of one that is terminating too.
    let compiled = super::compiled(&[
        service(json!({})),
        slice("s-1", endpoints(&["10.1.0.1 not-serving terminating"])),
    ]);
    assert_eq!(at_vip(&compiled), ["10.1.0.1:8080"]);
}

fn hinted(place: &Place, lines: &[&str]) -> (Vec<String>, HintsUsed) {
    let compiled = compiled_at(place, &[service(json!({})), slice("s-1", endpoints(lines))]);
    let frontend = frontend(&compiled, VIP, 80, 6, 0).unwrap();
    (at_vip(&compiled), set(&compiled, &frontend).hints)
}

#[test]
fn svc_15_same_node_counts_only_if_all_have_node_hints_and_one_is_for_here() {
    let one = ["10.1.0.1:8080"];
    let (found, used) = hinted(&place(), &["10.1.0.1 for=one", "10.1.0.2 for=two"]);
    assert_eq!(
        (found.as_slice(), used),
        (one.map(String::from).as_slice(), HintsUsed::SameNode)
    );
    for lines in [
        ["10.1.0.1 for=one", "10.1.0.2"],
        ["10.1.0.1 for=three", "10.1.0.2 for=two"],
    ] {
        let (found, used) = hinted(&place(), &lines);
        assert_eq!((found.len(), used), (2, HintsUsed::Anywhere), "{lines:?}");
    }
    // Those that are not ready have no say.
    let lines = ["10.1.0.1 for=one", "10.1.0.2 for=two", "10.1.0.3 not-ready"];
    assert_eq!(hinted(&place(), &lines).1, HintsUsed::SameNode);
}

#[test]
fn svc_16_same_zone_follows_the_same_rule() {
    let (found, used) = hinted(&place(), &["10.1.0.1 zone=a", "10.1.0.2 zone=b"]);
    assert_eq!(
        (found, used),
        (vec!["10.1.0.1:8080".to_owned()], HintsUsed::SameZone)
    );
    for lines in [
        ["10.1.0.1 zone=a", "10.1.0.2"],
        ["10.1.0.1 zone=c", "10.1.0.2 zone=b"],
    ] {
        assert_eq!(hinted(&place(), &lines).1, HintsUsed::Anywhere, "{lines:?}");
    }
    // Node hints come first, and zones where no node hint is for here.
    let lines = ["10.1.0.1 zone=a for=two", "10.1.0.2 zone=b for=two"];
    assert_eq!(hinted(&place(), &lines).1, HintsUsed::SameZone);
}

#[test]
fn svc_17_a_node_without_a_zone_ignores_zone_hints() {
    let nowhere = Place {
        zone: None,
        ..place()
    };
    let (found, used) = hinted(&nowhere, &["10.1.0.1 zone=a", "10.1.0.2 zone=b"]);
    assert_eq!((found.len(), used), (2, HintsUsed::Anywhere));
}

#[test]
fn svc_18_the_local_policy_ignores_hints() {
    let compiled = node_port("Local", &["10.1.0.1@one zone=b", "10.1.0.2@one zone=a"]);
    assert_eq!(from_outside(&compiled).len(), 2);
    assert_eq!(from_inside(&compiled), ["10.1.0.2:8080"]);
}

#[test]
fn svc_19_hints_are_obeyed_and_the_distribution_is_the_controllers() {
    for distribution in ["PreferClose", "PreferSameZone", "PreferSameNode"] {
        let object = service(json!({ "trafficDistribution": distribution }));
        let without = compiled(&[
            object.clone(),
            slice("s-1", endpoints(&["10.1.0.1@one", "10.1.0.2"])),
        ]);
        assert_eq!(at_vip(&without).len(), 2, "{distribution}");
    }
    // Another zone of this node, and the same hints mean something else.
    let lines = ["10.1.0.1 zone=a", "10.1.0.2 zone=b"];
    let elsewhere = Place {
        zone: Some("b".into()),
        ..place()
    };
    assert_eq!(hinted(&elsewhere, &lines).0, ["10.1.0.2:8080"]);
}

#[test]
fn svc_50_affinity_lasts_three_hours_unless_the_object_says_otherwise() {
    let seconds = |config: Value| {
        let object = service(json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": config }));
        let compiled = compiled(&[object]);
        frontend(&compiled, VIP, 80, 6, 0).unwrap().affinity_seconds
    };
    assert_eq!(seconds(Value::Null), 10_800);
    assert_eq!(seconds(json!({ "clientIP": { "timeoutSeconds": 7 } })), 7);
    let without = compiled(&[service(json!({}))]);
    assert_eq!(
        frontend(&without, VIP, 80, 6, 0).unwrap().flags & service_flags::AFFINITY,
        0
    );
}

#[test]
fn svc_53_an_endpoint_that_leaves_and_serves_keeps_its_row_and_one_that_does_not_loses_it() {
    let lines = [
        "10.1.0.1",
        "10.1.0.2 not-ready terminating",
        "10.1.0.3 not-ready terminating not-serving",
    ];
    let compiled = compiled(&[service(json!({})), slice("s-1", endpoints(&lines))]);
    let serving: Vec<String> = compiled
        .serving
        .iter()
        .map(|(target, _)| target.addr.to_string())
        .collect();
    assert_eq!(serving, ["10.1.0.1", "10.1.0.2"]);
    assert_eq!(at_vip(&compiled), ["10.1.0.1:8080"]);
}
