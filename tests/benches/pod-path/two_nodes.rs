//! Contenders across two nodes. All nodes stand on fabrics of the same making: two veth pairs and a bridge.

use anyhow::{Context, Result};
use cni_tests::bench::Report;
use cni_tests::bench::load::{Cpus, Ends, Load};
use cni_tests::bench::series::Samples;
use cni_tests::lab::{Families, Lab, Plan, Routing};
use cni_tests::netns::Namespace;

use crate::contender::{Contender, DIRECT, Keeper, ROUTING, VXLAN, VXLAN_BRIDGE, namespace};
use crate::traffic;

pub(crate) const PLACE: &str = "two nodes";
const GOAL: f64 = 1.0;

pub(crate) fn contenders() -> Result<Vec<Contender>> {
    Ok(vec![
        millrace(DIRECT, Routing::Direct).context(DIRECT)?,
        routing().context(ROUTING)?,
        millrace(VXLAN, Routing::Vxlan).context(VXLAN)?,
        vxlan_bridge().context(VXLAN_BRIDGE)?,
    ])
}

fn millrace(name: &'static str, routing: Routing) -> Result<Contender> {
    let lab = Lab::start(Plan::new(routing, Families::V4))?;
    let client = lab.nodes[0].add_pod("client")?;
    let server = lab.nodes[1].add_pod("server")?;
    Contender::pods(name, lab, client, server)
}

/// Nodes and fabric as ours, without agents.
fn nodes() -> Result<Lab> {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let plan = Plan::new(Routing::Direct, Families::V4);
    Lab::prepare(plan, &format!("mrlab-{}-peer{number}", std::process::id()))
}

/// A pod with one end of a veth pair whose other end is `pod0` on its node.
fn pod(node: &Namespace, what: &str, mtu: u32) -> Result<Namespace> {
    let pod = namespace(what)?;
    node.ip(&format!(
        "link add pod0 mtu {mtu} type veth peer name tmp0 mtu {mtu}"
    ))?;
    node.ip(&format!("link set tmp0 netns {} name eth0", pod.name()))?;
    pod.ip("link set eth0 up")?;
    node.ip("link set pod0 up")?;
    Ok(pod)
}

/// Each pod routed on its device, the other node's pods by way of that node.
fn routing() -> Result<Contender> {
    let lab = nodes()?;
    let mut pods = Vec::new();
    for (number, what) in [(0, "routing-client"), (1, "routing-server")] {
        let node = &lab.nodes[number].namespace;
        let other = 1 - number;
        let pod = pod(node, what, 1500)?;
        node.set("net/ipv4/ip_forward", "1")?;
        node.ip(&format!(
            "address add 169.254.1.1/32 dev pod0\n\
             route add 10.77.{}.2/32 dev pod0\n\
             route add {} via {}",
            number + 1,
            lab.plan.pod_cidr(other, true),
            lab.plan.node_address(other, true)
        ))?;
        pod.ip(&format!(
            "address add 10.77.{}.2/32 dev eth0\n\
             route add 169.254.1.1 dev eth0 scope link\n\
             route add default via 169.254.1.1",
            number + 1
        ))?;
        pods.push(pod);
    }
    contender(ROUTING, lab, pods, [10, 77, 2, 2])
}

/// A bridge on each node with the pod and a VXLAN device that leads to the other node.
fn vxlan_bridge() -> Result<Contender> {
    let lab = nodes()?;
    let mut pods = Vec::new();
    for (number, what) in [(0, "vxlan-client"), (1, "vxlan-server")] {
        let node = &lab.nodes[number].namespace;
        let pod = pod(node, what, 1450)?;
        node.ip(&format!(
            "link add br0 mtu 1450 type bridge mcast_snooping 0\n\
             link add vx0 mtu 1450 type vxlan id 42 dstport 4789 local {} remote {} dev eth0\n\
             link set vx0 master br0\n\
             link set pod0 master br0\n\
             link set br0 up\n\
             link set vx0 up",
            lab.plan.node_address(number, true),
            lab.plan.node_address(1 - number, true)
        ))?;
        pod.ip(&format!("address add 10.97.0.{}/24 dev eth0", number + 1))?;
        pods.push(pod);
    }
    contender(VXLAN_BRIDGE, lab, pods, [10, 97, 0, 2])
}

fn contender(name: &'static str, lab: Lab, pods: Vec<Namespace>, ip: [u8; 4]) -> Result<Contender> {
    let mut pods = pods.into_iter();
    let ends = Ends {
        client: pods.next().context("a client")?,
        server: pods.next().context("a server")?,
        ip: ip.into(),
    };
    Ok(Contender {
        name,
        ends,
        keeper: Keeper::Lab(Box::new(lab), Vec::new()),
    })
}

pub(crate) fn ratios(report: &mut Report, samples: &Samples) {
    for (of, to) in [(DIRECT, ROUTING), (VXLAN, VXLAN_BRIDGE)] {
        for cpus in Cpus::possible() {
            for load in Load::ALL {
                let metric = traffic::metric(PLACE, load, *cpus);
                let value = samples.ratio(of, to, &metric);
                report.ratio(&metric, of, to, value, Some(GOAL));
            }
        }
    }
}
