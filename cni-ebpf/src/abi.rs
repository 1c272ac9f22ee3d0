//! Map keys and values: the layout that pinned maps keep across restarts and upgrades.
//!
//! Rules of this module:
//!
//! - A type is declared with [`abi!`](crate::abi!), which asserts its size and the absence of padding at compile time
//!   and publishes its field table in [`LAYOUTS`]; the table is printed to `ABI.md` and compared in CI.
//! - Addresses are [`Addr`]: 128 bits in memory order, IPv4 mapped into `::ffff:0:0/96`. One code path serves both
//!   families; the mapped range is refused on the wire, so the two can never be confused.
//! - Ports are [`Port`]: network byte order, hidden behind a constructor, so that byte order cannot be mistaken.
//! - Values that the kernel changes after insertion are [`Racy`]: several CPUs write them without a lock.
//! - Numbers read back from map memory are `u8`/`u32` constants, never Rust enums: an invalid enum value would be
//!   undefined behaviour.
//! - Changing the layout of a type changes [`version`] of every map that holds it.

mod addr;
mod config;
mod conntrack;
mod endpoint;
mod event;
mod layout;
mod map;
mod policy;
mod racy;
mod route;
mod service;

pub use addr::{Addr, Port, Prefix};
pub use config::{Config, Secrets, Settings, socket_lb};
pub use conntrack::{Alias, Flow, FlowKey, Fragment, FragmentKey, Tuple, flow_flags, tcp_state, via};
pub use endpoint::{Bucket, ENDPOINT_SLOTS, Endpoint, Peer, endpoint_flags, peer_flags};
pub use event::{COUNTERS, Counter, Event, Reason, direction, event_kind, hook};
#[doc(hidden)]
pub use layout::plain_size;
pub use layout::{Field, Layout, Plain, as_bytes, from_bytes, put};
pub use map::{EXHAUSTED_PLACES, MAPS, MapSpec, MapType, program_place, version};
pub use policy::{
    ClassBits, ClassKey, Grant, GrantKey, Group, GroupChunk, GroupKey, RuleKey, RuleList, RuleSet, action,
    policy_direction, rule_set_flags,
};
pub use racy::Racy;
pub use route::{Device, Route, device_flags, route_action, route_flags};
pub use service::{
    Affinity, AffinityKey, Backend, Dialled, MaglevChunk, MaglevKey, MemberKey, Service, ServiceKey, Slot,
    SocketKey, SourceRange, backend_flags, client_kind, service_flags, service_scope,
};

/// Every type that stands in a map, for the generated table.
pub const LAYOUTS: &[Layout] = &[
    Addr::LAYOUT,
    Prefix::LAYOUT,
    Tuple::LAYOUT,
    FlowKey::LAYOUT,
    Flow::LAYOUT,
    Alias::LAYOUT,
    FragmentKey::LAYOUT,
    Fragment::LAYOUT,
    Endpoint::LAYOUT,
    Peer::LAYOUT,
    Bucket::LAYOUT,
    Route::LAYOUT,
    Device::LAYOUT,
    RuleSet::LAYOUT,
    RuleKey::LAYOUT,
    RuleList::LAYOUT,
    GroupKey::LAYOUT,
    Group::LAYOUT,
    GroupChunk::LAYOUT,
    ClassKey::LAYOUT,
    ClassBits::LAYOUT,
    GrantKey::LAYOUT,
    Grant::LAYOUT,
    ServiceKey::LAYOUT,
    Service::LAYOUT,
    MaglevKey::LAYOUT,
    MaglevChunk::LAYOUT,
    Slot::LAYOUT,
    MemberKey::LAYOUT,
    SourceRange::LAYOUT,
    Backend::LAYOUT,
    AffinityKey::LAYOUT,
    Affinity::LAYOUT,
    SocketKey::LAYOUT,
    Dialled::LAYOUT,
    Event::LAYOUT,
    Counter::LAYOUT,
    Settings::LAYOUT,
    Secrets::LAYOUT,
    Config::LAYOUT,
];
