//! Objects of the cluster.

use std::{fmt, net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Labels, Protocol};

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

impl Node {
    /// The address of each family that leads to it: IPv4, IPv6.
    pub fn first_addresses(&self) -> [Option<IpAddr>; 2] {
        [true, false].map(|v4| self.addresses.iter().copied().find(|ip| ip.is_ipv4() == v4))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    pub name: String,
    pub labels: Labels,
}

/// Namespace and name of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamespacedName {
    /// Thousands of objects are in the same.
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    pub namespace: Arc<str>,
    pub name: String,
}

fn as_text<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

fn from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    String::deserialize(deserializer).map(Arc::from)
}

pub type PodName = NamespacedName;

impl NamespacedName {
    /// Whether somebody asks for it. A name without a namespace is of any, and no name is all.
    pub(crate) fn is_wanted(&self, wanted: &str) -> bool {
        wanted.is_empty() || self.name == wanted || self.to_string() == wanted
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod anywhere in the cluster. There may be tens of thousands: what is kept of each is small.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub name: PodName,
    pub uid: String,
    /// Empty until it runs.
    pub addresses: Box<[IpAddr]>,
    /// Empty until it is scheduled.
    pub node: Arc<str>,
    pub labels: Labels,
    pub host_network: bool,
    /// Addresses that an annotation asks for.
    pub requested_addresses: Box<[IpAddr]>,
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

impl Pod {
    /// Whether its addresses are its own: on its host's network it has the node's, and once it has ended none.
    pub fn is_peer(&self) -> bool {
        !self.host_network && !self.finished
    }
}

/// A range of Service addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCidr {
    pub name: String,
    pub ranges: Vec<IpNetwork>,
}
