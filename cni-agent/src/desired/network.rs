//! Devices, links, routes and neighbours.

use std::{fmt, net::IpAddr};

use ipnetwork::IpNetwork;

/// The tunnel device: VXLAN with collected metadata (`external`), `noarp`, without learning, without an IPv6 link-local
/// address, up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    pub name: String,
    pub port: u16,
    pub mtu: u32,
    /// The same on every node: [`cni_ebpf::abi::Config::TUNNEL_MAC`].
    pub mac: [u8; 6],
}

/// What is wanted of a pod's host side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Veth {
    /// The plugin is making it: leave alone what has this name.
    Reserved,
    /// It is up, and has this index.
    Up { ifindex: u32 },
}

/// A device whose name is that of a pod's host side (`mr` and 11 hex digits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VethState {
    pub ifindex: u32,
    pub up: bool,
}

/// Programs that are attached to devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    FromPod,
    ToPod,
    FromNetdev,
    ToNetdev,
    XdpNodeport,
}

impl Program {
    pub const ALL: [Self; 5] = [
        Self::FromPod,
        Self::ToPod,
        Self::FromNetdev,
        Self::ToNetdev,
        Self::XdpNodeport,
    ];

    /// The name in the object file and in the pin's path.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromNetdev => "from_netdev",
            Self::ToNetdev => "to_netdev",
            Self::XdpNodeport => "xdp_nodeport",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|program| program.name() == name)
    }

    /// On the device's ingress side, seen from the host.
    pub const fn ingress(self) -> bool {
        matches!(self.place(), Place::Ingress)
    }

    /// Where on a device it runs.
    pub const fn place(self) -> Place {
        match self {
            Self::FromPod | Self::FromNetdev => Place::Ingress,
            Self::ToPod | Self::ToNetdev => Place::Egress,
            Self::XdpNodeport => Place::Driver,
        }
    }
}

/// Where on a device a program runs, seen from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Ingress,
    Egress,
    /// Before there is a socket buffer (XDP).
    Driver,
}

/// Whose link it is; with the program's name it makes the pin's path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkOwner {
    /// `links/endpoint/ID/`
    Endpoint(u32),
    /// `links/netdev/DEVICE/`
    Netdev(String),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkKey {
    pub owner: LinkOwner,
    pub program: Program,
}

impl fmt::Display for LinkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.owner {
            LinkOwner::Endpoint(id) => write!(f, "endpoint/{id}/{}", self.program.name()),
            LinkOwner::Netdev(name) => write!(f, "netdev/{name}/{}", self.program.name()),
        }
    }
}

/// A pinned link as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// 0: the device is gone, the pin is dead.
    pub ifindex: u32,
    /// It runs the program that this process has loaded, not one of an earlier agent or of another configuration.
    pub current: bool,
}

/// What tells routes of the main table apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    pub destination: IpNetwork,
}

/// A route in the main table, protocol [`cni_plugin::ROUTE_PROTOCOL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostRoute {
    Via(NextHop),
    /// Nobody is there: the sender is told, and nothing leaves by a wider route.
    Unreachable,
}

impl HostRoute {
    /// The destination is on this device's link.
    pub const fn on_link(ifindex: u32) -> Self {
        Self::Via(NextHop {
            ifindex,
            gateway: None,
            source: None,
            mtu: None,
        })
    }

    /// The device that packets leave by.
    pub const fn ifindex(&self) -> Option<u32> {
        match self {
            Self::Via(next) => Some(next.ifindex),
            Self::Unreachable => None,
        }
    }
}

/// Where packets of a [`HostRoute`] go next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    pub ifindex: u32,
    /// `None`: the destination is on the link (scope link).
    pub gateway: Option<IpAddr>,
    /// The preferred source.
    pub source: Option<IpAddr>,
    pub mtu: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NeighbourKey {
    pub ifindex: u32,
    pub ip: IpAddr,
}
