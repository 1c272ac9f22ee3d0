//! The way between nodes is another one, by a changed setting and a new agent.

use cni_ebpf::abi::route_action;
use cni_tests::{
    lab::{Families, Lab, Node, Plan, Pod, Routing, Signal},
    traffic::{self, Echo, Steady, Tally},
};

use crate::{needs_root, sizes};

/// What must not notice: connections on the node and to the outside, and established ones between the nodes, which
/// survive packets that are lost while one node has changed and the other has not.
fn flows(lab: &Lab, from: &Pod, near: &Pod, far: &Pod) -> (Vec<Echo>, Vec<(String, Steady)>) {
    let (mut servers, mut flows) = (Vec::new(), Vec::new());
    for v4 in [true, false] {
        for (name, there, ip) in [
            ("same node", &near.namespace, near.ip(v4)),
            ("outside", &lab.outside, lab.outside_address(v4)),
            ("other node", &far.namespace, far.ip(v4)),
        ] {
            let (tcp, udp) = (Echo::tcp(there, ip, 0).unwrap(), Echo::udp(there, ip, 0).unwrap());
            let from = &from.namespace;
            flows.push((
                format!("TCP, {name}, {ip}"),
                Steady::tcp(from, tcp.address).unwrap(),
            ));
            if name != "other node" {
                flows.push((
                    format!("UDP, {name}, {ip}"),
                    Steady::udp(from, udp.address).unwrap(),
                ));
                let fresh = Steady::connections(from, tcp.address).unwrap();
                flows.push((format!("new connections, {name}, {ip}"), fresh));
            }
            servers.extend([tcp, udp]);
        }
    }
    (servers, flows)
}

/// Each direction and protocol between the nodes, newly begun.
fn everything_passes(lab: &Lab, a: &Pod, c: &Pod) {
    for v4 in [true, false] {
        for (from, to) in [(a, c), (c, a)] {
            let (tcp, udp) = (
                Echo::tcp(&to.namespace, to.ip(v4), 0).unwrap(),
                Echo::udp(&to.namespace, to.ip(v4), 0).unwrap(),
            );
            traffic::tcp(&from.namespace, tcp.address, 200_000).unwrap();
            traffic::udp(&from.namespace, udp.address, 900).unwrap();
            traffic::udp(&from.namespace, udp.address, 4000).unwrap();
            traffic::ping(&from.namespace, to.ip(v4), 56).unwrap();
        }
        traffic::ping(&a.namespace, lab.nodes[1].address(v4), 56).unwrap();
        traffic::ping(&lab.nodes[0].namespace, c.ip(v4), 56).unwrap();
    }
}

/// Pods that began without a tunnel send more than it carries. To another node's address the stack has a way past the
/// tunnel and says nothing; they learn it all the same.
fn nodes_are_reached_by_pods_that_are_older_than_the_tunnel(lab: &Lab, pods: [&Pod; 2]) {
    let node = &lab.nodes[1];
    for v4 in [true, false] {
        let (tcp, udp) = (
            Echo::tcp(&node.namespace, node.address(v4), 0).unwrap(),
            Echo::udp(&node.namespace, node.address(v4), 0).unwrap(),
        );
        let [bulk, datagrams] = pods;
        traffic::tcp(&bulk.namespace, tcp.address, 300_000).unwrap();
        sizes::learns(&datagrams.namespace, udp.address, 1450, 1450);
    }
}

/// Only what belongs to this way is there.
fn holds_nothing_of_the_other(node: &Node, routing: Routing) {
    let tunnelled = routing == Routing::Vxlan;
    let device = node
        .namespace
        .devices()
        .unwrap()
        .contains(&"millrace.vx".to_owned());
    let links = node.links().unwrap().iter().any(|link| link.contains("millrace"));
    let routes = node.dump("routes").unwrap().join("\n");
    let ways = routes.contains(&format!("\"action\":{},", route_action::TUNNEL));
    assert_eq!(
        (device, links, ways),
        (tunnelled, tunnelled, tunnelled),
        "{routes}"
    );
    for family in ["-4", "-6"] {
        let routes = node
            .namespace
            .list(&format!("{family} route show proto 77"))
            .unwrap();
        let through = routes.iter().any(|route| route["dev"] == "millrace.vx");
        assert_eq!(through, tunnelled, "{routes:?}");
    }
}

#[test]
fn routing_changes_there_and_back_under_traffic() {
    needs_root!();
    let lab = Lab::start(Plan::new(Routing::Direct, Families::Dual)).unwrap();
    let [near, far] = lab.pair();
    let (a, b) = (near.add_pod("a").unwrap(), near.add_pod("b").unwrap());
    let c = far.add_pod("c").unwrap();
    let (_servers, flows) = flows(&lab, &a, &b, &c);
    flows.iter().for_each(|(_, flow)| flow.wait_for(20));
    for routing in [Routing::Vxlan, Routing::Direct] {
        let plan = Plan {
            routing,
            ..lab.plan.clone()
        };
        for node in &lab.nodes {
            node.write_config(&plan).unwrap();
            node.end_agent(Signal::SIGTERM).unwrap();
            node.start_agent().unwrap();
        }
        lab.nodes.iter().for_each(|node| node.wait_until_ready().unwrap());
        flows.iter().for_each(|(_, flow)| flow.wait_for(20));
        everything_passes(&lab, &a, &c);
        if routing == Routing::Vxlan {
            nodes_are_reached_by_pods_that_are_older_than_the_tunnel(&lab, [&a, &b]);
        }
        for node in &lab.nodes {
            crate::eventually(|| {
                let links = node.links().unwrap();
                let stale = routing == Routing::Direct && links.iter().any(|link| link.contains("millrace"));
                stale.then(|| format!("{links:?}"))
            });
            holds_nothing_of_the_other(node, routing);
        }
    }
    let lost: Vec<(String, Tally)> = flows
        .into_iter()
        .map(|(name, flow)| (name, flow.stop()))
        .filter(|(_, tally)| !tally.failures.is_empty())
        .collect();
    let dropped = [near, far].map(|node| node.drops().unwrap());
    assert!(lost.is_empty(), "{dropped:?} {lost:#?}");
}
