//! What follows from the configuration, the Node objects and the devices: which node this is, what is its own, and how
//! the others are reached.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;

use super::device;
use crate::{
    config::{Config, Mode, NodePortAddresses, Proxy, Routing, Xdp},
    model::{Device, Node},
    state::{Nodes, State},
};

/// Bytes that the tunnel adds: Ethernet 14, VXLAN 8, UDP 8, and the outer IP header.
const OVERHEAD_V4: u32 = 50;
const OVERHEAD_V6: u32 = 70;
/// Where no device says anything.
const ETHERNET_MTU: u32 = 1500;

/// The node's place in the cluster.
#[derive(Debug)]
pub struct Topology<'a> {
    pub config: &'a Config,
    pub own: Option<&'a Node>,
    nodes: &'a Nodes,
    /// Those that this node has an address of: IPv4, IPv6.
    outer_families: [bool; 2],
    /// The devices that face other machines.
    pub devices: Vec<&'a Device>,
    /// The tunnel's device, in tunnel mode, once it exists.
    pub tunnel: Option<&'a Device>,
    /// Every address of this host that another machine may use.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Ranges of this node's pods, of the families that are served.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Ranges of Service addresses that another proxy serves.
    pub via_stack: Vec<IpNetwork>,
    /// Those that are served here.
    pub service_ranges: Vec<IpNetwork>,
    /// What a pod's packet may be long.
    pub mtu: u32,
    problems: Vec<String>,
}

/// Another node.
#[derive(Debug)]
pub struct Other<'a> {
    pub node: &'a Node,
    /// The outer destination of what is sent to it through the tunnel.
    pub tunnel_address: Option<IpAddr>,
}

impl<'a> Topology<'a> {
    /// Costs no look at the other nodes, of which there may be thousands.
    pub fn new(config: &'a Config, state: &'a State) -> Self {
        let mut problems = Vec::new();
        let own = state.nodes.get(&config.node_name);
        let devices = device::of_node(config, own, &state.devices, &mut problems);
        // Nobody reaches a node's loopback from elsewhere, whatever scope the address was given.
        let own_addresses: BTreeSet<IpAddr> = state
            .devices
            .iter()
            .flat_map(Device::global_addresses)
            .filter(|ip| !ip.is_loopback())
            .collect();
        let pod_cidrs = pod_cidrs(config, own);
        let mut topology = Self {
            config,
            own,
            nodes: &state.nodes,
            outer_families: [false; 2],
            devices,
            tunnel: None,
            own_addresses,
            pod_cidrs,
            via_stack: via_stack(config, state),
            service_ranges: service_ranges(config, state),
            mtu: 0,
            problems,
        };
        if config.routing == Routing::Vxlan {
            topology.tunnel = state.device(&config.vxlan.device);
        }
        topology.outer_families = [true, false].map(|v4| topology.node_address(v4).is_some());
        topology.mtu = topology.pod_mtu();
        topology
    }

    /// This node's address of a family: the first that its Node object names and a device has, then any of a node's
    /// device.
    pub fn node_address(&self, v4: bool) -> Option<IpAddr> {
        let named = self
            .own
            .into_iter()
            .flat_map(|node| node.addresses.iter().copied());
        let found = self
            .devices
            .iter()
            .flat_map(|device| device::source_addresses(device));
        named
            .filter(|ip| self.own_addresses.contains(ip))
            .chain(found)
            .find(|ip| ip.is_ipv4() == v4)
    }

