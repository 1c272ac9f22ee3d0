//! What the CNI plugin and the agent share: CNI's errors and names, the RPC between the two, and what the plugin leaves on
//! disk for an agent that is not running: the queue of deletions, and the ADDs that are under way.
//!
//! The binary `millrace-cni` of this package is one user of the library, the agent is the other. The library
//! therefore holds no code that touches a network namespace.

pub mod attachment;
pub mod config;
pub mod environment;
pub mod error;
pub mod expedite;
pub mod mac;
pub mod queue;
pub mod result;
pub mod rpc;
pub mod underway;
pub mod version;

pub use attachment::{Attachment, host_ifname};
pub use error::{CniError, code};
pub use mac::Mac;
pub use version::SpecVersion;

/// The pod's IPv4 gateway: link-local, answered by nobody, reached through a permanent neighbour entry.
pub const GATEWAY_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 1, 1);

/// The pod's IPv6 gateway, likewise.
pub const GATEWAY_V6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The protocol number of every route that Millrace writes, so that it recognises its own.
pub const ROUTE_PROTOCOL: u8 = 77;

/// Where the agent serves the plugin.
pub const AGENT_SOCKET: &str = "/run/millrace/agent.sock";

/// Where state that outlives a reboot is kept.
pub const STATE_DIR: &str = "/var/lib/millrace";
