//! What the kernel should hold, and what it was seen to hold: both in the same shape, so that comparing them needs no
//! knowledge of either.

mod network;
mod sockets;
mod table;

use std::collections::{BTreeMap, BTreeSet};

use cni_ebpf::abi::Config;

pub use network::{
    HostRoute, LinkKey, LinkOwner, LinkState, NeighbourKey, NextHop, Place, Program, RouteKey, Veth,
    VethState, Vxlan,
};
pub use sockets::{SocketProgram, SocketPrograms};
pub use table::{Chain, MalformedEntry, Table, Tables, is_vacant};

/// What the kernel should hold. `Default` is nothing at all: comparing with it removes everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// Constants of the programs. `None`: nothing is known yet that programs could be loaded with.
    pub config: Option<Config>,
    pub tables: Tables,
    /// The tunnel device, in tunnel mode.
    pub vxlan: Option<Vxlan>,
    /// Host sides of pods, by name.
    pub veths: BTreeMap<String, Veth>,
    /// Which program is on which device.
    pub links: BTreeMap<LinkKey, u32>,
    /// Sockets are connected to the backends of Services.
    pub sockets: bool,
    /// Routes with Millrace's protocol number in the main table.
    pub routes: BTreeMap<RouteKey, HostRoute>,
    /// Permanent neighbours: the pods' MACs on the host's side.
    pub neighbours: BTreeMap<NeighbourKey, [u8; 6]>,
    /// Devices on which packets shall wait for their departure time.
    pub pacing: BTreeSet<u32>,
    /// Paths below `/proc/sys`, with slashes (`net/ipv4/conf/eth0.1/rp_filter`).
    pub sysctls: BTreeMap<String, String>,
}

/// What the kernel was seen to hold, within a [`Scope`](crate::kernel::Scope).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// The constants of the programs that this process has loaded and would attach.
    pub config: Option<Config>,
    pub tables: Tables,
    pub vxlan: Option<Vxlan>,
    pub veths: BTreeMap<String, VethState>,
    pub links: BTreeMap<LinkKey, LinkState>,
    /// [`Scope::Keys`](crate::kernel::Scope) does not look.
    pub sockets: SocketPrograms,
    pub routes: BTreeMap<RouteKey, HostRoute>,
    pub neighbours: BTreeMap<NeighbourKey, [u8; 6]>,
    /// Devices that pace, and those that were found unable to.
    pub pacing: BTreeSet<u32>,
    pub sysctls: BTreeMap<String, String>,
}
