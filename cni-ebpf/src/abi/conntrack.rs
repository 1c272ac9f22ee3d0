//! Connections: the record on which policy, coexistence, FQDN rules, tunnels and upgrades depend.
//!
//! A connection is **one** [`Flow`], keyed by the tuple that policy sees: after destination translation, before source
//! translation. Both directions find it with one look-up, because [`FlowKey`] is ordered by address, not by direction.
//! Each tuple that differs on the wire, a Service address before translation or a node's address after it, is an
//! [`Alias`]: a pointer to the flow, with nothing of its own that could disagree.

use super::{Addr, Port, Racy};

crate::abi! {
    /// A tuple as it stands on the wire, from sender to receiver.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
    pub struct Tuple: 40 {
        pub src: Addr,
        pub dst: Addr,
        pub src_port: Port,
        pub dst_port: Port,
        pub proto: u8,
        pub pad: u8,
        pub reserved: u16,
    }
}

impl Tuple {
    /// Copies word by word, as [`FlowKey::copy_from`] does.
    #[inline(always)]
    pub fn copy_from(&mut self, other: &Self) {
        self.src = other.src;
        self.dst = other.dst;
        self.src_port = other.src_port;
        self.dst_port = other.dst_port;
        self.proto = other.proto;
        self.pad = 0;
        self.reserved = 0;
    }

    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            proto: self.proto,
            pad: 0,
            reserved: 0,
        }
    }
}

crate::abi! {
    /// A tuple without direction: side `a` is the smaller (address, port).
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
    pub struct FlowKey: 40 {
        pub a: Addr,
        pub b: Addr,
        pub a_port: Port,
        pub b_port: Port,
        pub proto: u8,
        pub pad: u8,
        /// Not 0 where another flow had the tuple when this one began: a number for what was dialled. Such a flow is found
        /// by its aliases alone. A key's fields keep their names, or no other release could read it.
        pub reserved: u16,
    }
}

impl FlowKey {
    /// Copies word by word: a copy within one structure becomes a call.
    #[inline(always)]
    pub fn copy_from(&mut self, other: &Self) {
        self.a = other.a;
        self.b = other.b;
        self.a_port = other.a_port;
        self.b_port = other.b_port;
        self.proto = other.proto;
        self.pad = 0;
        self.reserved = other.reserved;
    }
}

/// What [`Flow::flags`] says.
pub mod flow_flags {
    /// The originator is side `a` of the key.
    pub const ORIGIN_A: u16 = 1 << 0;
    /// The destination was translated; [`dnat`](super::Flow::dnat) is what the originator dialled.
    pub const DNAT: u16 = 1 << 1;
    /// The source is translated; [`snat`](super::Flow::snat) is what the other side sees.
    pub const SNAT: u16 = 1 << 2;
    /// A packet of the reply direction was seen.
    pub const REPLIED: u16 = 1 << 3;
    /// The originator is the host itself; the entry only keeps its port from being allocated to a pod.
    pub const HOST: u16 = 1 << 4;
    /// The side that is not this node's was seen to lie outside: its packets may come by a device of the node.
    pub const OUTSIDE: u16 = 1 << 5;
    /// Packets go on as they came, with their backend beside them, and the answers of its node do not come by here.
    pub const DSR: u16 = 1 << 6;
}

/// Where a direction of a flow is handed to.
pub mod via {
    /// Not decided by this node's programs.
    pub const UNKNOWN: u8 = 0;
    /// Straight into the pod.
    pub const PEER: u8 = 1;
    /// The host's stack: its own sockets, another proxy, a chained plugin.
    pub const STACK: u8 = 2;
    /// The tunnel device.
    pub const TUNNEL: u8 = 3;
    /// A device of the node, without the stack.
    pub const DEVICE: u8 = 4;
}

/// States of a flow; each has a timeout. Protocols without a handshake use `NEW` and `ESTABLISHED`.
pub mod tcp_state {
    /// Only the originator was heard.
    pub const NEW: u8 = 0;
    /// Both sides were heard.
    pub const ESTABLISHED: u8 = 1;
    /// One side has finished.
    pub const FIN_WAIT: u8 = 2;
    /// Both sides have finished.
    pub const TIME_WAIT: u8 = 3;
    /// A reset was seen.
    pub const CLOSED: u8 = 4;
}

macro_rules! flow {
    ($size:literal: $($first:tt)*) => {
        crate::abi! {
            /// A connection. Times are the coarse monotonic clock in nanoseconds.
            #[derive(Clone, PartialEq, Eq, Debug, Default)]
            pub struct Flow: $size {
                $($first)*
                pub seen: Racy<u64>,
                pub created: u64,
                pub packets_forward: Racy<u64>,
                pub packets_reply: Racy<u64>,
                pub bytes_forward: Racy<u64>,
                pub bytes_reply: Racy<u64>,
                /// What the originator dialled, if `DNAT`.
                pub dnat: Addr,
                /// What the other side sees as the originator, if `SNAT`.
                pub snat: Addr,
                /// The granted selector bits that admitted the flow at its source, with the word they stand in.
                pub egress_bits: Racy<u64>,
                pub ingress_bits: Racy<u64>,
                pub egress_word: Racy<u32>,
                pub ingress_word: Racy<u32>,
                /// Generations of the rule sets under which the flow was last admitted; 0: no rule set.
                pub egress_generation: Racy<u32>,
                pub ingress_generation: Racy<u32>,
                /// The rules that admitted it.
                pub egress_rule: Racy<u32>,
                pub ingress_rule: Racy<u32>,
                pub class_epoch: Racy<u32>,
                /// The device on which the originator's packets arrive.
                pub ingress_ifindex: u32,
                pub service: u32,
                pub backend: u32,
                /// When the alias was last seen to point here, in seconds.
                pub alias_seen: Racy<u32>,
                pub dnat_port: Port,
                pub snat_port: Port,
                pub flags: Racy<u16>,
                pub state: Racy<u8>,
                /// TCP flags seen in each direction.
                pub tcp_forward: Racy<u8>,
                pub tcp_reply: Racy<u8>,
                /// How packets of each direction leave this node's programs.
                pub via_forward: u8,
                pub via_reply: u8,
                pub pad: u8,
                /// Local endpoints of both sides, 0: none.
                pub source_endpoint: u32,
                pub destination_endpoint: u32,
                pub reserved: [u64; 4],
            }
        }
    };
}

#[cfg(not(feature = "next-layout"))]
flow!(192:);
// Every field at another place.
#[cfg(feature = "next-layout")]
flow!(200: pub next: u64,);

crate::abi! {
    /// Points from a tuple on the wire to the flow it belongs to.
    #[derive(Clone, PartialEq, Eq, Debug, Default)]
    pub struct Alias: 56 {
        pub flow: FlowKey,
        /// When it was entered, and when its flow was last seen to go on, in seconds.
        pub created: u32,
        pub seen: Racy<u32>,
        /// 1: the tuple travels in the reply direction (source translation), 0: forward (destination translation).
        pub reply: u32,
        /// The endpoint that opened the flow, 0: the host.
        pub endpoint: u32,
    }
}

crate::abi! {
    /// Identifies the fragments of one datagram.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
    pub struct FragmentKey: 40 {
        pub src: Addr,
        pub dst: Addr,
        pub id: u32,
        pub proto: u8,
        pub pad: u8,
        pub reserved: u16,
    }
}

crate::abi! {
    /// What the first fragment of a datagram said.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Fragment: 16 {
        pub seen: u64,
        pub src_port: Port,
        pub dst_port: Port,
        pub pad: u32,
    }
}
