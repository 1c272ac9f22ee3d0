//! The node's devices: several of them, some that come late, addresses that change, and a setting that says which.

use std::{collections::BTreeSet, net::IpAddr};

use cni_tests::{
    lab::{Families, Lab, Node, Plan, Routing},
    netns::Namespace,
    traffic::{self, Echo, Steady},
};
use serde_json::json;

use crate::{eventually, needs_root};

/// Gives a node a second cable to the fabric's router.
fn second_cable(lab: &Lab, node: &Node) {
    lab.fabric
        .ip(&format!(
            "link add second type veth peer name tmp1
             link set tmp1 netns {} name net1
             link set second up
             address add 192.168.99.1/24 dev second
             address add fd99::1/64 dev second nodad",
            node.namespace.name()
        ))
        .unwrap();
    node.namespace
        .ip("link set net1 up
             address add 192.168.99.11/24 dev net1
             address add fd99::11/64 dev net1 nodad")
        .unwrap();
    // The end that came up first sends nothing until the kernel has noticed the other (`linkwatch`).
    eventually(|| {
        let show = lab.fabric.command("ip").args(["link", "show", "second"]).output();
        let said = String::from_utf8_lossy(&show.unwrap().stdout).into_owned();
        said.contains(" qdisc noop ").then_some(said)
    });
}

/// Has a node reach the outside by the second cable only.
fn leave_by_the_second(node: &Node) {
    node.namespace
        .ip("route replace default via 192.168.99.1 dev net1
             route replace default via fd99::1 dev net1
             route add 203.0.113.0/24 via 192.168.99.1 dev net1
             route add 2001:db8:113::/64 via fd99::1 dev net1")
        .unwrap();
}

fn has_programs(node: &Node, device: &str) -> bool {
    let links: BTreeSet<String> = node.links().unwrap().into_iter().collect();
    ["from_netdev", "to_netdev"]
        .iter()
        .all(|program| links.contains(&format!("netdev/{device}/{program}")))
}

/// Waits for the programs of the second cable, and for its addresses in their table: the agent may have seen the device
/// before it had any, and then packets leave by it with the node's.
#[track_caller]
fn wait_for_the_second(node: &Node) {
    eventually(|| {
        let devices = node.dump("devices").unwrap().join("\n");
        let known = ["192.168.99.11", "fd99::11"]
            .iter()
            .all(|address| devices.contains(address));
        let done = known && has_programs(node, "net1");
        (!done).then(|| format!("{devices}; {:?}", node.links().unwrap()))
    });
}

/// Whom the outside sees when a pod asks.
fn seen_outside(lab: &Lab, from: &Namespace, v4: bool) -> IpAddr {
    let echo = Echo::udp(&lab.outside, lab.outside_address(v4), 0).unwrap();
    traffic::udp(from, echo.address, 100)
        .map_err(|error| format!("{error:#}; {:?}", lab.nodes[0].all_drops()))
        .unwrap();
    let peers = echo.peers();
    assert_eq!(peers.len(), 1, "{peers:?}");
    peers.first().unwrap().ip()
}

#[test]
fn a_device_that_comes_later_carries_pods_and_costs_no_connection() {
    needs_root!();
    let lab = Lab::start(Plan::new(Routing::Direct, Families::Dual)).unwrap();
    let [node, far] = lab.pair();
    let (a, c) = (node.add_pod("a").unwrap(), far.add_pod("c").unwrap());
    let mut servers = Vec::new();
    let mut flows = Vec::new();
    for v4 in [true, false] {
        for (there, ip) in [(&lab.outside, lab.outside_address(v4)), (&c.namespace, c.ip(v4))] {
            let echo = Echo::tcp(there, ip, 0).unwrap();
            flows.push(Steady::tcp(&a.namespace, echo.address).unwrap());
            servers.push(echo);
        }
    }
    flows.iter().for_each(|flow| flow.wait_for(10));
    second_cable(&lab, node);
    leave_by_the_second(node);
    wait_for_the_second(node);
    for v4 in [true, false] {
        let here: IpAddr = if v4 { "192.168.99.11" } else { "fd99::11" }.parse().unwrap();
        assert_eq!(seen_outside(&lab, &a.namespace, v4), here);
        // What came by a device is one of the node's addresses, for pods too.
        let server = Echo::tcp(&node.namespace, here, 0).unwrap();
        traffic::tcp(&a.namespace, server.address, 10_000).unwrap();
    }
    flows.iter().for_each(|flow| flow.wait_for(20));
    node.namespace.ip("link del net1").unwrap();
    eventually(|| {
        let links = node.links().unwrap();
        links
            .iter()
            .any(|link| link.contains("net1"))
            .then(|| format!("{links:?}"))
    });
    // By the old way again, on which the first connections' address lies.
    for v4 in [true, false] {
        let router = if v4 { "192.168.64.1" } else { "fd77::1" };
        let default = format!("route replace default via {router} dev eth0");
        node.namespace.ip(&default).unwrap();
        assert_eq!(seen_outside(&lab, &a.namespace, v4), node.address(v4));
    }
    flows.iter().for_each(|flow| flow.wait_for(20));
    for flow in flows {
        assert_eq!(flow.stop().failures, Vec::<String>::new());
    }
}

/// Node objects in which the first node has these addresses.
fn nodes_with(plan: &Plan, addresses: [IpAddr; 2]) -> serde_json::Value {
    let nodes = (0..plan.nodes).map(|number| {
        let address = |v4: bool| {
            let ip = match number {
                0 => addresses[usize::from(!v4)],
                _ => plan.node_address(number, v4),
            };
            json!({ "type": "InternalIP", "address": ip })
        };
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": format!("node{number}") },
            "spec": { "podCIDRs": [plan.pod_cidr(number, true), plan.pod_cidr(number, false)] },
            "status": { "addresses": [address(true), address(false)] },
        })
    });
    json!({ "apiVersion": "v1", "kind": "List", "items": nodes.collect::<Vec<_>>() })
}

