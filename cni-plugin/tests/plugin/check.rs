//! CHECK: compares with the result of ADD, and leaves to later plugins what is theirs.

use crate::node::{Answer, Node};
use cni_plugin::{code, host_ifname};
use serde_json::{Value, json};

fn check(node: &Node, result: &Value) -> Answer {
    node.call("CHECK").with(json!({"prevResult": result})).run()
}

#[test]
fn cni_06_what_add_made_passes() {
    let Some(node) = Node::new() else { return };
    let result = node.add();
    assert!(check(&node, &result).ok().is_null(), "CHECK prints nothing");
}

#[test]
fn cni_06_what_later_plugins_changed_is_tolerated() {
    let Some(node) = Node::new() else { return };
    let mut result = node.add();
    // A plugin after us that adds an interface with an address and a route, and changes the MTU.
    node.pod.ip("link add net1 type veth peer name net1-peer");
    node.pod.ip("address add 198.51.100.7/24 dev eth0");
    node.pod.ip("link set eth0 mtu 1300");
    result["interfaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "net1", "sandbox": node.pod.path()}));
    result["ips"]
        .as_array_mut()
        .unwrap()
        .push(json!({"address": "203.0.113.9/24", "interface": 2}));
    result["routes"]
        .as_array_mut()
        .unwrap()
        .push(json!({"dst": "203.0.113.0/24", "gw": "198.51.100.1"}));
    check(&node, &result).ok();
}

#[test]
fn cni_06_what_is_missing_is_found_and_named() {
    let host = host_ifname("c1", "eth0");
    let damages = [
        (true, "address delete 10.0.0.1/32 dev eth0".to_owned(), "10.0.0.1"),
        (
            true,
            "-6 address delete fd00::1/128 dev eth0".to_owned(),
            "fd00::1",
        ),
        (true, "route delete default".to_owned(), "0.0.0.0/0"),
        (true, "-6 route delete default".to_owned(), "::/0"),
        (
            true,
            "neighbour delete 169.254.1.1 dev eth0".to_owned(),
            "169.254.1.1",
        ),
        (
            true,
            "link set eth0 address 02:00:00:00:07:07".to_owned(),
            "Ethernet",
        ),
        (true, "link set eth0 down".to_owned(), "eth0 is down"),
        (true, "link delete eth0".to_owned(), "eth0"),
        (false, format!("link set {host} down"), "is down"),
        (
            false,
            "route delete 10.0.0.1/32".to_owned(),
            "no route to 10.0.0.1",
        ),
    ];
    for (in_pod, damage, named) in damages {
        let Some(node) = Node::new() else { return };
        let result = node.add();
        if in_pod {
            node.pod.ip(&damage)
        } else {
            node.host.ip(&damage)
        }
        let error = check(&node, &result).code(code::CHECK_FAILED);
        assert!(
            error["details"].as_str().unwrap().contains(named),
            "{damage}: {error}"
        );
    }
}

#[test]
fn what_the_agent_does_not_have_fails() {
    let Some(mut node) = Node::new() else { return };
    let result = node.add();
    node.start_agent();
    check(&node, &result).code(code::UNKNOWN_CONTAINER);
    node.agent = None;
    check(&node, &result).code(code::TRY_AGAIN_LATER);
}

#[test]
fn check_needs_a_previous_result_and_version_0_4_0() {
    let Some(node) = Node::new() else { return };
    let result = node.add();
    let error = node.call("CHECK").run().code(code::INVALID_CONFIG);
    assert!(
        error["details"].as_str().unwrap().contains("prevResult"),
        "{error}"
    );
    for (version, served) in [("0.3.1", false), ("0.4.0", true), ("1.0.0", true)] {
        let answer = node
            .call("CHECK")
            .with(json!({"cniVersion": version, "prevResult": result}))
            .run();
        if served {
            answer.ok();
        } else {
            answer.code(code::INCOMPATIBLE_VERSION);
        }
    }
    let empty = json!({"interfaces": []});
    check(&node, &empty).code(code::CHECK_FAILED);
}