    /// The device that bears this node's address; what the other nodes hear from.
    pub fn fabric(&self) -> Option<&'a Device> {
        let address = self.node_address(true).or_else(|| self.node_address(false));
        let bears =
            |device: &&&Device| address.is_some_and(|ip| device.global_addresses().any(|own| own == ip));
        self.devices
            .iter()
            .find(bears)
            .or_else(|| self.devices.iter().find(|device| device.default_route))
            .or_else(|| self.devices.first())
            .copied()
    }

    /// The node's device on whose link `ip` is.
    pub fn link_to(&self, ip: IpAddr) -> Option<&'a Device> {
        self.devices.iter().find(|device| device.reaches(ip)).copied()
    }

    /// The other nodes, in the order of their names.
    pub fn others(&self) -> impl Iterator<Item = Other<'a>> {
        self.nodes.values().filter_map(|node| self.reached(node))
    }

    /// Another node by its name.
    pub fn other(&self, name: &str) -> Option<Other<'a>> {
        self.reached(self.nodes.get(name)?)
    }

    /// Whether a node has this address, or a range of pods that is just this address.
    pub fn is_of_a_node(&self, ip: IpAddr) -> bool {
        self.nodes.have(ip) || self.own_addresses.contains(&ip)
    }

    pub fn tunnelled(&self) -> bool {
        self.config.routing == Routing::Vxlan
    }

    /// `None`: it is this one.
    fn reached(&self, node: &'a Node) -> Option<Other<'a>> {
        if node.name == self.config.node_name || self.own_address_of(node).is_some() {
            return None;
        }
        // IPv4 where both have it: its header is the shorter one.
        let [v4, v6] = node.first_addresses();
        let [by_v4, by_v6] = self.outer_families;
        Some(Other {
            node,
            tunnel_address: v4.filter(|_| by_v4).or(v6.filter(|_| by_v6)),
        })
    }

    /// The address that would lead to `node`, if it leads to this one.
    fn own_address_of(&self, node: &Node) -> Option<IpAddr> {
        let mut firsts = node.first_addresses().into_iter().flatten();
        firsts.find(|ip| self.own_addresses.contains(ip))
    }

    fn pod_mtu(&self) -> u32 {
        if self.config.mtu != 0 {
            return self.config.mtu;
        }
        let link = self.fabric().map_or(ETHERNET_MTU, |device| device.mtu);
        if !self.tunnelled() {
            return link;
        }
        let [by_v4, by_v6] = self.outer_families;
        let outer_v6 = !by_v4 || by_v6 && self.nodes.any_only_v6();
        link.saturating_sub(if outer_v6 { OVERHEAD_V6 } else { OVERHEAD_V4 })
    }

    /// What is wrong with it.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.problems.clone();
        self.judge_nodes(&mut problems);
        self.judge_own(&mut problems);
        problems
    }

    fn judge_nodes(&self, problems: &mut Vec<String>) {
        for node in self
            .nodes
            .values()
            .filter(|node| node.name != self.config.node_name)
        {
            if let Some(own) = self.own_address_of(node) {
                problems.push(format!(
                    "Node {}: status.addresses has {own}, which is this node's; its pods have no routes. Delete it if this \
                     node bore that name before",
                    node.name
                ));
            }
        }
        for other in self
            .others()
            .filter(|other| self.tunnelled() && other.tunnel_address.is_none())
        {
            problems.push(format!(
                "Node {}: status.addresses has no InternalIP of a family that this node has; its pods cannot be reached",
                other.node.name
            ));
        }
    }

    fn judge_own(&self, problems: &mut Vec<String>) {
        if self.pod_cidrs.is_empty() {
            problems.push(if self.own.is_none() && self.config.pod_cidrs.is_empty() {
                format!(
                    "there is no Node object {} and no podCIDRs setting; pods cannot get addresses. Check nodeName, or set podCIDRs",
                    self.config.node_name
                )
            } else {
                format!(
                    "Node {}: spec.podCIDRs has no range of a family that is served; add one, or set podCIDRs",
                    self.config.node_name
                )
            });
        }
        if self.tunnelled() && self.config.services.xdp != Xdp::Off {
            problems.push(
                "services.xdp: with routing vxlan it would have nothing to do and is off; set routing to direct, or take it out"
                    .to_owned(),
            );
        }
        self.judge_node_ports(problems);
        let v6 = || self.pod_cidrs.iter().any(IpNetwork::is_ipv6);
        if self.config.services.mode == Mode::Dsr && v6() && told_by_rest(&self.pod_cidrs).is_none() {
            problems.push(
                "services.mode: other nodes name a pod by the last eight bytes of its address, and no IPv6 range of this node's \
                 pods is /64 or narrower; their clients come with a node's address. Give the node such a range"
                    .to_owned(),
            );
        }
        if self.devices.is_empty() {
            problems.push("no device of this node faces other machines; name one in devices".to_owned());
        }
        let smallest = if self.config.families.v6() { 1280 } else { 576 };
        if self.mtu < smallest {
            problems.push(format!(
                "pods have an MTU of {}, less than the {smallest} that must pass; raise the MTU of the node's devices",
                self.mtu
            ));
        }
    }

    /// Where no address is one of those that were named, NodePorts answer nowhere.
    fn judge_node_ports(&self, problems: &mut Vec<String>) {
        let services = &self.config.services;
        let NodePortAddresses::Ranges(ranges) = &services.node_port_addresses else {
            return;
        };
        let named =
            |ip: &IpAddr| self.config.families.has(*ip) && ranges.iter().any(|range| range.contains(*ip));
        let answers = services.localhost_node_ports || self.own_addresses.iter().any(named);
        if services.proxy == Proxy::Millrace && !answers {
            problems.push(format!(
                "services.nodePortAddresses: none of this node's addresses is in {}; no NodePort answers here. Correct the ranges",
                services.node_port_addresses
            ));
        }
    }
}

