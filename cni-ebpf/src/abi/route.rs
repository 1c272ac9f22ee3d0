//! Where an address lies.

use super::Addr;

/// What [`Route::action`] says. 0 is never written.
pub mod route_action {
    /// A pod of this node; one that is not an endpoint does not exist.
    pub const ENDPOINTS: u8 = 1;
    /// An address of this node.
    pub const HOST: u8 = 2;
    /// Behind another node, through the tunnel to `gateway`.
    pub const TUNNEL: u8 = 3;
    /// Behind `gateway` on device `ifindex`.
    pub const DIRECT: u8 = 4;
    /// Whatever the kernel's routing table says.
    pub const FIB: u8 = 5;
    /// The host's stack decides: Service addresses under another proxy.
    pub const STACK: u8 = 6;
    /// Nowhere.
    pub const UNREACHABLE: u8 = 7;
    /// A range of Service addresses that are served here: nobody is behind one that is no frontend.
    pub const SERVICE: u8 = 8;
}

/// What [`Route::flags`] says.
pub mod route_flags {
    /// Outside of the cluster: the source is translated to the node's address.
    pub const MASQUERADE: u8 = 1 << 0;
    /// A node's own address.
    pub const NODE: u8 = 1 << 1;
    /// Pods of one node, which it can tell by the last eight bytes of their address: the rest is what the node was told
    /// ([`Settings::pods_v6`](super::super::Settings::pods_v6)), or IPv4's.
    pub const DSR: u8 = 1 << 2;
}

crate::abi! {
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Route: 32 {
        pub gateway: Addr,
        pub ifindex: u32,
        pub mtu: u32,
        pub action: u8,
        pub flags: u8,
        pub pad: [u8; 6],
    }
}

/// What [`Device::flags`] says.
pub mod device_flags {
    /// Its queueing discipline holds packets back until their departure time. Of the tunnel's device: that of the device
    /// below it does.
    pub const PACES: u32 = 1 << 0;
}

crate::abi! {
    /// A device of the node, by its index. An address of zeros: none of that family.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Device: 48 {
        pub masquerade_v4: Addr,
        pub masquerade_v6: Addr,
        pub mac: [u8; 6],
        pub pad: [u8; 2],
        pub mtu: u32,
        pub flags: u32,
    }
}
