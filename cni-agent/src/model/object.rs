//! Objects of the cluster.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::Protocol;

pub type Labels = BTreeMap<String, String>;

/// A node of the cluster, this one included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    /// Internal addresses before external ones, in the object's order.
    pub addresses: Vec<IpAddr>,
    pub pod_cidrs: Vec<IpNetwork>,
    pub zone: Option<String>,
    pub labels: Labels,
    /// It is being deleted, or is about to be.
    #[serde(default)]
    pub leaving: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    pub name: String,
    pub labels: Labels,
}

/// Namespace and name of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamespacedName {
    pub namespace: String,
    pub name: String,
}

pub type PodName = NamespacedName;

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod anywhere in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub name: PodName,
    pub uid: String,
    /// Empty until it runs.
    pub addresses: Vec<IpAddr>,
    /// Empty until it is scheduled.
    pub node: String,
    pub labels: Labels,
    pub host_network: bool,
    /// Addresses that an annotation asks for.
    pub requested_addresses: Vec<IpAddr>,
    /// It has ended: its addresses are nobody's, though the object is still there.
    pub finished: bool,
    pub host_ports: Vec<HostPort>,
}

/// A port of the node that leads into a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// `None`: every address of the node.
    pub address: Option<IpAddr>,
    pub protocol: Protocol,
    pub port: u16,
    pub container_port: u16,
}

/// A range of Service addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCidr {
    pub name: String,
    pub ranges: Vec<IpNetwork>,
}
