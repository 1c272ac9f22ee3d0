//! Everybody to everybody: each way of routing, family, place of the peer and protocol.

use std::net::{IpAddr, SocketAddr};

use crate::needs_root;
use cni_tests::{
    lab::{Drops, Fabric, Families, Lab, Node, Plan, Pod, Routing},
    netns::Namespace,
    traffic::{self, Echo},
};
use serde_json::{Value, json};

/// What failed, so that one row does not hide another.
#[derive(Default)]
struct Rows(Vec<String>);

impl Rows {
    fn note(&mut self, row: &str, result: anyhow::Result<()>) {
        if let Err(error) = result {
            self.0.push(format!("{row}: {error:#}"));
        }
    }

    /// Each protocol from a namespace to an address, where `servers` are in `there`. `seen` is how the servers must
    /// see who asked.
    fn row(&mut self, name: &str, from: &Namespace, there: &Namespace, to: IpAddr, seen: IpAddr) {
        let family = if to.is_ipv4() { "v4" } else { "v6" };
        let tcp = Echo::tcp(there, to, 0).unwrap();
        let udp = Echo::udp(there, to, 0).unwrap();
        let as_seen = |echo: &Echo| {
            let others: Vec<SocketAddr> = echo
                .peers()
                .into_iter()
                .filter(|peer| peer.ip() != seen)
                .collect();
            anyhow::ensure!(others.is_empty(), "seen as {others:?} instead of {seen}");
            Ok(())
        };
        let asked = traffic::tcp(from, tcp.address, 200_000)
            .map(drop)
            .and_then(|()| as_seen(&tcp));
        self.note(&format!("{name} {family} TCP"), asked);
        let asked = traffic::udp(from, udp.address, 900)
            .map(drop)
            .and_then(|()| as_seen(&udp));
        self.note(&format!("{name} {family} UDP"), asked);
        // Larger than any MTU here: fragments there and back.
        let asked = traffic::udp(from, udp.address, 4000).map(drop);
        self.note(&format!("{name} {family} UDP in fragments"), asked);
        self.note(&format!("{name} {family} ping"), traffic::ping(from, to, 56));
        self.note(
            &format!("{name} {family} ping in fragments"),
            traffic::ping(from, to, 3000),
        );
    }
}

struct Pods {
    a: Pod,
    b: Pod,
    c: Pod,
}

fn family(lab: &Lab, pods: &Pods, v4: bool, rows: &mut Rows) {
    let [near, far] = lab.pair();
    let Pods { a, b, c } = pods;
    let (pod_a, pod_b, pod_c) = (&a.namespace, &b.namespace, &c.namespace);
    let ip = |pod: &Pod| pod.ip(v4);
    rows.row("pod to pod, same node", pod_a, pod_b, ip(b), ip(a));
    rows.row("pod to pod, other node", pod_a, pod_c, ip(c), ip(a));
    rows.row("pod to itself", pod_a, pod_a, ip(a), ip(a));
    rows.row("pod to own node", pod_a, &near.namespace, near.address(v4), ip(a));
    rows.row(
        "pod to another address of its node",
        pod_a,
        &near.namespace,
        near.second_address(v4),
        ip(a),
    );
    rows.row("pod to other node", pod_a, &far.namespace, far.address(v4), ip(a));
    rows.row("node to own pod", &near.namespace, pod_a, ip(a), near.address(v4));
    rows.row(
        "node to other node's pod",
        &near.namespace,
        pod_c,
        ip(c),
        near.address(v4),
    );
    rows.row(
        "node to node",
        &near.namespace,
        &far.namespace,
        far.address(v4),
        near.address(v4),
    );
    rows.row(
        "pod to outside",
        pod_a,
        &lab.outside,
        lab.outside_address(v4),
        near.address(v4),
    );
    rows.row(
        "pod to another address of the other node",
        pod_a,
        &far.namespace,
        far.second_address(v4),
        // The other nodes know nothing of it: it is outside.
        near.address(v4),
    );
    if lab.plan.routing == Routing::Direct && lab.plan.fabric == Fabric::Router {
        let outside = lab.outside_address(v4);
        rows.row("outside to pod", &lab.outside, pod_a, ip(a), outside);
    }
    rows.row(
        "node to outside",
        &near.namespace,
        &lab.outside,
        lab.outside_address(v4),
        near.address(v4),
    );
}

fn everybody(plan: Plan) {
    everybody_as(plan, &json!({}));
}

/// With more keys in the pods' network configuration.
fn everybody_as(plan: Plan, attachment: &Value) {
    needs_root!();
    let lab = Lab::start(plan).unwrap();
    everybody_of(&lab, attachment);
}

