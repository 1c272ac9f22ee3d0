//! What a lab is to be like.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::Fabric;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    Direct,
    Vxlan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    Dual,
    V4,
    V6,
}

impl Families {
    pub fn v4(self) -> bool {
        self != Self::V6
    }

    pub fn v6(self) -> bool {
        self != Self::V4
    }

    /// `true` for IPv4, `false` for IPv6: those that there are.
    pub fn each(self) -> impl Iterator<Item = bool> {
        [true, false]
            .into_iter()
            .filter(move |v4| if *v4 { self.v4() } else { self.v6() })
    }
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub nodes: usize,
    pub routing: Routing,
    pub families: Families,
    pub fabric: Fabric,
    pub fabric_mtu: u32,
    /// The nodes learn of each other by a folder of manifests each.
    pub manifests: bool,
    /// More keys for the agents' configuration.
    pub config: Value,
    /// More arguments for `millrace agent`.
    pub agent_arguments: Vec<String>,
}

impl Plan {
    pub fn new(routing: Routing, families: Families) -> Self {
        Self {
            nodes: 2,
            routing,
            families,
            fabric: Fabric::Bridge,
            fabric_mtu: 1500,
            manifests: true,
            config: json!({}),
            agent_arguments: Vec::new(),
        }
    }

    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    pub fn fabric(mut self, fabric: Fabric) -> Self {
        self.fabric = fabric;
        self
    }

    /// Adds keys to the agents' configuration.
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    pub fn agent_arguments(mut self, arguments: &[&str]) -> Self {
        self.agent_arguments = arguments.iter().map(ToString::to_string).collect();
        self
    }

    /// The address of a node on the fabric.
    pub fn node_address(&self, node: usize, v4: bool) -> IpAddr {
        let (net, host) = match self.fabric {
            Fabric::Bridge => (0, 11 + node as u16),
            Fabric::Router => (1 + node as u16, 11),
        };
        if v4 {
            Ipv4Addr::new(192, 168, 64 + net as u8, host as u8).into()
        } else {
            Ipv6Addr::new(0xfd77, 0, 0, net, 0, 0, 0, host).into()
        }
    }

    /// Another address of the node, on a device of its own that is no part of the fabric.
    pub fn second_address(&self, node: usize, v4: bool) -> IpAddr {
        if v4 {
            Ipv4Addr::new(192, 168, 128 + node as u8, 1).into()
        } else {
            Ipv6Addr::new(0xfd78, 0, 0, node as u16, 0, 0, 0, 1).into()
        }
    }

    /// The range of a node's pods.
    pub fn pod_cidr(&self, node: usize, v4: bool) -> String {
        if v4 {
            format!("10.77.{}.0/24", node + 1)
        } else {
            format!("fd00:10:77:{}::/64", node + 1)
        }
    }
}
