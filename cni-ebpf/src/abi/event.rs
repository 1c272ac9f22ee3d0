//! What the programs tell: why a packet was dropped, and what happened to a connection.

use super::{Addr, Port};

/// Declares the reasons once: number, name for metrics, sentence for people.
macro_rules! reasons {
    ($( $(#[$meta:meta])* $variant:ident = $number:literal, $name:literal, $text:literal; )*) => {
        /// Why a packet was dropped. The number is part of the layout (counters are indexed by it, events carry it):
        /// numbers are never reused.
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Reason {
            $( $(#[$meta])* #[doc = $text] $variant = $number, )*
        }

        impl Reason {
            pub const ALL: &[Self] = &[ $( Self::$variant, )* ];

            /// The name in metrics and in `--json`.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $name, )* }
            }

            /// One sentence for people.
            pub const fn text(self) -> &'static str {
                match self { $( Self::$variant => $text, )* }
            }

            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $( $number => Some(Self::$variant), )* _ => None }
            }
        }
    };
}

reasons! {
    UnknownEthertype = 1, "unknown_ethertype", "neither IPv4 nor IPv6, or tagged for a VLAN";
    Arp = 2, "arp", "ARP from a pod: its neighbours are permanent, nobody needs to be asked";
    Truncated = 3, "truncated", "the packet ends inside a header";
    Malformed = 4, "malformed", "a header's version or length contradicts the packet";
    MappedAddress = 5, "mapped_address", "an IPv4-mapped IPv6 address on the wire";
    UnknownProtocol = 6, "unknown_protocol", "a protocol other than TCP, UDP, SCTP and ICMP";
    ExtensionHeader = 7, "extension_header", "an IPv6 extension header that is unknown, or too many of them";
    FamilyDisabled = 8, "family_disabled", "an address family that this node does not serve";
    FragmentOrphan = 9, "fragment_orphan", "a later fragment whose first fragment was not seen";
    FragmentTableFull = 10, "fragment_table_full", "no room to remember a first fragment";
    SourceAddress = 11, "source_address", "a source address that is not the sender's";
    SourceMac = 12, "source_mac", "a source MAC address that is not the sender's";
    NeighbourDiscovery = 13, "neighbour_discovery", "neighbour or router discovery from a pod";
    DhcpServer = 14, "dhcp_server", "a DHCP server's answer from a pod";
    LinkLocal = 15, "link_local", "a multicast, broadcast, loopback or link-local destination";
    Martian = 16, "martian", "a packet from outside with an address that is not outside: of this node, its pods, its loopback or behind the tunnel";
    InvalidState = 17, "invalid_state", "a packet that cannot begin a connection and belongs to none";
    RelatedUnknown = 18, "related_unknown", "an ICMP error about a connection that does not exist";
    ConntrackFull = 19, "conntrack_full", "no room for a connection";
    PolicyEgress = 20, "policy_egress", "the sender's policy";
    PolicyIngress = 21, "policy_ingress", "the receiver's policy";
    ServiceNoBackend = 22, "service_no_backend", "a Service without a usable endpoint";
    ServiceNotLocal = 23, "service_not_local", "a Service with local traffic policy and no endpoint on this node";
    NatExhausted = 24, "nat_exhausted", "no free source port towards this destination";
    NatNoAddress = 25, "nat_no_address", "the outgoing device has no address of this family to masquerade with";
    NoRoute = 26, "no_route", "no route to the destination";
    NoEndpoint = 27, "no_endpoint", "an address of this node's pod range that no pod has";
    TunnelSource = 28, "tunnel_source", "a tunnelled packet whose sender does not own the inner source";
    TunnelKey = 29, "tunnel_key", "a packet without, or with a foreign, tunnel key";
    RateLimit = 30, "rate_limit", "above the endpoint's bandwidth limit";
    Rewrite = 31, "rewrite", "the kernel refused to change the packet";
    HostAddress = 32, "host_address", "a tunnelled packet to an address that is not the tunnel's business";
    TooBig = 33, "too_big", "larger than the tunnel carries, to a node whose address the host's stack would send past the tunnel";
    ServiceSource = 34, "service_source", "a client outside of the Service's source ranges";
    ServiceUnknown = 35, "service_unknown", "an address of the Service range that no Service has";
    ServiceTuple = 36, "service_tuple", "a client's port that leads to this backend already, and no other port of the client is free for a second connection";
    TtlExceeded = 37, "ttl_exceeded", "an expired TTL on the way to a Service's backend on another node";
    Unsettled = 38, "unsettled", "amidst a connection, or to a Service's slots, that are not known yet, while another release takes over: it is to be sent again";
}

/// The number of counters: a reason's number times two, plus the direction. Reason 0 counts what passed.
pub const COUNTERS: u32 = 256 * 2;

/// Seen from the endpoint that the packet is about.
pub mod direction {
    pub const EGRESS: u8 = 0;
    pub const INGRESS: u8 = 1;
}

/// What [`Event::kind`] says.
pub mod event_kind {
    pub const DROP: u8 = 1;
    pub const NEW: u8 = 2;
    pub const CLOSE: u8 = 3;
    /// A TCP flag that the flow had not seen in this direction.
    pub const FLAGS: u8 = 4;
}

/// Which program told.
pub mod hook {
    pub const FROM_POD: u8 = 1;
    pub const TO_POD: u8 = 2;
    pub const FROM_NETDEV: u8 = 3;
    pub const TO_NETDEV: u8 = 4;
    pub const XDP_NODEPORT: u8 = 5;
}

crate::abi! {
    /// A record of the ring buffer.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Event: 96 {
        /// Coarse monotonic nanoseconds.
        pub time: u64,
        pub src: Addr,
        pub dst: Addr,
        /// What the originator dialled, if it was translated.
        pub dnat: Addr,
        pub endpoint: u32,
        pub ifindex: u32,
        pub rule: u32,
        pub length: u32,
        pub src_port: Port,
        pub dst_port: Port,
        pub dnat_port: Port,
        pub kind: u8,
        pub reason: u8,
        pub direction: u8,
        pub proto: u8,
        pub tcp_flags: u8,
        pub hook: u8,
        pub state: u8,
        pub reply: u8,
        pub pad: [u8; 2],
        pub service: u32,
        pub reserved: u32,
    }
}

crate::abi! {
    /// Per-CPU counts.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Counter: 16 {
        pub packets: u64,
        pub bytes: u64,
    }
}
