//! API servers that move, credentials and certificates that are wrong.

use std::fs;

use cni_tests::lab::{
    ControlPlane, Families, Lab, Node, Plan, Routing, Signal,
    control_plane::{self as objects, authority, pod},
};
use serde_json::{Value, json};

use crate::{
    eventually, everything,
    flow::Flow,
    front_end::FrontEnd,
    needs_control_plane,
    services::{self, becomes, service, slice},
};

pub(crate) fn problems(node: &Node) -> String {
    node.ask(["status"]).map_or_else(
        |error| error.to_string(),
        |status| status["agent"]["problems"].to_string(),
    )
}

#[track_caller]
pub(crate) fn complains(node: &Node, words: &[&str]) {
    let has = |text: &str| words.iter().all(|word| text.contains(word));
    eventually(|| {
        let problems = problems(node);
        (!has(&problems)).then(|| format!("{words:?} not in {problems}"))
    });
    // Whoever reads the log finds the same there, in one line.
    eventually(|| (!node.whole_log().lines().any(has)).then(|| format!("{words:?} not in the log")));
}

#[track_caller]
pub(crate) fn is_content(node: &Node) {
    eventually(|| {
        let problems = problems(node);
        (problems != "[]").then_some(problems)
    });
}

/// Other keys for the section `kubernetes` of the agents' configuration.
fn with(plan: &Plan, changes: &[(&str, Value)]) -> Plan {
    let mut plan = plan.clone();
    for (key, value) in changes {
        plan.config["kubernetes"][*key] = value.clone();
    }
    plan
}

fn restart(node: &Node, plan: &Plan) {
    node.end_agent(Signal::SIGKILL).unwrap();
    node.write_config(plan).unwrap();
    node.start_agent().unwrap();
}

fn alone() -> (ControlPlane, Lab) {
    Lab::start_with_control_plane(Plan::new(Routing::Direct, Families::Dual).nodes(1)).unwrap()
}

#[test]
fn another_server_is_learned_and_followed_without_the_service() {
    needs_control_plane!();
    let (mut control, lab) = alone();
    let node = &lab.nodes[0];
    let [first, second, _] = control.addresses;
    let memory = node.folder().join("state/api-servers.json");
    let remembered = |at| fs::read_to_string(&memory).is_ok_and(|text| text.contains(&ControlPlane::url(at)));
    eventually(|| (!remembered(first)).then(|| "the first server is not remembered".to_owned()));
    control.start_server(second).unwrap();
    eventually(|| (!remembered(second)).then(|| "the second server is not remembered".to_owned()));
    // The address of the control plane has changed: the configured one answers no more.
    control.kill_server(first).unwrap();
    control
        .run_pod(&pod("late", "elsewhere", &["10.77.9.9"]))
        .unwrap();
    eventually(|| {
        let peers = node.dump("peers").unwrap();
        (!peers.iter().any(|peer| peer.contains("10.77.9.9"))).then(|| format!("{peers:?}"))
    });
    // An agent that begins now knows the second one from its disk alone.
    node.end_agent(Signal::SIGKILL).unwrap();
    node.start_agent().unwrap();
    node.wait_until_ready().unwrap();
    eventually(|| {
        let status = node.ask(["status"]).unwrap();
        (status["agent"]["sources"]["kubernetes"]["synced"] != true).then(|| status.to_string())
    });
}

#[test]
fn rel_36_an_agent_that_begins_in_an_outage_serves_pods_and_removes_nothing() {
    needs_control_plane!();
    let (mut control, lab) = services::start();
    let node = &lab.nodes[0];
    control.run_pod(&pod("far", "elsewhere", &["10.77.9.9"])).unwrap();
    eventually(|| {
        let peers = node.dump("peers").unwrap();
        (!peers.iter().any(|peer| peer.contains("10.77.9.9"))).then(|| format!("{peers:?}"))
    });
    control
        .apply(&[service(json!({})), slice("web-1", &["10.77.9.9"])])
        .unwrap();
    becomes(node, Some(&["10.77.9.9"]));
    let flow = Flow::begin(node);
    let memory = node.folder().join("state/cluster.json");
    eventually(|| (!memory.exists()).then(|| "nothing is remembered".to_owned()));
    let before = everything(node);
    let server = control.addresses[0];
    control.kill_server(server).unwrap();
    node.end_agent(Signal::SIGKILL).unwrap();
    node.start_agent().unwrap();
    node.wait_until_ready().unwrap();
    let a = node.add_pod("a").unwrap();
    node.delete_pod(a).unwrap();
    // DEL answers when the endpoint is given up; the next round takes it out of the maps.
    eventually(|| {
        let now = everything(node);
        (now != before).then(|| format!("{now:#?}"))
    });
    complains(node, &["no API server answers"]);
    control.start_server(server).unwrap();
    is_content(node);
    assert_eq!(everything(node), before);
    flow.end(node);
}

/// A token that nobody may read in a log.
const CANARY: &str = "planted-canary-token";

