//! What Services depend on, beside themselves: this node.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;

use super::super::Topology;
use crate::{
    config::{Algorithm, Families, Mode, NodePortAddresses},
    model::Device,
    state::State,
};

/// If one of these changes, every Service may; for the addresses of other nodes, those that [name one](Place::nodes_alone).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub node: String,
    pub zone: Option<String>,
    pub families: Families,
    /// Where NodePorts answer.
    pub node_ports: BTreeSet<IpAddr>,
    /// Everything that this node is reached by.
    pub own: BTreeSet<IpAddr>,
    /// The addresses of all nodes.
    pub nodes: BTreeSet<IpAddr>,
    /// The pods' ranges of all nodes, where an external IP could be in one.
    pub pod_ranges: Vec<IpNetwork>,
    /// Whom this node resolves names by, likewise.
    pub resolvers: BTreeSet<IpAddr>,
    pub service_ranges: Vec<IpNetwork>,
    /// Addresses that Services claim by themselves are served.
    pub external_ips: bool,
    pub masquerade_all: bool,
    /// By which endpoints are chosen for connections from outside, unless a Service says otherwise.
    pub algorithm: Algorithm,
    /// Of Maglev tables; 0: by the number of endpoints.
    pub maglev_size: u32,
    /// By whom clients from outside are answered, unless a Service says otherwise.
    pub mode: Mode,
    /// Other nodes are reached through a tunnel.
    pub tunnelled: bool,
}

impl Place {
    pub fn new(topology: &Topology<'_>, state: &State, resolvers: BTreeSet<IpAddr>) -> Self {
        let config = &topology.config.services;
        let ranges = topology.others().flat_map(|other| &other.node.pod_cidrs);
        let ranges = ranges.chain(&topology.pod_cidrs);
        let pod_ranges = if config.external_ips {
            ranges.copied().collect()
        } else {
            Vec::new()
        };
        let others = topology.others().flat_map(|other| &other.node.addresses);
        let mut node_ports: BTreeSet<IpAddr> = match &config.node_port_addresses {
            NodePortAddresses::Primary => [true, false]
                .iter()
                .filter_map(|v4| topology.node_address(*v4))
                .collect(),
            NodePortAddresses::Ranges(ranges) => all_addresses(state)
                .filter(|ip| ranges.iter().any(|range| range.contains(*ip)))
                .collect(),
        };
        if config.localhost_node_ports {
            node_ports.extend([
                IpAddr::from([127, 0, 0, 1]),
                IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1u16]),
            ]);
        } else {
            node_ports.retain(|ip| !ip.is_loopback());
        }
        node_ports.retain(|ip| topology.config.families.has(*ip));
        Self {
            node: topology.config.node_name.clone(),
            zone: topology.own.and_then(|node| node.zone.clone()),
            families: topology.config.families,
            node_ports,
            own: topology.own_addresses.clone(),
            nodes: others.chain(&topology.own_addresses).copied().collect(),
            pod_ranges,
            resolvers,
            service_ranges: topology.service_ranges.clone(),
            external_ips: config.external_ips,
            masquerade_all: config.masquerade_all,
            algorithm: config.algorithm,
            maglev_size: config.maglev_table_size,
            mode: config.mode,
            tunnelled: topology.tunnelled(),
        }
    }

    /// The addresses of nodes that came or went since, if that is all that is different.
    pub fn nodes_alone(&self, before: &Self) -> Option<BTreeSet<IpAddr>> {
        let nodes = &self.nodes ^ &before.nodes;
        let before = Self {
            nodes: self.nodes.clone(),
            ..before.clone()
        };
        (*self == before).then_some(nodes)
    }

    pub(super) fn is_service_address(&self, ip: IpAddr) -> bool {
        self.service_ranges.iter().any(|range| range.contains(ip))
    }
}

fn all_addresses(state: &State) -> impl Iterator<Item = IpAddr> {
    state.devices.iter().flat_map(Device::global_addresses)
}
