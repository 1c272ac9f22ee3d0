//! Services: a frontend leads to slots, a slot to a backend. Backends are written before the slots that name them,
//! slots before the frontend that counts them.

use super::{Addr, Port, Racy};

pub mod service_scope {
    /// What pods and the node itself send.
    pub const CLUSTER: u8 = 0;
    /// What arrives from outside (externalTrafficPolicy applies). A ClusterIP has no such row: its clients from outside
    /// use the other one.
    pub const EXTERNAL: u8 = 1;
}

/// What [`Service::flags`] says.
pub mod service_flags {
    pub const AFFINITY: u32 = 1 << 0;
    /// No usable endpoint anywhere: refuse at once.
    pub const REJECT: u32 = 1 << 1;
    /// No usable endpoint here though there are some elsewhere: drop silently.
    pub const DROP: u32 = 1 << 2;
    /// The source is translated.
    pub const MASQUERADE: u32 = 1 << 3;
    /// Clients from outside keep their address all the same, where the backend's node can answer them itself.
    pub const DSR: u32 = 1 << 5;
    /// Besides, every node leads a client to the same backend: a stream may come here in its middle.
    pub const ANY_NODE: u32 = 1 << 6;
}

/// What [`Backend::flags`] says.
pub mod backend_flags {
    pub const LOCAL: u32 = 1 << 0;
    pub const TERMINATING: u32 = 1 << 1;
}

crate::abi! {
    /// Port 0 of protocol 0 is every other port of a ClusterIP: the address lives, and what is sent there is refused.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub struct ServiceKey: 24 {
        pub addr: Addr,
        pub port: Port,
        pub proto: u8,
        pub scope: u8,
        pub pad: u32,
    }
}

crate::abi! {
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Service: 32 {
        /// Of the slots, which frontends with the same endpoints share.
        pub id: u32,
        /// Slots 0 to `slots` - 1 are filled.
        pub slots: u32,
        pub flags: u32,
        pub affinity_seconds: u32,
        /// Whose sources may use it, see [`SourceRange`]; 0: everybody.
        pub ranges: u32,
        /// The Maglev table by which a backend is chosen, see [`MaglevKey`]; 0: any slot will do. Releases that know of no
        /// tables write zeros here and read nothing.
        pub maglev: u32,
        /// How many places the table has.
        pub maglev_size: u32,
        pub reserved: u32,
    }
}

crate::abi! {
    /// A part of a Maglev table. What stands under a table's number never changes: another table has another number, and
    /// the frontend is what switches.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub struct MaglevKey: 8 {
        pub table: u32,
        pub chunk: u32,
    }
}

crate::abi! {
    /// The backends of so many places, one after the other; zeros behind the table's end.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct MaglevChunk: 256 {
        pub backends: [u32; 64],
    }
}

impl MaglevChunk {
    pub const PLACES: u32 = 64;
}

crate::abi! {
    /// A source that may use a frontend with restrictions: the key of a longest-prefix map.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub struct SourceRange: 24 {
        /// 32, for the number, and the bits of the address that count, of 128.
        pub len: u32,
        /// [`Service::ranges`].
        pub ranges: u32,
        pub words: [u32; 4],
    }
}

crate::abi! {
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub struct SlotKey: 8 {
        pub service: u32,
        pub slot: u32,
    }
}

impl SlotKey {
    /// Set in `slot`: not the number of a slot but that of a backend, which is among the Service's slots. Services with
    /// affinity have one such row for each of their backends, so that a client is not kept at one that left.
    pub const MEMBER: u32 = 1 << 31;

    #[inline(always)]
    pub const fn member(service: u32, backend: u32) -> Self {
        Self {
            service,
            slot: backend | Self::MEMBER,
        }
    }
}

crate::abi! {
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Backend: 32 {
        pub addr: Addr,
        pub port: Port,
        pub proto: u8,
        pub zone: u8,
        pub flags: u32,
        pub reserved: u64,
    }
}

/// What [`AffinityKey::kind`] says a client is known by.
pub mod client_kind {
    pub const ADDRESS: u32 = 0;
    /// The cookie of its network namespace, in [`Addr::lo`](super::Addr::lo).
    pub const NETNS: u32 = 1;
}

crate::abi! {
    /// A client of a Service with affinity.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
    pub struct AffinityKey: 24 {
        pub client: Addr,
        pub service: u32,
        pub kind: u32,
    }
}

crate::abi! {
    /// The backend that a client had last, and when it last began a connection.
    #[derive(Clone, PartialEq, Eq, Debug, Default)]
    pub struct Affinity: 16 {
        pub seen: Racy<u64>,
        pub backend: u32,
        pub pad: u32,
    }
}

crate::abi! {
    /// A socket whose destination was translated, and the backend that it sends to.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
    pub struct SocketKey: 32 {
        pub cookie: u64,
        pub addr: Addr,
        pub port: Port,
        pub proto: u8,
        pub pad: u8,
        pub reserved: u32,
    }
}

crate::abi! {
    /// What the socket dialled.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Dialled: 32 {
        pub addr: Addr,
        pub port: Port,
        pub pad: u16,
        pub service: u32,
        pub backend: u32,
        pub reserved: u32,
    }
}
