//! API servers that move, credentials and certificates that are wrong.

use std::fs;

use cni_tests::lab::{
    ControlPlane, Families, Lab, Node, Plan, Routing, Signal,
    control_plane::{authority, pod},
};
use serde_json::{Value, json};

use crate::{eventually, needs_control_plane};

pub(crate) fn problems(node: &Node) -> String {
    node.ask(["status"]).map_or_else(
        |error| error.to_string(),
        |status| status["agent"]["problems"].to_string(),
    )
}

#[track_caller]
pub(crate) fn complains(node: &Node, words: &[&str]) {
    eventually(|| {
        let problems = problems(node);
        (!words.iter().all(|word| problems.contains(word))).then(|| format!("{words:?} not in {problems}"))
    });
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
    let (mut control, lab) = alone();
    let node = &lab.nodes[0];
    control.run_pod(&pod("far", "elsewhere", &["10.77.9.9"])).unwrap();
    eventually(|| {
        let peers = node.dump("peers").unwrap();
        (!peers.iter().any(|peer| peer.contains("10.77.9.9"))).then(|| format!("{peers:?}"))
    });
    let memory = node.folder().join("state/cluster.json");
    eventually(|| (!memory.exists()).then(|| "nothing is remembered".to_owned()));
    let before = node.intent().unwrap();
    let server = control.addresses[0];
    control.kill_server(server).unwrap();
    node.end_agent(Signal::SIGKILL).unwrap();
    node.start_agent().unwrap();
    node.wait_until_ready().unwrap();
    let a = node.add_pod("a").unwrap();
    node.delete_pod(a).unwrap();
    // DEL answers when the endpoint is given up; the next round takes it out of the maps.
    eventually(|| {
        let now = node.intent().unwrap();
        (now != before).then(|| format!("{now:#?}"))
    });
    complains(node, &["no API server answers"]);
    control.start_server(server).unwrap();
    is_content(node);
    assert_eq!(node.intent().unwrap(), before);
}

#[test]
fn what_keeps_the_agent_from_the_server_is_named_with_its_remedy_and_the_node_forwards() {
    needs_control_plane!();
    let (control, lab) = alone();
    let node = &lab.nodes[0];
    let before = node.intent().unwrap();
    let foreign = node.folder().join("foreign");
    fs::create_dir_all(&foreign).unwrap();
    authority(&foreign, "ca").unwrap();
    let expired = node.folder().join("expired-token");
    fs::write(&expired, "nonsense").unwrap();
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
        assert_eq!(node.intent().unwrap(), before, "{key}");
    }
    restart(node, &lab.plan);
    node.wait_until_ready().unwrap();
    is_content(node);
    drop(control);
}

#[test]
fn a_node_without_pod_ranges_says_so() {
    needs_control_plane!();
    let (control, lab) = alone();
    let node = &lab.nodes[0];
    control
        .apply(&[json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "bare" } })])
        .unwrap();
    let mut plan = lab.plan.clone();
    plan.config["nodeName"] = json!("bare");
    restart(node, &plan);
    complains(node, &["Node bare", "spec.podCIDRs"]);
}
