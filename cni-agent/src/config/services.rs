//! Services: whose business they are, and where they answer.

use std::{
    fmt,
    net::{Ipv6Addr, SocketAddr},
};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::check::Problems;
use crate::compile::service::maglev;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ServicesConfig {
    pub proxy: Proxy,
    pub socket_lb: SocketLb,
    pub xdp: Xdp,
    /// By whom clients from outside are answered, unless a Service says otherwise.
    pub mode: Mode,
    /// Ranges of Service addresses, beside those of the cluster's ServiceCIDR objects.
    pub cidrs: Vec<IpNetwork>,
    /// Ranges whose addresses are the stack's business in any case.
    #[serde(rename = "viaStackCIDRs")]
    pub via_stack_cidrs: Vec<IpNetwork>,
    pub node_port_addresses: NodePortAddresses,
    /// NodePorts answer on 127.0.0.1 and ::1 too, to this node's own processes.
    pub localhost_node_ports: bool,
    /// Addresses that Services claim by themselves are served: whoever may write Services can take over any address
    /// outside of the cluster.
    #[serde(rename = "externalIPs")]
    pub external_ips: bool,
    /// The source of everything that goes to a ClusterIP is translated.
    pub masquerade_all: bool,
    /// By which endpoints are chosen for connections from outside of the cluster.
    pub algorithm: Algorithm,
    /// How many places a Maglev table has; 0: by the number of endpoints.
    pub maglev_table_size: u32,
    /// Where load balancers ask for the proxy's own health, `[::]` being all addresses of both families; `None`: nowhere.
    pub health: Option<SocketAddr>,
    /// Where the node's own programs ask for the proxy's mode and metrics, as they ask kube-proxy; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
}

impl Default for ServicesConfig {
    fn default() -> Self {
        Self {
            proxy: Proxy::default(),
            socket_lb: SocketLb::default(),
            xdp: Xdp::default(),
            mode: Mode::default(),
            cidrs: Vec::new(),
            via_stack_cidrs: Vec::new(),
            node_port_addresses: NodePortAddresses::default(),
            localhost_node_ports: false,
            external_ips: false,
            masquerade_all: false,
            algorithm: Algorithm::default(),
            maglev_table_size: 0,
            health: Some(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 10256))),
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 10249))),
        }
    }
}

/// Who serves Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proxy {
    /// This agent.
    Millrace,
    /// Another one in the host's stack: kube-proxy.
    #[default]
    Stack,
}

/// Whose sockets are connected to backends, without a translation of packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketLb {
    /// Those of the host, and the streams of pods.
    #[default]
    All,
    /// Those of the host: what pods send bears the Service's address until it leaves them.
    Host,
    /// Nobody's: host processes reach no Service.
    Off,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Any of them.
    #[default]
    Random,
    /// The same on every node for the same client.
    Maglev,
}

/// By whom a client from outside is answered whose endpoint is on another node than it asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By the node it asked, whose address the endpoint sees.
    #[default]
    Snat,
    /// By the endpoint's node (direct server return); the endpoint sees the client's address.
    Dsr,
}

/// Whether what comes from outside and goes on to another node is turned round before the stack sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Xdp {
    #[default]
    Off,
    /// By the device's driver where that can, otherwise as `Generic`.
    Auto,
    /// By the device's driver, or not at all.
    Native,
    /// Behind the driver: on every device, and slower.
    Generic,
}

/// The node's addresses on which NodePorts answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Those by which the cluster knows the node.
    #[default]
    Primary,
    /// All that are in one of these ranges.
    Ranges(Vec<IpNetwork>),
}

const PRIMARY: &str = "primary";

impl Serialize for NodePortAddresses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Primary => [PRIMARY].serialize(serializer),
            Self::Ranges(ranges) => ranges.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for NodePortAddresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        if texts.is_empty() || texts == [PRIMARY] {
            return Ok(Self::Primary);
        }
        let range = |text: &String| {
            let range = text.parse().ok().filter(|_| text.contains('/'));
            range.ok_or_else(|| {
                D::Error::custom(format!(
                    "`{text}` is not a range like 192.0.2.0/24; the word `primary` stands alone"
                ))
            })
        };
        texts
            .iter()
            .map(range)
            .collect::<Result<_, _>>()
            .map(Self::Ranges)
    }
}

impl fmt::Display for NodePortAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primary => f.write_str(PRIMARY),
            Self::Ranges(ranges) => {
                let texts: Vec<String> = ranges.iter().map(ToString::to_string).collect();
                f.write_str(&texts.join(", "))
            }
        }
    }
}

impl ServicesConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        if self.proxy == Proxy::Stack
            && (self.localhost_node_ports
                || self.external_ips
                || self.masquerade_all
                || self.algorithm != Algorithm::Random
                || self.xdp != Xdp::Off
                || self.mode != Mode::Snat)
        {
            problems.add(
                "services.proxy",
                "it is stack, and something else is set of what only millrace serves",
                "set it to millrace, or take localhostNodePorts, externalIPs, masqueradeAll, algorithm, xdp and mode out",
            );
        }
        if self.maglev_table_size != 0 && !maglev::is_size(self.maglev_table_size) {
            problems.add(
                "services.maglevTableSize",
                format!("{} is no size of a table", self.maglev_table_size),
                maglev::advice(),
            );
        }
    }
}
