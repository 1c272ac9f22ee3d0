//! Which devices are the node's: bonds, VLANs, several of them, late ones, and addresses that change.

use std::net::{IpAddr, SocketAddr};

use cni_tests::{
    lab::{Families, Lab, Node, Plan, Pod, Routing},
    require_in_vm,
    traffic::{self, Echo, Steady},
};
use serde_json::json;

use crate::{eventually, needs_root};

/// A lab whose first node waits for its devices.
fn prepare(plan: Plan) -> Lab {
    let name = format!(
        "mrlab-devices-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    );
    Lab::prepare(plan, &name.replace(['(', ')'], "")).unwrap()
}

fn start(lab: &Lab) {
    lab.nodes.iter().for_each(|node| node.start_agent().unwrap());
    lab.nodes.iter().for_each(|node| node.wait_until_ready().unwrap());
}

/// The devices that programs of the node are attached to, pods' apart.
fn attached(node: &Node) -> Vec<String> {
    let links = node.links().unwrap();
    let mut devices: Vec<String> = links
        .iter()
        .filter_map(|link| link.strip_prefix("netdev/")?.strip_suffix("/from_netdev"))
        // bpffs takes no dot.
        .map(|device| device.replace("%2e", "."))
        .collect();
    devices.sort();
    devices
}

fn attached_to(node: &Node, wanted: &[&str]) {
    eventually(|| {
        let now = attached(node);
        (now != wanted).then(|| format!("programs on {now:?} instead of {wanted:?}"))
    });
}

/// A pod is answered from outside as this address.
#[track_caller]
fn seen_outside_as(lab: &Lab, pod: &Pod, wanted: IpAddr) {
    let echo = Echo::tcp(&lab.outside, lab.outside_address(wanted.is_ipv4()), 0).unwrap();
    traffic::tcp(&pod.namespace, echo.address, 100_000).unwrap();
    let seen: Vec<IpAddr> = echo.peers().iter().map(SocketAddr::ip).collect();
    assert_eq!(seen, [wanted]);
}

/// Pods of two nodes, both ways, and the way out.
fn traffic_flows(lab: &Lab, a: &Pod, c: &Pod) {
    for v4 in lab.plan.families.each() {
        for (from, to) in [(a, c), (c, a)] {
            let echo = Echo::tcp(&to.namespace, to.ip(v4), 0).unwrap();
            traffic::tcp(&from.namespace, echo.address, 100_000).unwrap();
        }
        seen_outside_as(lab, a, lab.nodes[0].address(v4));
    }
}

/// A second cable from a node to the fabric.
fn second_cable(lab: &Lab) -> anyhow::Result<()> {
    lab.fabric.ip("link add node0b type veth peer name tmp0")?;
    let node = lab.nodes[0].namespace.name();
    lab.fabric.ip(&format!("link set tmp0 netns {node} name eth1"))
}

#[test]
fn a_bond_is_the_nodes_device_and_outlives_a_cable() {
    needs_root!();
    let lab = prepare(Plan::new(Routing::Vxlan, Families::Dual));
    let inside = &lab.nodes[0].namespace;
    let made = inside.ip("link add bond0 type bond mode active-backup miimon 20");
    require_in_vm!(made.is_ok(), "there are no bonds: {made:?}");
    second_cable(&lab).unwrap();
    lab.fabric
        .ip("link set node0b up\nlink set node0b master bridge0")
        .unwrap();
    inside
        .ip("address flush dev eth0\nlink set eth0 down\nlink set eth0 master bond0\nlink set eth1 master bond0")
        .unwrap();
    lab.nodes[0].live_on("bond0").unwrap();
    start(&lab);
    let (a, c) = (
        lab.nodes[0].add_pod("a").unwrap(),
        lab.nodes[1].add_pod("c").unwrap(),
    );
    attached_to(&lab.nodes[0], &["bond0", "millrace.vx"]);
    traffic_flows(&lab, &a, &c);
    let echo = Echo::tcp(&c.namespace, c.ip(true), 0).unwrap();
    let steady = Steady::tcp(&a.namespace, echo.address).unwrap();
    steady.wait_for(10);
    lab.fabric.ip("link set node0 down").unwrap();
    steady.wait_for(50);
    assert_eq!(steady.stop().failures, Vec::<String>::new());
    traffic_flows(&lab, &a, &c);
}

#[test]
fn a_vlan_is_the_nodes_device() {
    needs_root!();
    for routing in [Routing::Direct, Routing::Vxlan] {
        let lab = prepare(Plan::new(routing, Families::Dual));
        let inside = &lab.nodes[0].namespace;
        let made = inside.ip("link add link eth0 name eth0.7 type vlan id 7");
        require_in_vm!(made.is_ok(), "there are no VLANs: {made:?}");
        inside.ip("address flush dev eth0").unwrap();
        lab.nodes[0].live_on("eth0.7").unwrap();
        let port = "link set node0 nomaster\nlink add link node0 name node0.7 type vlan id 7\nlink set node0.7 up\n\
                    link set node0.7 master bridge0";
        lab.fabric.ip(port).unwrap();
        start(&lab);
        let (a, c) = (
            lab.nodes[0].add_pod("a").unwrap(),
            lab.nodes[1].add_pod("c").unwrap(),
        );
        let wanted: &[&str] = match routing {
            Routing::Direct => &["eth0.7"],
            Routing::Vxlan => &["eth0.7", "millrace.vx"],
        };
        attached_to(&lab.nodes[0], wanted);
        traffic_flows(&lab, &a, &c);
    }
}

#[test]
fn a_second_device_may_come_late_and_go_again() {
    needs_root!();
    let config = json!({ "devices": ["eth0", "eth1"] });
    let mut plan = Plan::new(Routing::Direct, Families::Dual).nodes(1);
    plan = plan.config(config);
    let lab = prepare(plan);
    start(&lab);
    let node = &lab.nodes[0];
    let pod = node.add_pod("a").unwrap();
    let complaint = || {
        let status = node.ask(["status"]).unwrap().to_string();
        status.contains("there is no device eth1 (yet)")
    };
    attached_to(node, &["eth0"]);
    assert!(complaint());
    second_cable(&lab).unwrap();
    // Another network, whose host knows the node by its second address only.
    let there = "link set node0b up\naddress add 198.51.100.1/24 dev node0b\naddress add 2001:db8:51::1/64 dev node0b nodad";
    let here = "link set eth1 up\naddress add 198.51.100.2/24 dev eth1\naddress add 2001:db8:51::2/64 dev eth1 nodad";
    lab.fabric.ip(there).unwrap();
    node.namespace.ip(here).unwrap();
    attached_to(node, &["eth0", "eth1"]);
    eventually(|| complaint().then(|| "it is still missed".to_owned()));
    for (far, own) in [
        ("198.51.100.1", "198.51.100.2"),
        ("2001:db8:51::1", "2001:db8:51::2"),
    ] {
        let (far, own): (IpAddr, IpAddr) = (far.parse().unwrap(), own.parse().unwrap());
        eventually(|| {
            let devices = node.dump("devices").unwrap();
            let known = devices.iter().any(|entry| entry.contains(&own.to_string()));
            (!known).then(|| format!("{own} is not in {devices:?}"))
        });
        let echo = Echo::tcp(&lab.fabric, far, 0).unwrap();
        traffic::tcp(&pod.namespace, echo.address, 100_000).unwrap();
        let seen: Vec<IpAddr> = echo.peers().iter().map(SocketAddr::ip).collect();
        assert_eq!(seen, [own], "each network sees the address that it knows");
        seen_outside_as(&lab, &pod, node.address(own.is_ipv4()));
    }
    lab.fabric.ip("link del node0b").unwrap();
    attached_to(node, &["eth0"]);
    eventually(|| (!complaint()).then(|| "it is not missed".to_owned()));
    seen_outside_as(&lab, &pod, node.address(true));
}

#[test]
fn a_nodes_address_may_change() {
    needs_root!();
    for routing in [Routing::Direct, Routing::Vxlan] {
        let lab = prepare(Plan::new(routing, Families::V4));
        start(&lab);
        let (a, c) = (
            lab.nodes[0].add_pod("a").unwrap(),
            lab.nodes[1].add_pod("c").unwrap(),
        );
        traffic_flows(&lab, &a, &c);
        let (old, new) = (lab.nodes[0].address(true), IpAddr::from([192, 168, 64, 77]));
        let inside = &lab.nodes[0].namespace;
        inside
            .ip(&format!(
                "address del {old}/24 dev eth0\naddress add {new}/24 dev eth0\nroute add default via 192.168.64.1"
            ))
            .unwrap();
        // As the API server would tell everybody.
        for node in &lab.nodes {
            let path = node.folder().join("manifests/nodes.yaml");
            let text = std::fs::read_to_string(path).unwrap();
            let text = text.replace(&old.to_string(), &new.to_string());
            node.write_manifest("nodes.yaml", &serde_json::from_str(&text).unwrap())
                .unwrap();
        }
        for node in &lab.nodes {
            eventually(|| {
                let known = [node.dump("devices").unwrap(), node.dump("routes").unwrap()].concat();
                let text = known.join("\n");
                let fresh = text.contains(&new.to_string()) && !text.contains(&format!("{old}\""));
                (!fresh).then(|| format!("{} knows {text}", node.name()))
            });
        }
        let echo = Echo::tcp(&c.namespace, c.ip(true), 0).unwrap();
        traffic::tcp(&a.namespace, echo.address, 100_000).unwrap();
        let echo = Echo::tcp(&a.namespace, a.ip(true), 0).unwrap();
        traffic::tcp(&c.namespace, echo.address, 100_000).unwrap();
        seen_outside_as(&lab, &a, new);
    }
}
