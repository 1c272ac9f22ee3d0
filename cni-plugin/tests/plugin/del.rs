//! DEL, whatever happened before.

use crate::node::Node;
use cni_plugin::{code, queue};
use serde_json::json;
use std::os::unix::net::UnixListener;

fn queued(node: &Node) -> Vec<String> {
    queue::list(node.state_dir())
        .unwrap()
        .into_iter()
        .map(|entry| entry.unwrap().release.container_id)
        .collect()
}

#[test]
fn cni_01_del_without_netns() {
    let Some(node) = Node::new() else { return };
    node.add();
    node.call("DEL").unset("CNI_NETNS").run().ok();
    node.assert_empty();
}

#[test]
fn cni_01_del_with_an_empty_netns() {
    let Some(node) = Node::new() else { return };
    node.add();
    node.call("DEL").set("CNI_NETNS", "").run().ok();
    node.assert_empty();
}

#[test]
fn cni_01_del_with_a_netns_that_is_gone() {
    let Some(node) = Node::new() else { return };
    node.add();
    node.call("DEL").set("CNI_NETNS", "/run/netns/gone").run().ok();
    node.assert_empty();
}

#[test]
fn cni_01_del_twice_and_without_prev_result() {
    let Some(node) = Node::new() else { return };
    let result = node.add();
    node.call("DEL").with(json!({"prevResult": result})).run().ok();
    node.call("DEL").run().ok();
    node.assert_empty();
}

#[test]
fn cni_01_del_of_what_never_was() {
    let Some(node) = Node::new() else { return };
    node.call("DEL").set("CNI_CONTAINERID", "unknown").run().ok();
    node.assert_empty();
}

#[test]
fn cni_01_del_after_a_failed_add() {
    let Some(node) = Node::new() else { return };
    node.agent().refuse("program", code::TRY_AGAIN_LATER);
    node.call("ADD").run().code(code::TRY_AGAIN_LATER);
    node.call("DEL").run().ok();
    node.assert_empty();
}

#[test]
fn cni_01_del_after_a_config_edit() {
    let Some(node) = Node::new() else { return };
    node.add();
    let edited = json!({
        "cniVersion": "0.4.0", "name": "renamed", "viastack": 1, "mtu": "large", "prevResult": 7,
        "runtimeConfig": "none", "args": [],
    });
    node.call("DEL")
        .set("CNI_ARGS", "not pairs")
        .with(edited)
        .run()
        .ok();
    node.assert_empty();
}

#[test]
fn del_prints_nothing() {
    let Some(node) = Node::new() else { return };
    node.add();
    assert!(node.call("DEL").run().ok().is_null());
}

#[test]
fn rel_31_del_without_the_agent_removes_the_pair_and_is_queued() {
    let Some(mut node) = Node::new() else { return };
    node.add();
    node.agent = None;
    node.call("DEL").run().ok();
    assert_eq!(node.host.links(), Vec::<String>::new());
    assert_eq!(queued(&node), ["c1"]);
    node.call("DEL").run().ok();
    assert_eq!(queued(&node), ["c1"], "queued once");
}

#[test]
fn a_del_that_an_agent_does_not_answer_is_queued() {
    let Some(node) = Node::without_agent() else { return };
    let _listener = UnixListener::bind(node.socket()).unwrap();
    node.call("DEL").with(json!({"agentTimeout": 1})).run().ok();
    assert_eq!(queued(&node), ["c1"]);
}

#[test]
fn a_del_that_can_be_neither_told_nor_queued_fails() {
    let Some(node) = Node::without_agent() else { return };
    std::fs::write(node.folder.path().join("file"), "").unwrap();
    let state = node.folder.path().join("file/state");
    let error = node
        .call("DEL")
        .with(json!({"stateDir": state}))
        .run()
        .code(code::IO);
    assert!(error["msg"].as_str().unwrap().contains("queue"), "{error}");
}

#[test]
fn an_add_takes_back_the_queued_deletion_of_its_name() {
    let Some(mut node) = Node::without_agent() else {
        return;
    };
    node.call("DEL").run().ok();
    assert_eq!(queued(&node), ["c1"]);
    node.start_agent();
    node.add();
    assert_eq!(queued(&node), Vec::<String>::new());
}

#[test]
fn a_refusal_of_the_agent_is_reported_when_everything_else_is_done() {
    let Some(node) = Node::new() else { return };
    node.add();
    node.agent().refuse("release", code::IO);
    node.call("DEL").run().code(code::IO);
    assert_eq!(node.host.links(), Vec::<String>::new());
}
