//! Services: a frontend leads to slots, a slot to a backend. Backends are written before the slots that name them,
//! slots before the frontend that counts them.

use super::{Addr, Port};

pub mod service_scope {
    /// What clients inside of the cluster use.
    pub const CLUSTER: u8 = 0;
    /// What arrives from outside (externalTrafficPolicy applies).
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
}

/// What [`Backend::flags`] says.
pub mod backend_flags {
    pub const LOCAL: u32 = 1 << 0;
    pub const TERMINATING: u32 = 1 << 1;
}

crate::abi! {
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
        pub id: u32,
        /// Slots 0 to `slots` - 1 are filled.
        pub slots: u32,
        pub flags: u32,
        pub affinity_seconds: u32,
        pub reserved: [u64; 2],
    }
}

crate::abi! {
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub struct SlotKey: 8 {
        pub service: u32,
        pub slot: u32,
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
