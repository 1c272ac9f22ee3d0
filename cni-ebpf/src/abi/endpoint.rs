//! Who is behind an address.

use super::Racy;

/// What [`Endpoint::flags`] says.
pub mod endpoint_flags {
    /// Plugins behind ours act in the host's stack: what comes from outside passes the stack.
    pub const VIA_STACK: u32 = 1 << 0;
    /// A token bucket limits what the pod sends / receives.
    pub const LIMIT_EGRESS: u32 = 1 << 1;
    pub const LIMIT_INGRESS: u32 = 1 << 2;
    /// What the pod sends above its limit waits in the `fq` of the device by which it leaves the node, where there is one.
    pub const PACE: u32 = 1 << 3;
}

crate::abi! {
    /// A pod of this node. Each of its addresses leads to its number, and the number to its place here: a connection
    /// that is known names the numbers of its ends, and needs no address looked up. It is also what its addresses may be
    /// used from: a packet with this source must come from this device with this MAC.
    #[derive(Clone, PartialEq, Eq, Debug, Default)]
    pub struct Endpoint: 72 {
        pub id: u32,
        /// The host-side device.
        pub ifindex: u32,
        pub mac: [u8; 6],
        pub host_mac: [u8; 6],
        pub flags: u32,
        /// What it enforces; 0: nothing, everything passes.
        pub egress_rules: u32,
        pub ingress_rules: u32,
        /// What it is as a peer.
        pub class: u32,
        pub mtu: u32,
        /// When the endpoint was programmed, for the one who reads the map.
        pub created: u32,
        pub reserved: u32,
        /// Bytes a second; 0: no limit.
        pub egress_rate: u64,
        pub ingress_rate: u64,
        /// Bytes that may pass at once, above the rate.
        pub egress_burst: u32,
        pub ingress_burst: u32,
    }
}

/// Places for endpoints, a power of two.
pub const ENDPOINT_SLOTS: u32 = 4096;

impl Endpoint {
    /// The place of the endpoint with this number. The agent gives no number whose place is taken.
    pub const fn slot(id: u32) -> u32 {
        id & (ENDPOINT_SLOTS - 1)
    }
}

/// What [`Peer::flags`] says.
pub mod peer_flags {
    pub const POD: u32 = 1 << 0;
    /// This node.
    pub const HOST: u32 = 1 << 1;
    pub const REMOTE_NODE: u32 = 1 << 2;
    pub const HOST_NETWORK: u32 = 1 << 3;
}

crate::abi! {
    /// What a known address (pod, node) is to policy.
    #[derive(Clone, PartialEq, Eq, Debug, Default)]
    pub struct Peer: 16 {
        pub class: u32,
        pub flags: u32,
        pub node: u32,
        pub pad: u32,
    }
}

crate::abi! {
    /// A token bucket, keyed by endpoint id times two plus direction. The agent makes it and takes it away; the kernel
    /// refills it when it is looked at.
    #[derive(Clone, PartialEq, Eq, Debug, Default)]
    pub struct Bucket: 16 {
        /// Bytes; a debt, as a negative number, is what waits to be sent.
        pub tokens: Racy<u64>,
        pub refilled: Racy<u64>,
    }
}

impl Bucket {
    pub const fn key(endpoint: u32, direction: u8) -> u32 {
        endpoint << 1 | direction as u32
    }
}
