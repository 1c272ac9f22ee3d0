//! Calls that fail or are killed at each of their steps, and many calls at once.

use crate::{
    node::{Namespace, Node},
    not_run::cannot_run,
    steps,
};
use cni_plugin::{code, queue};
use serde_json::json;

/// Fault injection is compiled into debug builds only.
fn can_inject() -> bool {
    if !cfg!(debug_assertions) {
        cannot_run("a release build has no fault injection");
    }
    cfg!(debug_assertions)
}

#[test]
fn an_add_that_fails_at_any_step_leaves_nothing() {
    for step in steps::WIRING {
        let Some(node) = can_inject().then(Node::new).flatten() else {
            return;
        };
        node.call("ADD")
            .set("MILLRACE_CNI_FAIL_AT", step)
            .run()
            .code(code::INTERNAL);
        node.assert_empty();
        node.add();
    }
}

#[test]
fn cni_08_an_add_killed_at_any_step_is_undone_by_del() {
    for step in steps::all() {
        let Some(node) = can_inject().then(Node::new).flatten() else {
            return;
        };
        let answer = node
            .call("ADD")
            .set("MILLRACE_CNI_FAIL_AT", format!("{step}:kill"))
            .run();
        assert!(answer.killed, "{step}: {answer:?}");
        node.call("DEL").run().ok();
        node.assert_empty();
    }
}

#[test]
fn cni_08_an_add_killed_at_any_step_is_made_anew_by_the_next() {
    for step in steps::all() {
        let Some(node) = can_inject().then(Node::new).flatten() else {
            return;
        };
        node.call("ADD")
            .set("MILLRACE_CNI_FAIL_AT", format!("{step}:kill"))
            .run();
        node.agent().settle();
        let result = node.add();
        node.call("CHECK").with(json!({"prevResult": result})).run().ok();
        // One that is complete is no remainder.
        node.call("ADD").run().code(code::INTERFACE_EXISTS);
        node.call("DEL").run().ok();
        node.assert_empty();
    }
}

#[test]
fn cni_08_a_killed_add_leaves_the_agent_nothing_that_it_did_not_confirm() {
    for step in steps::all() {
        let Some(node) = can_inject().then(Node::new).flatten() else {
            return;
        };
        node.call("ADD")
            .set("MILLRACE_CNI_FAIL_AT", format!("{step}:kill"))
            .run();
        node.agent().settle();
        assert_eq!(node.agent().endpoints(), [], "{step}");
    }
}

#[test]
fn cni_08_a_del_killed_at_any_step_is_completed_by_the_next() {
    for step in ["del-link", "del-release"] {
        let Some(node) = can_inject().then(Node::new).flatten() else {
            return;
        };
        node.add();
        let answer = node
            .call("DEL")
            .set("MILLRACE_CNI_FAIL_AT", format!("{step}:kill"))
            .run();
        assert!(answer.killed, "{step}: {answer:?}");
        node.call("DEL").run().ok();
        node.assert_empty();
    }
}

#[test]
fn cni_08_a_del_killed_before_it_is_queued_is_queued_by_the_next() {
    let Some(mut node) = can_inject().then(Node::new).flatten() else {
        return;
    };
    node.add();
    node.agent = None;
    assert!(
        node.call("DEL")
            .set("MILLRACE_CNI_FAIL_AT", "del-queue:kill")
            .run()
            .killed
    );
    node.call("DEL").run().ok();
    assert_eq!(node.host.links(), Vec::<String>::new());
    assert_eq!(queue::list(node.state_dir()).unwrap().len(), 1);
}

#[test]
fn an_agent_that_dies_during_an_add_leaves_no_pair() {
    let Some(mut node) = Node::new() else { return };
    node.agent().die_at_program();
    node.call("ADD").run().code(code::TRY_AGAIN_LATER);
    assert_eq!(node.host.links(), Vec::<String>::new());
    assert_eq!(node.pod.links(), Vec::<String>::new());
    // Word is left for its successor, which knows the allocation from disk.
    assert_eq!(queue::list(node.state_dir()).unwrap().len(), 1);
    node.start_agent();
    node.add();
}

#[test]
fn rel_43_a_storm_of_110_adds_then_dels_refuses_none_and_leaks_nothing() {
    let Some(node) = Node::new() else { return };
    let pods: Vec<Namespace> = (0..110).filter_map(|_| Namespace::new()).collect();
    let each = |verb: &'static str| {
        std::thread::scope(|scope| {
            for (number, pod) in pods.iter().enumerate() {
                let call = node
                    .call(verb)
                    .set("CNI_CONTAINERID", format!("storm-{number}"))
                    .set("CNI_NETNS", pod.path());
                scope.spawn(move || call.run().ok());
            }
        });
    };
    each("ADD");
    assert_eq!(node.host.links().len(), 110);
    assert_eq!(node.agent().endpoints().len(), 110);
    assert_eq!(node.host.list("route show proto 77").len(), 110);
    each("DEL");
    node.assert_empty();
    assert_eq!(node.host.list("route show proto 77").len(), 0);
}
