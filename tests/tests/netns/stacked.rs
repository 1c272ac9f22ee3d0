//! Devices that stand on others: bonds and VLANs. Only virtual machines are sure to have them.

use std::net::{IpAddr, SocketAddr};

use crate::{eventually, needs_root};
use cni_tests::{
    lab::{Families, Lab, Node, Plan, Pod, Routing},
    require_in_vm,
    traffic::{self, Echo, Steady},
};

/// A lab whose first node waits for its devices.
fn prepare(plan: Plan) -> Lab {
    let name = format!(
        "mrlab-stacked-{}-{:?}",
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
        .map(str::to_owned)
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
