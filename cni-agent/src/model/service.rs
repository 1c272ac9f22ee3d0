//! Services and where their endpoints are. There may be a hundred thousand endpoints: what is kept of each is small.

use std::{fmt, net::IpAddr, sync::Arc, time::SystemTime};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::NamespacedName;
use crate::config::{Algorithm, Mode};

/// A transport that Services have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// As objects write it; an empty one is TCP.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "" | "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    /// In the IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.number() == number)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// Which endpoints may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    /// Those on the node that has the packet.
    Local,
}

/// Why a Service is not served here, though it exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unserved {
    /// Only a name.
    ExternalName,
    /// Without an address of its own.
    Headless,
    /// Labelled `service.kubernetes.io/headless`.
    HeadlessLabel,
    /// Labelled `service.kubernetes.io/service-proxy-name`.
    OtherProxy(String),
}

impl fmt::Display for Unserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ExternalName => f.write_str("ExternalName"),
            Self::Headless => f.write_str("headless"),
            Self::HeadlessLabel => f.write_str("labelled headless"),
            Self::OtherProxy(name) => write!(f, "served by {name}"),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// All who know the Service share it.
    pub name: Arc<NamespacedName>,
    /// For what is said of it; empty where there is no API server.
    pub uid: Box<str>,
    /// Seconds since 1970; 0: nobody says, as in a manifest.
    pub created: i64,
    /// With this everything else is empty.
    pub unserved: Option<Unserved>,
    pub cluster_ips: Box<[IpAddr]>,
    pub external_ips: Box<[IpAddr]>,
    /// Those that nodes capture; a proxy's own addresses are not among them.
    pub load_balancer_ips: Box<[IpAddr]>,
    /// Who may use the load balancer's addresses; empty: everybody.
    pub source_ranges: Box<[IpNetwork]>,
    pub ports: Box<[ServicePort]>,
    pub external_policy: TrafficPolicy,
    pub internal_policy: TrafficPolicy,
    /// A client keeps its endpoint for so long after its last new connection.
    pub affinity_seconds: Option<u32>,
    /// Where load balancers ask whether this node has endpoints.
    pub health_check_node_port: Option<u16>,
    /// By which endpoints are chosen for connections from outside; `None`: as for all Services.
    pub algorithm: Option<Algorithm>,
    /// Of its Maglev tables; 0: by the number of endpoints.
    pub maglev_size: Option<u32>,
    /// By whom clients from outside are answered; `None`: as for all Services.
    pub mode: Option<Mode>,
    /// What it asks for in words that nobody understands. The rest is served.
    pub misread: Box<[String]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
    /// The same on every node.
    pub node_port: Option<u16>,
}

/// A part of a Service's endpoints, all of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    pub name: NamespacedName,
    /// In the same namespace; without a name of its own: nobody's.
    pub service: Arc<NamespacedName>,
    pub v4: bool,
    pub ports: Box<[SlicePort]>,
    pub endpoints: Box<[SliceEndpoint]>,
    /// What made the last change, a pod that became ready as a rule, was then.
    pub triggered: Option<SystemTime>,
    /// Endpoints that cannot be used, with the reason of the first.
    pub refused: Option<Box<(usize, String)>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    pub address: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub locality: Arc<Locality>,
}

/// Where an endpoint is and for whom it is meant: the same for many.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Locality {
    pub node: Option<Box<str>>,
    pub hints: Hints,
}

/// For whom an endpoint is meant; empty: for everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hints {
    pub zones: Vec<Box<str>>,
    pub nodes: Vec<Box<str>>,
}
