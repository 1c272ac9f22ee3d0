//! What a cluster shall be: the options of `cluster up`, and the addresses that follow from them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// How many nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(crate) nodes: u8,
    /// In how many zones the nodes stand, in turn; without a word each in its own
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(crate) zones: Option<u8>,
    /// Address families of nodes, pods and Services
    #[arg(long, value_enum, default_value_t)]
    pub(crate) family: Family,
    /// How pods reach those of other nodes; the reference bridge knows direct routing alone
    #[arg(long, value_enum)]
    pub(crate) routing: Option<Routing>,
    /// Who serves Services; without a word Millrace where it gives pods their network, else kube-proxy with nftables
    #[arg(long, value_enum)]
    pub(crate) proxy: Option<Proxy>,
    /// Who gives pods their network
    #[arg(long, value_enum, default_value_t)]
    pub(crate) cni: Cni,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Family {
    V4,
    V6,
    #[default]
    Dual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Routing {
    Direct,
    Vxlan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Proxy {
    /// Millrace itself
    Millrace,
    /// kube-proxy with nftables
    KubeProxyNft,
    /// kube-proxy with iptables
    KubeProxyIptables,
    /// Nobody: Service addresses lead nowhere
    None,
}

impl Proxy {
    /// Whether a kube-proxy runs on each node.
    pub(crate) fn is_kube_proxy(self) -> bool {
        matches!(self, Self::KubeProxyNft | Self::KubeProxyIptables)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cni {
    /// The DaemonSet of this tree, from an image of this tree
    #[default]
    Millrace,
    /// The reference plugins bridge, host-local and portmap, with static routes between the nodes
    Bridge,
    /// Nobody: nodes stay NotReady until a plugin is installed
    None,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            nodes: 2,
            zones: None,
            family: Family::default(),
            routing: None,
            proxy: None,
            cni: Cni::default(),
        }
    }
}

impl Plan {
    /// The control plane without any node.
    pub(crate) fn without_nodes(family: Family) -> Self {
        Self {
            nodes: 0,
            zones: None,
            family,
            routing: None,
            proxy: Some(Proxy::None),
            cni: Cni::None,
        }
    }

    /// Refuses what cannot be.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cni == Cni::Bridge && self.routing == Some(Routing::Vxlan) {
            bail!("--routing vxlan: the reference bridge has no tunnels; use --routing direct");
        }
        if self.proxy() == Proxy::Millrace && self.cni != Cni::Millrace {
            bail!(
                "--proxy millrace: Millrace serves Services on nodes whose pods it connects; use --cni millrace"
            );
        }
        Ok(())
    }

    pub(crate) fn proxy(&self) -> Proxy {
        self.proxy.unwrap_or(match self.cni {
            Cni::Millrace => Proxy::Millrace,
            Cni::Bridge | Cni::None => Proxy::KubeProxyNft,
        })
    }

    pub(crate) fn layouts(&self) -> &'static [Layout] {
        match self.family {
            Family::V4 => &BOTH[..1],
            Family::V6 => &BOTH[1..],
            Family::Dual => &BOTH,
        }
    }

    /// The family that comes first where there is but one place.
    pub(crate) fn first(&self) -> &'static Layout {
        &self.layouts()[0]
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = Node> + use<> {
        (1..=self.nodes).map(Node)
    }

    /// As if each zone were another building.
    pub(crate) fn zone(&self, node: Node) -> String {
        let zones = self.zones.unwrap_or(self.nodes).max(1);
        format!("zone-{}", (node.0 - 1) % zones + 1)
    }

    /// Something of each family in a list with commas, as Kubernetes' programs take it.
    pub(crate) fn list(&self, of: impl Fn(&Layout) -> String) -> String {
        self.layouts().iter().map(of).collect::<Vec<_>>().join(",")
    }
}

/// The addresses of one family.
#[derive(Debug)]
pub(crate) struct Layout {
    /// The control plane's address on the fabric, the default gateway of the nodes.
    pub(crate) api: IpAddr,
    /// Length of the fabric's prefix.
    pub(crate) prefix: u8,
    pub(crate) pods: &'static str,
    /// Length of one node's pod prefix.
    pub(crate) node_pods: u8,
    /// The controller-manager's option for that length.
    pub(crate) node_pods_option: &'static str,
    pub(crate) services: &'static str,
    /// The Service `kubernetes`.
    pub(crate) api_service: IpAddr,
    pub(crate) dns_service: IpAddr,
    pub(crate) any: &'static str,
    /// As whom the fabric calls what the load balancer gave away.
    pub(crate) client: IpAddr,
    /// The first address that the load balancer could give away.
    balanced: IpAddr,
}