fn everybody_of(lab: &Lab, attachment: &Value) {
    let families = lab.plan.families;
    let [near, far] = lab.pair();
    let pods = Pods {
        a: near.add_pod_with("a", attachment).unwrap(),
        b: near.add_pod_with("b", attachment).unwrap(),
        c: far.add_pod_with("c", attachment).unwrap(),
    };
    let mut rows = Rows::default();
    for v4 in families.each() {
        family(lab, &pods, v4, &mut rows);
    }
    for pod in [&pods.a, &pods.b, &pods.c] {
        for v4 in [true, false] {
            let has = pod.find(v4).is_some();
            let wants = families.each().any(|family| family == v4);
            assert_eq!(has, wants, "{}", pod.result);
        }
    }
    for node in &lab.nodes {
        let drops = node.drops().unwrap();
        if drops != Drops::new() {
            rows.0.push(format!("{} dropped {drops:?}", node.name()));
        }
    }
    assert!(rows.0.is_empty(), "\n{}", rows.0.join("\n"));
}

#[test]
fn direct_dual() {
    everybody(Plan::new(Routing::Direct, Families::Dual));
}

#[test]
fn direct_v4_only() {
    everybody(Plan::new(Routing::Direct, Families::V4));
}

#[test]
fn direct_v6_only() {
    everybody(Plan::new(Routing::Direct, Families::V6));
}

#[test]
fn direct_through_a_router() {
    everybody(Plan::new(Routing::Direct, Families::Dual).fabric(Fabric::Router));
}

#[test]
fn vxlan_dual() {
    everybody(Plan::new(Routing::Vxlan, Families::Dual));
}

#[test]
fn vxlan_v4_only() {
    everybody(Plan::new(Routing::Vxlan, Families::V4));
}

#[test]
fn vxlan_v6_only() {
    everybody(Plan::new(Routing::Vxlan, Families::V6));
}

#[test]
fn vxlan_through_a_router() {
    everybody(Plan::new(Routing::Vxlan, Families::Dual).fabric(Fabric::Router));
}

/// Plugins and proxies that act in the host's stack may stand behind ours: everything passes it, each connection in both
/// directions. kube-proxy drops what the stack's own connection tracking has seen half of.
fn everybody_through_the_stack(plan: Plan) {
    needs_root!();
    let lab = Lab::start(plan).unwrap();
    for node in &lab.nodes {
        let nft = |arguments: &str| {
            let words = arguments.split_whitespace();
            let output = node.namespace.command("nft").args(words).output().unwrap();
            assert!(output.status.success(), "nft {arguments}: {output:?}");
        };
        nft("add table inet proxy");
        nft("add chain inet proxy forward { type filter hook forward priority 0 ; }");
        nft("add rule inet proxy forward ct state invalid counter drop");
    }
    everybody_of(&lab, &json!({ "viaStack": true }));
}

#[test]
fn direct_dual_through_the_stack() {
    everybody_through_the_stack(Plan::new(Routing::Direct, Families::Dual));
}

/// Without IPv6: fragments as large as the fabric's links, from outside, do not fit into the pod's, and no stack may cut
/// them. Redirection does not ask.
#[test]
fn vxlan_v4_through_the_stack() {
    everybody_through_the_stack(Plan::new(Routing::Vxlan, Families::V4));
}

/// The programs stand as filters, where the kernel has no better place.
#[test]
fn vxlan_dual_with_clsact() {
    everybody(Plan::new(Routing::Vxlan, Families::Dual).agent_arguments(&["--attach", "clsact"]));
}

/// A pod of `node` talks to outside, which sees the pod, and to another address, which sees what is given.
fn outside_sees_the_pod(masquerade: &Value, seen_elsewhere: impl Fn(&Node, &Pod, bool) -> IpAddr) {
    needs_root!();
    let plan = Plan::new(Routing::Direct, Families::Dual)
        .fabric(Fabric::Router)
        .config(json!({ "masquerade": masquerade }));
    let lab = Lab::start(plan).unwrap();
    let [node, far] = lab.pair();
    let a = node.add_pod("a").unwrap();
    let mut rows = Rows::default();
    for v4 in [true, false] {
        let outside = lab.outside_address(v4);
        rows.row("pod to outside", &a.namespace, &lab.outside, outside, a.ip(v4));
        rows.row("outside to pod", &lab.outside, &a.namespace, a.ip(v4), outside);
        let (other, seen) = (far.second_address(v4), seen_elsewhere(node, &a, v4));
        rows.row(
            "pod to another address",
            &a.namespace,
            &far.namespace,
            other,
            seen,
        );
    }
    assert!(rows.0.is_empty(), "\n{}", rows.0.join("\n"));
    assert_eq!(node.drops().unwrap(), Drops::new());
}

/// Destinations that are to see pods' own addresses do, and no others.
#[test]
fn what_is_not_masqueraded_sees_the_pod() {
    let ranges = ["203.0.113.0/24", "2001:db8:113::/64"];
    outside_sees_the_pod(&json!({ "nonMasqueradeCIDRs": ranges }), |node, _, v4| {
        node.address(v4)
    });
}

/// Without any masquerade everybody who has a way back sees pods' own addresses.
#[test]
fn where_masquerade_is_off_everybody_sees_the_pod() {
    outside_sees_the_pod(&json!({ "enabled": false }), |_, pod, v4| pod.ip(v4));
}