fn renumbered(routing: Routing) {
    needs_root!();
    let lab = Lab::start(Plan::new(routing, Families::Dual)).unwrap();
    let [node, far] = lab.pair();
    let (a, b) = (node.add_pod("a").unwrap(), node.add_pod("b").unwrap());
    let c = far.add_pod("c").unwrap();
    let near = Echo::tcp(&b.namespace, b.ip(true), 0).unwrap();
    let steady = Steady::tcp(&a.namespace, near.address).unwrap();
    let fresh: [IpAddr; 2] = ["192.168.64.77", "fd77::77"].map(|text| text.parse().unwrap());
    node.namespace
        .ip(&format!(
            "address del {}/24 dev eth0
             address del {}/64 dev eth0
             address add {}/24 dev eth0
             address add {}/64 dev eth0 nodad
             route replace default via 192.168.64.1
             route replace default via fd77::1",
            node.address(true),
            node.address(false),
            fresh[0],
            fresh[1],
        ))
        .unwrap();
    let objects = nodes_with(&lab.plan, fresh);
    for node in &lab.nodes {
        node.write_manifest("nodes.yaml", &objects).unwrap();
    }
    for (v4, ip) in [true, false].into_iter().zip(fresh) {
        let text = ip.to_string();
        eventually(|| {
            let devices = node.dump("devices").unwrap().join("\n");
            (!devices.contains(&text)).then_some(devices)
        });
        eventually(|| {
            let routes = far.dump("routes").unwrap().join("\n");
            (!routes.contains(&text)).then_some(routes)
        });
        assert_eq!(seen_outside(&lab, &a.namespace, v4), ip);
        // To the node's new address and across, in both directions.
        let server = Echo::tcp(&node.namespace, ip, 0).unwrap();
        traffic::tcp(&a.namespace, server.address, 10_000).unwrap();
        traffic::tcp(&c.namespace, server.address, 10_000).unwrap();
        for (from, to) in [(&a, &c), (&c, &a)] {
            let server = Echo::tcp(&to.namespace, to.ip(v4), 0).unwrap();
            traffic::tcp(&from.namespace, server.address, 10_000).unwrap();
        }
    }
    assert_eq!(steady.stop().failures, Vec::<String>::new());
}

#[test]
fn a_node_that_gets_another_address_goes_on_with_it_direct() {
    renumbered(Routing::Direct);
}

#[test]
fn a_node_that_gets_another_address_goes_on_with_it_vxlan() {
    renumbered(Routing::Vxlan);
}

#[test]
fn the_setting_says_which_devices_are_the_nodes() {
    needs_root!();
    let plan = Plan::new(Routing::Direct, Families::Dual)
        .nodes(1)
        .config(json!({ "devices": ["net1"] }));
    let lab = Lab::start(plan).unwrap();
    let node = &lab.nodes[0];
    // One that is not there yet is waited for, and said to be missing.
    let status = node.ask(["status"]).unwrap();
    assert!(
        status["agent"]["problems"]
            .to_string()
            .contains("there is no device net1"),
        "{status}"
    );
    second_cable(&lab, node);
    wait_for_the_second(node);
    assert!(!has_programs(node, "eth0"));
    leave_by_the_second(node);
    let pod = node.add_pod("a").unwrap();
    assert_eq!(
        seen_outside(&lab, &pod.namespace, true),
        IpAddr::from([192, 168, 99, 11])
    );
    eventually(|| {
        let problems = node.ask(["status"]).unwrap()["agent"]["problems"].to_string();
        problems.contains("net1").then_some(problems)
    });
}