/// Kubernetes' customary ranges, and one of our own for the fabric.
const BOTH: [Layout; 2] = [
    Layout {
        api: IpAddr::V4(Ipv4Addr::new(192, 168, 77, 1)),
        prefix: 24,
        pods: "10.244.0.0/16",
        node_pods: 24,
        node_pods_option: "ipv4",
        services: "10.96.0.0/16",
        api_service: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)),
        dns_service: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)),
        any: "0.0.0.0/0",
        client: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
        balanced: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 0)),
    },
    Layout {
        api: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 1)),
        prefix: 64,
        pods: "fd00:10:244::/56",
        node_pods: 64,
        node_pods_option: "ipv6",
        services: "fd00:10:96::/112",
        api_service: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 1)),
        dns_service: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 10)),
        any: "::/0",
        client: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1)),
        balanced: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0)),
    },
];

impl Layout {
    /// A node's address on the fabric.
    pub(crate) fn node(&self, node: Node) -> IpAddr {
        beside(self.api, 10 + node.0)
    }

    /// An address of a Service with a load balancer.
    pub(crate) fn balanced(&self, number: u8) -> IpAddr {
        beside(self.balanced, number)
    }
}

/// The address with another last part.
fn beside(address: IpAddr, last: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            Ipv4Addr::new(a, b, c, last).into()
        }
        IpAddr::V6(address) => {
            let [a, b, c, d, e, f, g, _] = address.segments();
            Ipv6Addr::new(a, b, c, d, e, f, g, last.into()).into()
        }
    }
}

/// A node by its number, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node(pub(super) u8);

impl Node {
    /// Kept over a power cycle, as a machine's own card keeps it.
    pub(crate) fn mac(self) -> String {
        format!("02:77:00:00:00:{:02x}", 10 + self.0)
    }
}

impl Node {
    /// By which the node's process 1 is told which one it is.
    pub(crate) fn number(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(family: Family, routing: Option<Routing>) -> Plan {
        Plan {
            nodes: 2,
            routing,
            cni: Cni::Bridge,
            ..Plan::without_nodes(family)
        }
    }

    #[test]
    fn nodes_stand_in_zones_in_turn() {
        let zones = |zones| {
            let plan = Plan {
                nodes: 3,
                zones,
                ..Plan::default()
            };
            plan.nodes().map(|node| plan.zone(node)).collect::<Vec<_>>()
        };
        assert_eq!(zones(None), ["zone-1", "zone-2", "zone-3"]);
        assert_eq!(zones(Some(2)), ["zone-1", "zone-2", "zone-1"]);
    }

    #[test]
    fn every_family_has_its_addresses_and_no_others() {
        let services = |family| plan(family, None).list(|layout| layout.services.to_owned());
        assert_eq!(services(Family::V4), "10.96.0.0/16");
        assert_eq!(services(Family::V6), "fd00:10:96::/112");
        assert_eq!(services(Family::Dual), "10.96.0.0/16,fd00:10:96::/112");
    }

    #[test]
    fn nodes_are_told_apart_by_name_address_and_mac() {
        let plan = plan(Family::Dual, None);
        let seen: Vec<_> = plan
            .nodes()
            .map(|node| {
                let addresses = plan.list(|layout| layout.node(node).to_string());
                format!("{node} {addresses} {}", node.mac())
            })
            .collect();
        assert_eq!(
            seen,
            [
                "n1 192.168.77.11,fd00:77::b 02:77:00:00:00:0b",
                "n2 192.168.77.12,fd00:77::c 02:77:00:00:00:0c"
            ]
        );
    }

    #[test]
    fn services_by_millrace_over_another_network_are_refused_with_the_remedy() {
        let mut plan = plan(Family::Dual, None);
        plan.proxy = Some(Proxy::Millrace);
        assert!(plan.check().unwrap_err().to_string().contains("--cni millrace"));
        plan.cni = Cni::Millrace;
        assert!(plan.check().is_ok());
    }

    #[test]
    fn a_peers_cluster_has_the_peers_proxy_unless_told_otherwise() {
        let of = |cni, proxy| {
            let plan = Plan {
                cni,
                proxy,
                ..Plan::default()
            };
            assert!(plan.check().is_ok());
            plan.proxy()
        };
        assert_eq!(of(Cni::Millrace, None), Proxy::Millrace);
        assert_eq!(of(Cni::Bridge, None), Proxy::KubeProxyNft);
        assert_eq!(of(Cni::Millrace, Some(Proxy::KubeProxyNft)), Proxy::KubeProxyNft);
    }

    #[test]
    fn a_tunnel_through_the_reference_bridge_is_refused_with_the_remedy() {
        assert!(plan(Family::Dual, None).check().is_ok());
        let error = plan(Family::Dual, Some(Routing::Vxlan)).check().unwrap_err();
        assert!(error.to_string().contains("--routing direct"), "{error}");
    }
}