#[test]
fn rel_18_what_keeps_the_agent_from_the_server_is_named_without_its_secrets_and_the_node_forwards() {
    needs_control_plane!();
    let (control, lab) = alone();
    let node = &lab.nodes[0];
    let flow = Flow::begin(node);
    let before = node.intent().unwrap();
    let foreign = node.folder().join("foreign");
    fs::create_dir_all(&foreign).unwrap();
    authority(&foreign, "ca").unwrap();
    let expired = node.folder().join("expired-token");
    fs::write(&expired, CANARY).unwrap();
    let dead = ControlPlane::url("203.0.113.77".parse().unwrap());
    fs::remove_file(node.folder().join("state/api-servers.json")).unwrap_or_default();
    for (key, value, words) in [
        (
            "caFile",
            json!(foreign.join("ca.crt")),
            ["is not trusted", "kubernetes.caFile"],
        ),
        ("tokenFile", json!(expired), ["401", "kubernetes.tokenFile"]),
        (
            "tokenFile",
            json!("/no/such/token"),
            ["/no/such/token", "kubernetes.tokenFile"],
        ),
        (
            "apiServers",
            json!([dead]),
            ["203.0.113.77", "kubernetes.apiServers"],
        ),
    ] {
        restart(node, &with(&lab.plan, &[(key, value)]));
        // What was learned would answer.
        complains(node, &words);
        let told = node.ask(["status"]).unwrap().to_string() + &node.log();
        assert!(!told.contains(CANARY), "{told}");
        flow.goes_on();
        assert_eq!(node.intent().unwrap(), before, "{key}");
    }
    restart(node, &lab.plan);
    node.wait_until_ready().unwrap();
    is_content(node);
    flow.end(node);
    drop(control);
}

#[test]
fn a_token_that_is_renewed_in_its_file_is_taken_without_a_restart() {
    needs_control_plane!();
    let (control, lab) = alone();
    let node = &lab.nodes[0];
    let flow = Flow::begin(node);
    let before = node.intent().unwrap();
    control.write_expired_token().unwrap();
    restart(node, &lab.plan);
    complains(node, &["401", "expired", "kubernetes.tokenFile"]);
    flow.goes_on();
    assert_eq!(node.intent().unwrap(), before);
    control.renew_token().unwrap();
    is_content(node);
    flow.end(node);
}

#[test]
fn a_node_without_pod_ranges_says_so_and_forwards() {
    needs_control_plane!();
    let (control, lab) = alone();
    let node = &lab.nodes[0];
    let flow = Flow::begin(node);
    let before = node.intent().unwrap();
    // Registered anew, where nobody gives ranges to nodes.
    let whole = objects::node(&lab.plan, 0);
    let mut bare = whole.clone();
    bare.as_object_mut().unwrap().remove("spec");
    control.kubectl(&["delete", "node", &node.name()]).unwrap();
    control.apply(std::slice::from_ref(&bare)).unwrap();
    control.set_status(&bare).unwrap();
    complains(node, &["Node node0", "spec.podCIDRs"]);
    flow.goes_on();
    restart(node, &lab.plan);
    complains(node, &["Node node0", "spec.podCIDRs"]);
    flow.goes_on();
    control.apply(&[whole]).unwrap();
    is_content(node);
    eventually(|| {
        let now = node.intent().unwrap();
        (now != before).then(|| format!("{now:#?}"))
    });
    flow.end(node);
}

#[test]
fn rel_36_a_front_end_that_has_lost_its_servers_takes_nothing_away() {
    needs_control_plane!();
    let (mut control, lab) = services::start();
    let node = &lab.nodes[0];
    control.run_pod(&pod("far", "elsewhere", &["10.77.9.9"])).unwrap();
    let settings = json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": "MillraceConfig", "metadata": { "name": "default" },
        "spec": { "masquerade": { "nonMasqueradeCIDRs": ["198.18.0.0/15"] } },
    });
    let objects = [service(json!({})), slice("web-1", &["10.77.9.9"]), settings];
    control.apply(&objects).unwrap();
    let server = control.addresses[0];
    let front = FrontEnd::start(&lab, &control, server);
    restart(
        node,
        &with(
            &lab.plan,
            &[("apiServers", json!([ControlPlane::url(server), front.url]))],
        ),
    );
    node.wait_until_ready().unwrap();
    becomes(node, Some(&["10.77.9.9"]));
    is_content(node);
    let flow = Flow::begin(node);
    let before = everything(node);
    assert!(
        before.iter().any(|entry| entry.contains("198.18.0.0")),
        "{before:#?}"
    );
    control.kill_server(server).unwrap();
    for kind in [
        "nodes",
        "namespaces",
        "pods",
        "services",
        "endpointslices",
        "servicecidrs",
        "millraceconfigs",
    ] {
        complains(node, &[&format!("has no {kind}")]);
    }
    flow.goes_on();
    assert_eq!(everything(node), before);
    drop(front);
    control.start_server(server).unwrap();
    is_content(node);
    assert_eq!(everything(node), before);
    flow.end(node);
}
