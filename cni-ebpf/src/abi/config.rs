//! What the programs are told: constants at load, and the few numbers that change under them.

use super::{Addr, Racy};

/// What [`Config::socket_lb`] says: whose sockets are connected to backends.
pub mod socket_lb {
    pub const OFF: u32 = 0;
    /// The host's own.
    pub const HOST: u32 = 1;
    /// Those of pods too.
    pub const ALL: u32 = 2;
}

crate::abi! {
    /// Read-only globals, set at load, so that the verifier prunes what is switched off. Changing one is loading the
    /// programs again and exchanging them under their links.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Config: 88 {
        /// Booleans are 0 or 1.
        pub ipv4: u32,
        pub ipv6: u32,
        /// Remote pods lie behind the tunnel device.
        pub tunnel: u32,
        pub masquerade: u32,
        /// Events are written.
        pub events: u32,
        /// Service look-ups are done.
        pub services: u32,
        pub policy: u32,
        pub tunnel_ifindex: u32,
        pub vni: u32,
        /// The value in the bits of the packet mark that are ours (`mark_mask`) which says "already handled".
        pub mark: u32,
        pub mark_mask: u32,
        /// Ports that source translation may use, host order, both ends included.
        pub snat_first: u32,
        pub snat_last: u32,
        /// The value that says "came by a device", for packets of which the stack forgets it.
        pub arrived_mark: u32,
        pub bandwidth: u32,
        /// One of [`socket_lb`].
        pub socket_lb: u32,
        /// The cookie of the host's network namespace.
        pub host_netns: u64,
        /// The tunnel's UDP port, 0: there is no tunnel.
        pub tunnel_port: u32,
        /// Devices have a program that meets packets before the stack does.
        pub xdp: u32,
        /// 0 or 1: which side of the map `programs` is that of this load.
        pub side: u32,
        pub reserved: u32,
    }
}

impl Config {
    /// Everything on, nothing special.
    pub const DEFAULT: Self = Self {
        ipv4: 1,
        ipv6: 1,
        tunnel: 0,
        masquerade: 1,
        events: 1,
        services: 1,
        policy: 1,
        tunnel_ifindex: 0,
        vni: 19794,
        mark: 0x9000_0000,
        mark_mask: 0xf000_0000,
        snat_first: 32768,
        snat_last: 65535,
        arrived_mark: 0xa000_0000,
        bandwidth: 0,
        socket_lb: socket_lb::OFF,
        host_netns: 0,
        tunnel_port: 0,
        xdp: 0,
        side: 0,
        reserved: 0,
    };

    /// The MAC of every node's tunnel device: one address, so that no node has to learn another's.
    pub const TUNNEL_MAC: [u8; 6] = [0x02, b'm', b'r', 0, 0, 1];

    /// The sender's MAC of every tunnelled frame: a VXLAN device takes frames from its own MAC for loops.
    pub const TUNNEL_SENDER: [u8; 6] = [0x02, b'm', b'r', 0, 0, 2];
}

impl Default for Config {
    fn default() -> Self {
        Self::DEFAULT
    }
}

crate::abi! {
    /// The one entry of the `settings` map. Connections remember these numbers: another layout must go on with them.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Settings: 64 {
        /// Moves when a known address changes class or goes away.
        pub class_epoch: u32,
        /// The highest generation that any rule set was given. Whoever publishes rules takes the next one and writes it
        /// here first: connections remember generations for longer than rule sets and agents live.
        pub last_generation: u32,
        /// The node's own address of each family, zeros: none. The source of what goes to a Service and cannot keep its
        /// own, where no device of the node says otherwise.
        pub node_v4: Addr,
        pub node_v6: Addr,
        /// How the IPv6 addresses of this node's pods begin, for those who name a pod by the last eight bytes
        /// ([`route_flags::DSR`](super::route_flags::DSR)); 0: nobody does.
        pub pods_v6: u64,
        /// Until then, in coarse monotonic nanoseconds, connections that programs of another layout have let through may be
        /// unknown: what is in the midst of one is handed to the other load's programs, and who knows it neither has it sent
        /// again. It ends by itself, whoever dies.
        pub unsettled_until: u64,
        /// Both loads have entered their programs in the map `programs`, so that what is handed over comes back.
        pub hands_over: u32,
        pub reserved: u32,
    }
}

crate::abi! {
    /// The one entry of the `secrets` map: what the programs draw for themselves and must keep as long as the connections
    /// that were made with it.
    #[derive(Clone, PartialEq, Eq, Debug, Default)]
    pub struct Secrets: 16 {
        /// Makes the first port that is tried for a connection unguessable; 0: not drawn yet.
        pub port_seed: Racy<u32>,
        pub reserved: [u32; 3],
    }
}

macro_rules! globals {
    ($($(#[$meta:meta])* $name:ident: $field:ident $ty:ty;)*) => {
        /// One field each. Volatile, because the compiler knows what the object file says of a global and not what the
        /// loader wrote there.
        impl Config {
            $(
                $(#[$meta])*
                #[inline(always)]
                pub fn $name(&self) -> $ty {
                    // SAFETY: a field of a live value.
                    unsafe { (&raw const self.$field).read_volatile() }
                }
            )*
        }
    };
}

globals! {
    serves_ipv4: ipv4 u32;
    serves_ipv6: ipv6 u32;
    masquerades: masquerade u32;
    tells_events: events u32;
    has_services: services u32;
    has_policy: policy u32;
    tunnel_device: tunnel_ifindex u32;
    tunnel_number: vni u32;
    port_of_tunnel: tunnel_port u32;
    own_mark: mark u32;
    own_mark_mask: mark_mask u32;
    mark_of_arrival: arrived_mark u32;
    first_port: snat_first u32;
    last_port: snat_last u32;
    limits_bandwidth: bandwidth u32;
    balances_sockets: socket_lb u32;
    netns_of_host: host_netns u64;
    has_xdp: xdp u32;
    own_side: side u32;
}
