//! VERSION, STATUS, GC, and what every verb has in common.

use crate::node::Node;
use cni_plugin::{Attachment, code, rpc::Request};
use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::{Value, json};
use std::process::{Command, Stdio};

const SERVED: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[test]
fn cni_05_version_works_with_empty_or_unusable_stdin() {
    let Some(node) = Node::without_agent() else { return };
    for stdin in ["", "{}", "nonsense", "null"] {
        let answer = node.call("VERSION").run_with(stdin.as_bytes()).ok();
        assert_eq!(
            answer,
            json!({"cniVersion": "1.1.0", "supportedVersions": SERVED}),
            "{stdin:?}"
        );
    }
}

#[test]
fn cni_05_version_echoes_the_configurations() {
    let Some(node) = Node::without_agent() else { return };
    for version in ["0.4.0", "1.0.0", "0.2.0"] {
        let stdin = json!({"cniVersion": version}).to_string();
        let answer = node.call("VERSION").run_with(stdin.as_bytes()).ok();
        assert_eq!(
            answer,
            json!({"cniVersion": version, "supportedVersions": SERVED})
        );
    }
}

#[test]
fn errors_are_json_on_stdout_in_the_configurations_version() {
    let Some(node) = Node::without_agent() else { return };
    let error = node
        .call("ADD")
        .with(json!({"cniVersion": "0.4.0"}))
        .run()
        .code(code::TRY_AGAIN_LATER);
    assert_eq!(error["cniVersion"], "0.4.0");
    let error = node.call("ADD").run_with(b"{").code(code::DECODE);
    assert_eq!(error["cniVersion"], "1.1.0");
    node.call("ADD").without("name").run().code(code::INVALID_CONFIG);
    let error = node
        .call("ADD")
        .unset("CNI_NETNS")
        .set("CNI_IFNAME", "a/b")
        .run()
        .code(code::INVALID_ENVIRONMENT);
    let details = error["details"].as_str().unwrap();
    assert!(
        details.contains("CNI_NETNS") && details.contains("CNI_IFNAME"),
        "{details}"
    );
}

#[test]
fn logs_go_to_stderr() {
    let Some(node) = Node::without_agent() else { return };
    let answer = node.call("DEL").with(json!({"logLevel": "debug"})).run();
    assert!(answer.succeeded && answer.json.is_null(), "{answer:?}");
    assert!(answer.stderr.contains("queued"), "{answer:?}");
}

#[test]
fn status_is_ready_or_code_50_or_51() {
    let Some(mut node) = Node::new() else { return };
    assert!(node.call("STATUS").run().ok().is_null());
    for (refused, code) in [(50, 50), (51, 51), (11, 50), (999, 50)] {
        node.agent().refuse("status", refused);
        node.call("STATUS").run().code(code);
    }
    node.agent = None;
    node.call("STATUS").run().code(code::NOT_AVAILABLE);
}

#[test]
fn status_needs_no_attachment() {
    let Some(node) = Node::new() else { return };
    let call = node
        .call("STATUS")
        .unset("CNI_CONTAINERID")
        .unset("CNI_IFNAME")
        .unset("CNI_NETNS")
        .unset("CNI_PATH");
    call.run().ok();
    assert_eq!(node.agent().requests().len(), 1);
}

#[test]
fn status_and_gc_came_with_1_1_0() {
    let Some(node) = Node::new() else { return };
    for verb in ["STATUS", "GC"] {
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            let call = node
                .call(verb)
                .with(json!({"cniVersion": version, "cni.dev/valid-attachments": []}));
            call.run().code(code::INCOMPATIBLE_VERSION);
        }
    }
    assert_eq!(node.agent().requests(), []);
}

#[test]
fn gc_keeps_what_is_listed_and_collects_the_rest() {
    let Some(node) = Node::new() else { return };
    node.add();
    let other = crate::node::Namespace::new().unwrap();
    node.call("ADD")
        .set("CNI_CONTAINERID", "c2")
        .set("CNI_NETNS", other.path())
        .run()
        .ok();
    let list = json!([{"containerID": "c2", "ifname": "eth0"}]);
    assert!(
        node.call("GC")
            .with(json!({"cni.dev/valid-attachments": list}))
            .run()
            .ok()
            .is_null()
    );
    assert_eq!(node.agent().endpoints(), [Attachment::new("c2", "eth0")]);
    assert_eq!(node.host.links(), [cni_plugin::host_ifname("c2", "eth0")]);
    assert_eq!(node.pod.links(), Vec::<String>::new());
}

#[test]
fn gc_without_a_list_collects_nothing() {
    let Some(node) = Node::new() else { return };
    node.add();
    let error = node.call("GC").run().code(code::INVALID_CONFIG);
    assert!(
        error["details"]
            .as_str()
            .unwrap()
            .contains("cni.dev/valid-attachments"),
        "{error}"
    );
    assert!(
        !node
            .agent()
            .requests()
            .iter()
            .any(|request| matches!(request, Request::Gc(_)))
    );
    assert_eq!(node.host.links().len(), 1);
}

#[test]
fn gc_reads_the_key_of_the_early_text_too() {
    let Some(node) = Node::new() else { return };
    node.add();
    node.call("GC")
        .with(json!({"cni.dev/attachments": []}))
        .run()
        .ok();
    node.assert_empty();
}

#[test]
fn gc_without_the_agent_fails() {
    let Some(node) = Node::without_agent() else { return };
    node.call("GC")
        .with(json!({"cni.dev/valid-attachments": []}))
        .run()
        .code(code::TRY_AGAIN_LATER);
}

#[test]
fn the_binary_explains_itself() {
    for (arguments, status, on_stdout) in [
        (&["--help"][..], 0, true),
        (&["--version"][..], 0, true),
        (&[][..], 2, false),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-cni"));
        let output = command
            .args(arguments)
            .env_clear()
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
        let text = if on_stdout { output.stdout } else { output.stderr };
        assert!(
            String::from_utf8(text).unwrap().starts_with("millrace-cni 0."),
            "{arguments:?}"
        );
    }
}

/// Whatever comes in, JSON goes out, and a panic would have code 999.
#[test]
fn arbitrary_input_is_answered_with_json() {
    let Some(node) = Node::without_agent() else { return };
    let verbs = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "x"];
    let strategy = (
        proptest::sample::select(verbs.to_vec()),
        "[^\0]{0,12}",
        "[^\0]{0,12}",
        "[^\0]{0,20}",
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..100),
            "[^\0]{0,30}".prop_map(|name| {
                json!({"cniVersion": "1.1.0", "name": name, "agentSocket": "/nowhere", "stateDir": "/dev/null/x"})
                    .to_string()
                    .into_bytes()
            }),
        ],
    );
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..Default::default()
    });
    let outcome = runner.run(&strategy, |(verb, id, ifname, args, stdin)| {
        let answer = node
            .call(verb)
            .set("CNI_CONTAINERID", id)
            .set("CNI_IFNAME", ifname)
            .set("CNI_ARGS", args)
            .set("CNI_NETNS", "/nowhere")
            .run_with(&stdin);
        prop_assert!(!answer.killed);
        prop_assert!(answer.succeeded || answer.json["code"].is_u64(), "{answer:?}");
        prop_assert_ne!(&answer.json["code"], &Value::from(code::INTERNAL), "{:?}", answer);
        Ok(())
    });
    outcome.unwrap();
}
