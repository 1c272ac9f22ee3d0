//! The network between the nodes, and the world outside.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
};

use anyhow::{Result, ensure};
use aya::programs::xdp::XdpMode;
use cni_ebpf::abi::Config;

use super::{Lab, Node, Plan};
use crate::{netns::Namespace, object};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fabric {
    /// All nodes on one link.
    Bridge,
    /// Each node on a link of its own, a router between them that knows the pod ranges.
    Router,
}

/// The host outside: a documentation range.
pub(super) fn outside(v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::new(203, 0, 113, 2).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 2).into()
    }
}

pub(super) fn outside_router(v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::new(203, 0, 113, 1).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 1).into()
    }
}

fn prefix(v4: bool) -> u8 {
    if v4 { 24 } else { 64 }
}

/// The router's address on the link of a node.
pub(super) fn router(node: IpAddr) -> IpAddr {
    match node {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            Ipv4Addr::new(a, b, c, 1).into()
        }
        IpAddr::V6(ip) => {
            let mut segments = ip.segments();
            segments[7] = 1;
            Ipv6Addr::from(segments).into()
        }
    }
}

/// `ip address add`, usable at once.
fn address(ip: IpAddr, prefix: u8, device: &str) -> String {
    let nodad = if ip.is_ipv6() { " nodad" } else { "" };
    format!("address add {ip}/{prefix} dev {device}{nodad}\n")
}

pub(super) fn wire(lab: &Lab) -> Result<()> {
    let plan = &lab.plan;
    lab.fabric.set("net/ipv4/ip_forward", "1")?;
    lab.fabric.set("net/ipv6/conf/all/forwarding", "1")?;
    lab.fabric.ip("link add outside type veth peer name tmp0")?;
    lab.fabric
        .ip(&format!("link set tmp0 netns {} name eth0", lab.outside.name()))?;
    let mut router_side = String::from("link set outside up\n");
    let mut outside_side = String::from("link set eth0 up\n");
    for v4 in plan.families.each() {
        router_side += &address(outside_router(v4), prefix(v4), "outside");
        outside_side += &address(outside(v4), prefix(v4), "eth0");
        outside_side += &format!("route add default via {}\n", outside_router(v4));
    }
    lab.fabric.ip(&router_side)?;
    lab.outside.ip(&outside_side)?;
    if plan.fabric == Fabric::Bridge {
        bridge(lab)?;
    }
    lab.nodes.iter().try_for_each(|node| join(lab, node))
}

fn bridge(lab: &Lab) -> Result<()> {
    let mut lines = format!(
        "link add bridge0 mtu {} type bridge mcast_snooping 0\n",
        lab.plan.fabric_mtu
    );
    for v4 in lab.plan.families.each() {
        lines += &address(router(lab.plan.node_address(0, v4)), prefix(v4), "bridge0");
    }
    lab.fabric.ip(&(lines + "link set bridge0 up\n"))
}

impl Lab {
    /// Has the fabric's ports take what nodes' XDP programs send back: the kernel does so only on a pair of virtual devices whose
    /// other end has a program, too. This one passes everything, until what is returned is dropped.
    pub fn take_frames_back(&self) -> Result<aya::Ebpf> {
        let idle = Config {
            services: 0,
            ..Config::DEFAULT
        };
        let mut ebpf = object::open(&object::bytes()?, &idle)?;
        let program = object::load_xdp(&mut ebpf, object::XDP_PROGRAM)?;
        self.fabric.run(|| -> Result<()> {
            for node in &self.nodes {
                program.attach(&node.name(), XdpMode::Driver)?;
            }
            Ok(())
        })?;
        Ok(ebpf)
    }

    /// Exchanges the virtual cable of a node on the bridge for two devices of the calling thread's network that are connected
    /// with each other. They go back where they came from when their namespaces are removed.
    pub fn recable(&self, node: &Node, [near, far]: &[String; 2]) -> Result<()> {
        let port = node.name();
        ensure!(
            self.plan.fabric == Fabric::Bridge,
            "only a bridge's cable is exchanged"
        );
        self.fabric.ip(&format!("link delete {port}"))?;
        let ends = [
            (near, &node.namespace, "eth0"),
            (far, &self.fabric, port.as_str()),
        ];
        for (device, namespace, name) in ends {
            let moved = Command::new("ip")
                .args([
                    "link",
                    "set",
                    device,
                    "down",
                    "netns",
                    namespace.name(),
                    "name",
                    name,
                ])
                .output()?;
            let complaint = String::from_utf8_lossy(&moved.stderr);
            ensure!(moved.status.success(), "move {device}: {}", complaint.trim());
        }
        self.fabric.ip(&format!("link set {port} up master bridge0"))?;
        node.live_on("eth0")
    }

    /// Gives a host that is no node of the lab a device `eth0` by which it reaches the fabric, and the fabric it.
    pub fn admit(&self, host: &Namespace, number: u8) -> Result<()> {
        let port = format!("guest{number}");
        self.fabric
            .ip(&format!("link add {port} type veth peer name tmp0"))?;
        self.fabric
            .ip(&format!("link set tmp0 netns {} name eth0", host.name()))?;
        self.fabric.ip(&format!(
            "address add 198.18.{number}.1/24 dev {port}\nlink set {port} up"
        ))?;
        host.ip(&format!(
            "address add 198.18.{number}.2/24 dev eth0\nlink set eth0 up\nroute add default via 198.18.{number}.1"
        ))
    }
}

/// Gives a node its device, its addresses and its way out.
fn join(lab: &Lab, node: &Node) -> Result<()> {
    let Plan {
        fabric,
        fabric_mtu: mtu,
        families,
        ..
    } = &lab.plan;
    let port = format!("node{}", node.number);
    lab.fabric.ip(&format!(
        "link add {port} mtu {mtu} type veth peer name tmp0 mtu {mtu}"
    ))?;
    lab.fabric.ip(&format!(
        "link set tmp0 netns {} name eth0",
        node.namespace.name()
    ))?;
    let mut there = format!("link set {port} up\n");
    if *fabric == Fabric::Bridge {
        there += &format!("link set {port} master bridge0\n");
    }
    let mut here = String::from("link add other0 type bridge\nlink set other0 up\n");
    for v4 in families.each() {
        let ip = node.address(v4);
        here += &address(node.second_address(v4), if v4 { 32 } else { 128 }, "other0");
        if *fabric == Fabric::Router {
            there += &address(router(ip), prefix(v4), &port);
            there += &format!("route add {} via {ip}\n", lab.plan.pod_cidr(node.number, v4));
        }
        there += &format!("route add {} via {ip}\n", node.second_address(v4));
    }
    lab.fabric.ip(&there)?;
    node.namespace.ip(&here)?;
    node.live_on("eth0")
}

impl Node {
    /// Gives a device the node's addresses and its way out, and raises it.
    pub fn live_on(&self, device: &str) -> Result<()> {
        let mut lines = format!("link set {device} up\n");
        for v4 in self.families.each() {
            let ip = self.address(v4);
            lines += &address(ip, prefix(v4), device);
            lines += &format!("route replace default via {} dev {device}\n", router(ip));
        }
        self.namespace.ip(&lines)
    }
}
