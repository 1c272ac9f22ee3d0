//! Delegation to an IPAM plugin.

use crate::node::Node;
use cni_plugin::code;
use serde_json::{Value, json};

const RESULT: &str = r#"{"cniVersion":"1.1.0","ips":[{"address":"10.77.0.5/24","gateway":"10.77.0.1"}],"routes":[{"dst":"0.0.0.0/0"},{"dst":"10.99.0.0/16","gw":"10.77.0.1","mtu":1200}],"dns":{"nameservers":["10.77.0.53"]}}"#;

fn section() -> Value {
    json!({"ipam": {"type": "ipam-test", "subnet": "10.77.0.0/24"}})
}

fn verbs(node: &Node) -> Vec<String> {
    node.ipam_calls()
        .iter()
        .map(|call| call.split(' ').next().unwrap().to_owned())
        .collect()
}

#[test]
fn its_addresses_routes_and_dns_are_used() {
    let Some(node) = Node::new() else { return };
    node.install_ipam(RESULT, "");
    let result = node.call("ADD").with(section()).run().ok();
    assert_eq!(
        node.agent().allocation().delegated_ips,
        ["10.77.0.5/24".parse().unwrap()]
    );
    assert_eq!(result["ips"].as_array().unwrap().len(), 1);
    assert_eq!(result["ips"][0]["address"], "10.77.0.5/32");
    assert_eq!(
        result["ips"][0]["gateway"], "169.254.1.1",
        "the only gateway that a pod of ours has"
    );
    assert_eq!(result["dns"]["nameservers"][0], "10.77.0.53");
    let routes = node.pod.list("route show proto 77");
    let special = routes
        .iter()
        .find(|route| route["dst"] == "10.99.0.0/16")
        .unwrap();
    assert_eq!(special["gateway"], "169.254.1.1");
    assert_eq!(special["metrics"][0]["mtu"], 1200);
    assert_eq!(node.ipam_calls(), ["ADD c1 eth0"]);
}

#[test]
fn addresses_that_the_runtime_asks_for_are_its_affair() {
    let Some(node) = Node::new() else { return };
    node.install_ipam(RESULT, "");
    let wish = json!({"runtimeConfig": {"ips": ["10.77.0.5/24"]}});
    node.call("ADD").with(section()).with(wish).run().ok();
    assert_eq!(node.agent().allocation().requested_ips, []);
}

#[test]
fn it_gets_the_whole_configuration() {
    let Some(node) = Node::new() else { return };
    node.install_ipam(RESULT, "");
    node.call("ADD")
        .with(section())
        .with(json!({"example.org/x": [1]}))
        .run()
        .ok();
    let stdin = std::fs::read(node.folder.path().join("ipam.stdin")).unwrap();
    let seen: Value = serde_json::from_slice(&stdin).unwrap();
    assert_eq!(seen["ipam"]["subnet"], "10.77.0.0/24");
    assert_eq!(seen["example.org/x"], json!([1]));
    assert_eq!(seen["name"], "net");
}

#[test]
fn cni_03_a_failed_ipam_add_is_followed_by_its_del() {
    let Some(node) = Node::new() else { return };
    node.install_ipam(RESULT, "ADD");
    let error = node.call("ADD").with(section()).run().code(123);
    assert_eq!(error["msg"], "refused by ipam-test");
    assert_eq!(verbs(&node), ["ADD", "DEL"]);
    node.assert_empty();
}

#[test]
fn cni_03_an_add_that_fails_later_gives_the_addresses_back() {
    for operation in ["allocate", "program"] {
        let Some(node) = Node::new() else { return };
        node.install_ipam(RESULT, "");
        node.agent().refuse(operation, code::NOT_AVAILABLE);
        node.call("ADD").with(section()).run().code(code::NOT_AVAILABLE);
        assert_eq!(verbs(&node), ["ADD", "DEL"], "{operation}");
        node.assert_empty();
    }
}

