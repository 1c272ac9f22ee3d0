//! Settings that the cluster gives its nodes.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::Labels;
use crate::config::{Algorithm, Mode, NodePortAddresses, Routing};

/// Settings for all nodes, and others for some.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSettings {
    pub name: String,
    pub settings: Settings,
    /// The first entry whose labels a node has counts for it.
    pub nodes: Vec<NodeSettings>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSettings {
    /// Labels that a node must have, all of them.
    pub selector: BTreeMap<String, String>,
    pub settings: Settings,
}

/// What is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub routing: Option<Routing>,
    pub mtu: Option<u32>,
    pub masquerade: Option<bool>,
    pub non_masquerade_cidrs: Option<Vec<IpNetwork>>,
    #[serde(default)]
    pub services: ServiceSettings,
}

/// How Services are served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSettings {
    pub cidrs: Option<Vec<IpNetwork>>,
    pub via_stack_cidrs: Option<Vec<IpNetwork>>,
    pub node_port_addresses: Option<NodePortAddresses>,
    pub localhost_node_ports: Option<bool>,
    pub external_ips: Option<bool>,
    pub masquerade_all: Option<bool>,
    pub algorithm: Option<Algorithm>,
    pub maglev_table_size: Option<u32>,
    pub mode: Option<Mode>,
}

impl ClusterSettings {
    /// What counts for a node with these labels, the weaker first.
    pub fn of_node(&self, labels: &Labels) -> impl Iterator<Item = &Settings> {
        let matches = |entry: &&NodeSettings| {
            entry
                .selector
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value.as_str()))
        };
        let special = self.nodes.iter().find(matches).map(|entry| &entry.settings);
        std::iter::once(&self.settings).chain(special)
    }
}
