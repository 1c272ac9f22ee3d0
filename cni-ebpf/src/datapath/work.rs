//! What one run carries from stage to stage.

use super::nat::Search;
use super::policy::{Admission, Question};
use super::service::Choice;
use crate::abi::*;

/// Facts about the packet's headers.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Headers {
    /// Where the transport's header begins.
    pub l4: u32,
    /// Length of the transport's header.
    pub l4_length: u32,
    /// Length by the network header, without what the link added.
    pub length: u32,
    /// Identification of the datagram that this is a fragment of.
    pub fragment_id: u32,
    /// The word of the network header that holds TTL (IPv4: with protocol and checksum) or hop limit.
    pub ttl: u8,
    pub v6: u8,
    pub tcp_flags: u8,
    pub icmp_type: u8,
    pub fragment: u8,
    /// An ICMP error: the tuple is that of the packet it is about.
    pub icmp_error: u8,
    /// A UDP datagram without checksum (IPv4 only).
    pub no_checksum: u8,
    /// For ICMP queries: this is the answer.
    pub icmp_reply: u8,
    /// The walk over extension headers: what comes next, and what was wrong.
    pub next: u8,
    pub wrong: u8,
    pub pad: [u8; 2],
    /// The inner packet of an ICMP error: where its network and transport headers begin.
    pub inner_l3: u32,
    pub inner_l4: u32,
    /// How many bytes of the inner transport header there are.
    pub inner_room: u32,
}

/// What [`Headers::fragment`] says.
pub mod fragment {
    pub const WHOLE: u8 = 0;
    pub const FIRST: u8 = 1;
    pub const LATER: u8 = 2;
}

/// What [`Work::direct`] says.
pub mod direct {
    pub const NO: u8 = 0;
    /// If it goes to another node's backend, it goes as it came, and names it.
    pub const LEAVES: u8 = 1;
    /// It came so from another node; the backend stands in [`Work::choice`](super::Work::choice).
    pub const CAME: u8 = 2;
}

/// What [`Work::entered`] says.
pub mod entered {
    pub const FLOW: u8 = 1;
    /// The alias of the translated source.
    pub const ANSWERED: u8 = 2;
    /// The alias of what was dialled.
    pub const DIALLED: u8 = 4;
}

/// The state of one run. It stands in a per-CPU map, because the stack has 512 bytes. Every field is set by the stage
/// that owns it before anybody reads it; nothing is left over from the packet before.
#[derive(Clone, Default, Debug)]
#[repr(C)]
pub struct Work {
    pub headers: Headers,
    /// The tuple as it came. Of an ICMP error: its own addresses, no ports.
    pub tuple: Tuple,
    /// The tuple inside an ICMP error.
    pub inner: Tuple,
    /// The tuple as it leaves.
    pub out: Tuple,
    /// The flow's key, and whether this packet travels in the reply direction.
    pub key: FlowKey,
    /// The tuple by which an alias is looked for or entered.
    pub alias_tuple: Tuple,
    pub alias: Alias,
    /// The key of a connection that is not translated and would have that tuple.
    pub plain_key: FlowKey,
    pub flow: Flow,
    pub fragment_key: FragmentKey,
    pub fragment: Fragment,
    pub route_key: Prefix,
    pub event: Event,
    /// What policy is asked, and what it answered.
    pub question: Question,
    pub answer: Admission,
    /// The backend of a new connection to a Service.
    pub choice: Choice,
    /// What the packet is to be made: see [`answer`](super::answer), and the largest packet that would pass; 0: it is not
    /// too large.
    pub answer_mtu: u32,
    pub answer_kind: u8,
    /// The packet was dropped, and what it was made goes to its sender.
    pub answered: u8,
    pub pad5: [u8; 2],
    /// The address to translate the source to; `keep_port`: with its own port, if nobody else has it.
    pub snat: Addr,
    /// What the run has entered for a connection that begins: see [`entered`].
    pub entered: u8,
    pub keep_port: u8,
    /// The search for a port.
    pub search: Search,
    /// The bucket that is looked at, its refill in bytes a second, its size.
    pub limit_rate: u64,
    pub limit_burst: u64,
    pub limit_key: u32,
    /// What is above the limit may wait.
    pub limit_waits: u32,
    /// When the packet may leave, 0: at once.
    pub departure: u64,
    /// The flow at hand returns through the stack, or began through it by a device.
    pub stack_reply: u8,
    /// The flow at hand leaves through the stack and has no translated source: `to_netdev` gives it one, if it needs one.
    pub unmasked: u8,
    /// This direction of the flow at hand passes the stack nowhere, not even before an endpoint that is `viaStack`.
    pub straight: u8,
    /// Direct server return: see [`direct`].
    pub direct: u8,
    /// Another flow is answered at the port of the one that begins.
    pub contested: u8,
    /// The packet's own addresses are those of a flow whose originator dialled others.
    pub rival: u8,
    pub pad4: u8,
    /// Where the packet goes: see [`way`](super::way); device and neighbour as far as the way needs them.
    pub gateway: Addr,
    /// The link header, where the program writes it itself.
    pub link: [u16; 6],
    pub to_ifindex: u32,
    pub way: u8,
    /// Why it was dropped; 0: it was not.
    pub reason: u8,
    pub pad3: [u8; 2],
    pub now: u64,
    /// When the flow that the packet's own addresses lead to began, if it may be over; 0 otherwise.
    pub past: u64,
    pub reply: u8,
    /// An [`event_kind`] to tell about a packet that passes; 0: none.
    pub tell: u8,
    /// The flow was found by an alias: the packet's addresses are not those that policy sees.
    pub aliased: u8,
    pub pad: u8,
    /// The rule that decided, for the event.
    pub rule: u32,
    /// The endpoint that the run is about, and the direction seen from it.
    pub endpoint: u32,
    pub direction: u8,
    pub hook: u8,
    pub state: u8,
    pub pad2: u8,
    pub service: u32,
}

impl Default for Prefix {
    fn default() -> Self {
        Self {
            len: 128,
            words: [0; 4],
        }
    }
}
