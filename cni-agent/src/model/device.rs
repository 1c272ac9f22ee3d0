//! The host's network devices, as the kernel lists them.

use std::net::IpAddr;

use cni_plugin::Mac;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// One device of the host's network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub name: String,
    pub ifindex: u32,
    /// `None` where the device has no Ethernet address (a tunnel, WireGuard).
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub up: bool,
    /// The bond, team or bridge that it is a part of.
    pub master: Option<u32>,
    pub kind: DeviceKind,
    pub addresses: Vec<DeviceAddress>,
    /// A default route of either family leaves through it.
    pub default_route: bool,
    /// Its queueing discipline holds packets back until their departure time.
    pub paces: bool,
}

/// What a device is, as far as the choice of the node's devices depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// A network card, physical or paravirtual.
    Physical,
    Bond,
    Vlan,
    Bridge,
    Veth,
    Vxlan,
    Loopback,
    /// WireGuard, IPIP, TUN and whatever else.
    Other,
}

/// An address of a device with the prefix that is on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceAddress {
    pub network: IpNetwork,
    /// False for addresses of link and host scope.
    pub global: bool,
    /// True for addresses that must not be chosen as a source: deprecated, tentative, temporary, secondary.
    pub avoid: bool,
}

impl Device {
    /// The addresses that other machines may know.
    pub fn global_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses
            .iter()
            .filter(|address| address.global)
            .map(|address| address.network.ip())
    }

    /// Whether `ip` is a neighbour on this device's link.
    pub fn reaches(&self, ip: IpAddr) -> bool {
        self.up
            && self.addresses.iter().any(|address| {
                address.global && address.network.contains(ip) && !is_host_prefix(&address.network)
            })
    }
}

/// Whether a name is that of a pod's host side: `mr` and 11 hex digits, see [`cni_plugin::host_ifname`].
pub fn is_pod_device(name: &str) -> bool {
    name.strip_prefix("mr").is_some_and(|hash| {
        hash.len() == 11
            && hash
                .bytes()
                .all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit))
    })
}

fn is_host_prefix(network: &IpNetwork) -> bool {
    match network {
        IpNetwork::V4(network) => network.prefix() == 32,
        IpNetwork::V6(network) => network.prefix() == 128,
    }
}