/// The range of a node's pods of IPv6 that its other nodes tell apart by the last eight bytes of their address: of ranges
/// that the first eight tell, the lowest, so that all choose the same.
pub(super) fn told_by_rest(pod_cidrs: &[IpNetwork]) -> Option<&IpNetwork> {
    let told = |range: &&IpNetwork| range.is_ipv6() && range.prefix() >= 64;
    pod_cidrs.iter().filter(told).min()
}

fn via_stack(config: &Config, state: &State) -> Vec<IpNetwork> {
    let mut ranges = config.services.via_stack_cidrs.clone();
    if config.services.proxy == Proxy::Stack {
        ranges.extend(all_service_ranges(config, state));
    }
    ranges
}

fn service_ranges(config: &Config, state: &State) -> Vec<IpNetwork> {
    let ranges = all_service_ranges(config, state);
    ranges
        .filter(|_| config.services.proxy == Proxy::Millrace)
        .collect()
}

fn all_service_ranges<'a>(config: &'a Config, state: &'a State) -> impl Iterator<Item = IpNetwork> + use<'a> {
    let named = state.service_cidrs.values().flat_map(|object| &object.ranges);
    config.services.cidrs.iter().chain(named).copied()
}

fn pod_cidrs(config: &Config, own: Option<&Node>) -> Vec<IpNetwork> {
    let given = &config.pod_cidrs;
    let ranges = if given.is_empty() {
        own.map(|node| &node.pod_cidrs).unwrap_or(given)
    } else {
        given
    };
    ranges
        .iter()
        .copied()
        .filter(|range| config.families.has(range.ip()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_nodes_know_a_nodes_pods_by_the_same_range() {
        let ranges =
            |texts: &[&str]| -> Vec<IpNetwork> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        for (given, told) in [
            (&["10.1.0.0/24"][..], None),
            (&["10.1.0.0/24", "fd00:1::/56"], None),
            (
                &["fd00:2::/64", "fd00:1::/56", "fd00:1:0:2::/80"],
                Some("fd00:1:0:2::/80"),
            ),
            (&["fd00:1:0:2::/80", "fd00:2::/64"], Some("fd00:1:0:2::/80")),
        ] {
            let found = ranges(given);
            let found = told_by_rest(&found).map(ToString::to_string);
            assert_eq!(found.as_deref(), told, "{given:?}");
        }
    }
}
