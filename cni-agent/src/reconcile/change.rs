//! One step towards what is desired.

use std::fmt;

use cni_ebpf::abi::Config;

use crate::desired::{HostRoute, LinkKey, NeighbourKey, RouteKey, Table, Vxlan};

/// One idempotent step. It names the state after it, not the way there.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Create or migrate the maps and load the programs with these constants. Links keep what they run until they are
    /// attached anew.
    Load(Config),
    /// Create the tunnel device, or make it like this (a property that cannot be changed means a new device).
    SetVxlan(Vxlan),
    RemoveVxlan(String),
    SetSysctl {
        path: String,
        value: String,
    },
    /// Write an entry, whether it exists or not.
    Put {
        table: Table,
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Delete {
        table: Table,
        key: Vec<u8>,
    },
    /// Write entries that lie one behind the other.
    PutAll {
        table: Table,
        keys: Vec<u8>,
        values: Vec<u8>,
    },
    DeleteAll {
        table: Table,
        keys: Vec<u8>,
    },
    /// Have the loaded program run on this device and pin the link. A live link is exchanged in place, never detached
    /// first.
    Attach {
        link: LinkKey,
        ifindex: u32,
    },
    Detach(LinkKey),
    /// Copy what old programs have written meanwhile to maps that are being replaced. Nothing where none is.
    CarryOver,
    /// Have the loaded programs run for all sockets of the node, and pin their links. Live ones are exchanged in place.
    AttachSockets,
    DetachSockets,
    /// Connected datagram sockets of the host whose backend serves no longer are told so.
    ReleaseSockets,
    /// Set the host side of a pod up.
    RaiseVeth {
        name: String,
        ifindex: u32,
    },
    RemoveVeth(String),
    /// Add or replace.
    SetRoute {
        key: RouteKey,
        route: HostRoute,
    },
    RemoveRoute(RouteKey),
    SetNeighbour {
        key: NeighbourKey,
        mac: [u8; 6],
    },
    /// Have packets wait on this device for their departure time, if it can; otherwise limits are policed there.
    Pace(u32),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(_) => f.write_str("load the programs"),
            Self::SetVxlan(vxlan) => write!(f, "set up device {}", vxlan.name),
            Self::RemoveVxlan(name) => write!(f, "remove device {name}"),
            Self::SetSysctl { path, value } => write!(f, "set sysctl {path} to {value}"),
            Self::PutAll { table, .. } => write!(f, "write entries to map {}", table.name()),
            Self::DeleteAll { table, .. } => write!(f, "delete entries from map {}", table.name()),
            Self::Put { table, .. } => write!(f, "write to map {}", table.name()),
            Self::Delete { table, .. } => write!(f, "delete from map {}", table.name()),
            Self::Attach { link, ifindex } => write!(f, "attach {link} to device {ifindex}"),
            Self::Detach(link) => write!(f, "detach {link}"),
            Self::CarryOver => f.write_str("carry over what old programs have written"),
            Self::AttachSockets => f.write_str("attach the programs of sockets"),
            Self::DetachSockets => f.write_str("detach the programs of sockets"),
            Self::ReleaseSockets => f.write_str("release sockets without a backend"),
            Self::RaiseVeth { name, .. } => write!(f, "set {name} up"),
            Self::RemoveVeth(name) => write!(f, "remove device {name}"),
            Self::SetRoute { key, .. } => write!(f, "set route {}", key.destination),
            Self::RemoveRoute(key) => write!(f, "remove route {}", key.destination),
            Self::Pace(ifindex) => write!(f, "have device {ifindex} pace"),
            Self::SetNeighbour { key, .. } => write!(f, "set neighbour {} on device {}", key.ip, key.ifindex),
        }
    }
}

/// What fails and is tried again together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    Sysctl(String),
    Vxlan,
    Load,
    Table(Table),
    Link(LinkKey),
    CarryOver,
    Sockets,
    Veth(String),
    Route(RouteKey),
    Neighbour(NeighbourKey),
    Pacing(u32),
}

impl Change {
    pub fn group(&self) -> Group {
        match self {
            Self::Load(_) => Group::Load,
            Self::SetVxlan(_) | Self::RemoveVxlan(_) => Group::Vxlan,
            Self::SetSysctl { path, .. } => Group::Sysctl(path.clone()),
            Self::Put { table, .. }
            | Self::Delete { table, .. }
            | Self::PutAll { table, .. }
            | Self::DeleteAll { table, .. } => Group::Table(*table),
            Self::Attach { link, .. } | Self::Detach(link) => Group::Link(link.clone()),
            Self::CarryOver => Group::CarryOver,
            Self::AttachSockets | Self::DetachSockets | Self::ReleaseSockets => Group::Sockets,
            Self::RaiseVeth { name, .. } | Self::RemoveVeth(name) => Group::Veth(name.clone()),
            Self::SetRoute { key, .. } | Self::RemoveRoute(key) => Group::Route(*key),
            Self::Pace(ifindex) => Group::Pacing(*ifindex),
            Self::SetNeighbour { key, .. } => Group::Neighbour(*key),
        }
    }

    /// Whether this must not be done in a round in which `failed` failed.
    pub fn needs(&self, failed: &Self) -> bool {
        match (failed, self) {
            // Without programs and maps there is nothing to write to, and no pod goes up.
            (Self::Load(_) | Self::SetVxlan(_), Self::SetSysctl { .. }) => false,
            (Self::Load(_), _) => true,
            (Self::SetVxlan(_), _) => {
                matches!(self, Self::Load(_) | Self::Attach { .. } | Self::SetRoute { .. })
            }
            // A half-written service or rule set must not be named by what comes behind, and what it replaces must
            // not be deleted while something still names it.
            (
                Self::Put { table: failed, .. } | Self::Delete { table: failed, .. },
                Self::Put { table, .. } | Self::Delete { table, .. },
            ) => table != failed && table.chain().is_some_and(|chain| failed.chain() == Some(chain)),
            // New programs would not know the connections that old ones have let through.
            (Self::CarryOver, Self::Attach { .. } | Self::AttachSockets) => true,
            // A pod whose programs are missing stays down.
            (Self::Attach { ifindex: failed, .. }, Self::RaiseVeth { ifindex, .. }) => failed == ifindex,
            _ => false,
        }
    }
}