#[test]
fn cni_03_every_verb_is_forwarded() {
    let Some(node) = Node::new() else { return };
    node.install_ipam(RESULT, "");
    let result = node.call("ADD").with(section()).run().ok();
    node.call("CHECK")
        .with(section())
        .with(json!({"prevResult": result}))
        .run()
        .ok();
    node.call("STATUS").with(section()).run().ok();
    node.call("GC")
        .with(section())
        .with(json!({"cni.dev/valid-attachments": []}))
        .run()
        .ok();
    node.call("DEL").with(section()).run().ok();
    assert_eq!(verbs(&node), ["ADD", "CHECK", "STATUS", "GC", "DEL"]);
}

#[test]
fn cni_03_what_it_refuses_fails_the_verb() {
    let Some(node) = Node::new() else { return };
    node.install_ipam(RESULT, "");
    let result = node.call("ADD").with(section()).run().ok();
    node.install_ipam(RESULT, "CHECK STATUS GC DEL");
    node.call("CHECK")
        .with(section())
        .with(json!({"prevResult": result}))
        .run()
        .code(123);
    node.call("STATUS").with(section()).run().code(123);
    node.call("GC")
        .with(section())
        .with(json!({"cni.dev/valid-attachments": []}))
        .run()
        .code(123);
    // It went on past that: nothing of ours is left for the DEL.
    assert_eq!(node.agent().endpoints(), []);
    node.assert_empty();
    node.call("DEL").with(section()).run().code(123);
    node.assert_empty();
}

#[test]
fn del_frees_its_addresses_while_the_agent_is_down() {
    let Some(mut node) = Node::new() else { return };
    node.install_ipam(RESULT, "");
    node.call("ADD").with(section()).run().ok();
    node.agent = None;
    node.call("DEL").with(section()).run().ok();
    assert_eq!(verbs(&node), ["ADD", "DEL"]);
}

#[test]
fn cni_03_gc_reaches_it_while_the_agent_is_down() {
    let Some(mut node) = Node::new() else { return };
    node.install_ipam(RESULT, "");
    node.agent = None;
    node.call("GC")
        .with(section())
        .with(json!({"cni.dev/valid-attachments": []}))
        .run()
        .code(code::TRY_AGAIN_LATER);
    assert_eq!(verbs(&node), ["GC"]);
}

#[test]
fn no_address_is_reserved_while_the_agent_is_down() {
    let Some(node) = Node::without_agent() else { return };
    node.install_ipam(RESULT, "");
    node.call("ADD").with(section()).run().code(code::TRY_AGAIN_LATER);
    assert_eq!(node.ipam_calls(), Vec::<String>::new());
}

#[test]
fn nonsense_from_it_is_an_error_and_undone() {
    for nonsense in [
        "",
        "not json",
        "{}",
        r#"{"ips":[]}"#,
        r#"{"ips":[{"address":"here"}]}"#,
    ] {
        let Some(node) = Node::new() else { return };
        node.install_ipam(nonsense, "");
        assert!(!node.call("ADD").with(section()).run().succeeded, "{nonsense}");
        assert_eq!(verbs(&node), ["ADD", "DEL"], "{nonsense}");
        node.assert_empty();
    }
}

#[test]
fn rel_27_it_is_found_by_bare_name_in_cni_path_only() {
    let Some(node) = Node::new() else { return };
    node.install_ipam(RESULT, "");
    let here = node.folder.path().file_name().unwrap().to_str().unwrap();
    for name in [
        format!("../{here}/ipam-test"),
        node.folder.path().join("ipam-test").display().to_string(),
    ] {
        node.call("ADD")
            .with(json!({"ipam": {"type": name}}))
            .run()
            .code(code::INVALID_CONFIG);
    }
    let error = node
        .call("ADD")
        .with(json!({"ipam": {"type": "absent"}}))
        .run()
        .code(code::INVALID_ENVIRONMENT);
    assert!(error["msg"].as_str().unwrap().contains("CNI_PATH"), "{error}");
    assert_eq!(node.ipam_calls(), Vec::<String>::new());
}
