//! What the datapath asks of the world: maps, the clock, and what the kernel knows about a packet.
//!
//! Two implementations stand behind each trait: the kernel's (`bpf/`, maps and helpers) and the one in memory that
//! tests use on the host ([`memory`](super::memory)).

use super::Work;
use super::stage::Stage;
use crate::abi::*;

/// The two tables a connection can stand in. A flood of new connections fills the second and evicts nobody from the
/// first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    /// Both sides have heard each other.
    Established,
    /// The others: not answered, or with an answer that the originator has not confirmed.
    New,
}

/// The table had no room, or the key was already there when it had to be new.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotInserted;

/// Maps and clock. Look-ups give references into map memory; what the kernel may change meanwhile is
/// [`Racy`](crate::abi::Racy).
pub trait Tables {
    fn config(&self) -> &Config;
    fn settings(&self) -> Option<&Settings>;
    fn secrets(&self) -> Option<&Secrets>;
    /// What this place of the map `exhausted` holds.
    fn exhausted(&self, place: u32) -> Option<&Racy<u64>>;
    /// Coarse monotonic nanoseconds.
    fn now(&self) -> u64;
    fn random(&self) -> u32;

    fn endpoint(&self, addr: &Addr) -> Option<&Endpoint>;
    /// The endpoint with this number, as long as it has not gone.
    fn endpoint_of(&self, id: u32) -> Option<&Endpoint>;
    fn peer(&self, addr: &Addr) -> Option<&Peer>;
    fn route(&self, prefix: &Prefix) -> Option<&Route>;
    fn device(&self, ifindex: u32) -> Option<&Device>;

    fn flow(&self, table: Table, key: &FlowKey) -> Option<&Flow>;
    /// Inserts or replaces.
    fn insert_flow(&self, table: Table, key: &FlowKey, flow: &Flow) -> Result<(), NotInserted>;
    fn remove_flow(&self, table: Table, key: &FlowKey);
    fn alias(&self, table: Table, tuple: &Tuple) -> Option<&Alias>;
    /// Inserts only if the tuple is not there.
    fn insert_alias(&self, table: Table, tuple: &Tuple, alias: &Alias) -> Result<(), NotInserted>;
    fn remove_alias(&self, table: Table, tuple: &Tuple);
    fn fragment(&self, key: &FragmentKey) -> Option<&Fragment>;
    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment) -> Result<(), NotInserted>;

    fn rule_set(&self, id: u32) -> Option<&RuleSet>;
    fn rules(&self, key: &RuleKey) -> Option<&RuleList>;
    fn groups(&self, key: &GroupKey) -> Option<&GroupChunk>;
    fn class_bits(&self, key: &ClassKey) -> Option<&ClassBits>;
    fn cidr(&self, prefix: &Prefix) -> Option<&u32>;
    fn grant(&self, key: &GrantKey) -> Option<&Grant>;

    fn service(&self, key: &ServiceKey) -> Option<&Service>;
    /// What stands in this place: [`Slot::read`] it.
    fn slot(&self, place: u32) -> Option<&Slot>;
    fn member(&self, key: &MemberKey) -> Option<&u32>;
    fn backend(&self, id: &u32) -> Option<&Backend>;
    fn maglev(&self, key: &MaglevKey) -> Option<&MaglevChunk>;
    fn source_range(&self, source: &SourceRange) -> Option<&u32>;
    fn affinity(&self, client: &AffinityKey) -> Option<&Affinity>;
    /// Inserts or replaces. Where there is no room, the client is a new one next time.
    fn remember_client(&self, client: &AffinityKey, last: &Affinity);
    fn socket(&self, key: &SocketKey) -> Option<&Dialled>;
    /// Inserts or replaces. Where there is no room, the socket sees its backend as its peer.
    fn remember_socket(&self, key: &SocketKey, dialled: &Dialled);

    /// How many connections of a Service have begun.
    fn opened(&self, service: &u32) -> Option<&Racy<u64>>;
    /// The first of them begins. Where there is no room it is not counted.
    fn remember_opened(&self, service: &u32);

    fn bucket(&self, key: u32) -> Option<&Bucket>;

    /// Counts a packet; reason 0 is "passed".
    fn count(&self, reason: u8, direction: u8, bytes: u32);
    /// Whether somebody reads events.
    fn listened(&self) -> bool;
    fn event(&self, event: &Event);

    /// Calls `step` with 0, 1, ... until it returns false, at most `times` times. The verifier looks at `step` once.
    fn repeat<F: FnMut(u32) -> bool>(&self, times: u32, step: F);
}

/// What the kernel's routing table says about a destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fib {
    /// Leave through this device, to this neighbour ([`Addr::UNSPECIFIED`]: the destination itself).
    Device { ifindex: u32, gateway: Addr },
    /// The packet is the stack's own business (local address, unreachable route with an error to send, ...).
    Stack,
    /// The stack would say so: the route, or what was learned of it, carries no packets larger than `mtu`.
    TooBig { mtu: u32 },
    /// No route.
    Unroutable,
}

/// A neighbour that the kernel can send to at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hop {
    pub ifindex: u32,
    /// As in [`Fib::Device`].
    pub gateway: Addr,
    /// The link addresses of the neighbour and of the device, as they stand in a frame.
    pub link: [u16; 6],
}

/// The kernel refused to change the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotRewritten;

/// Instead of a segment size: a list of segments of the sizes that their sender chose (SCTP's), which it made for the path that
/// it knows (`include/linux/skbuff.h`).
pub const GSO_BY_FRAGS: u32 = 0xffff;

/// The packet, and what the kernel can tell about it.
/// To the other load's program, and back.
pub const BACK: u32 = 2;

pub trait Packet {
    /// Length with all headers.
    fn length(&self) -> u32;
    /// The device on which the program runs.
    fn ifindex(&self) -> u32;
    /// The device by which the packet entered the host; 0: the host itself made it.
    fn ingress_ifindex(&self) -> u32;
    fn mark(&self) -> u32;
    /// A VLAN tag stands beside the packet.
    fn vlan(&self) -> bool;
    /// How often it was handed over at this hook, while programs are being replaced; [`BACK`]: neither load's programs know it.
    fn handed_over(&self, hook: u8) -> u32;
    /// Size of the segments that this packet will be cut into, or [`GSO_BY_FRAGS`]; 0: it is sent as it is.
    fn segment_size(&self) -> u32;
    /// The remote end and number of the tunnel that the packet came through.
    fn tunnel_source(&self) -> Option<(Addr, u32)>;

    /// Runs a stage: in place, or where it is compiled apart. 0, or the number of a [`Reason`].
    #[inline(always)]
    fn apart<T: Tables>(&mut self, stage: Stage, tables: &T, work: &mut Work) -> u32
    where
        Self: Sized,
    {
        super::stage::run(stage, tables, self, work)
    }

    /// A value of two bytes or more out of the first kilobyte; `None` behind the packet's end.
    fn load<T: Plain + Copy>(&self, offset: u32) -> Option<T>;
    /// Writes; with `checksum`, a checksum that the device computed over the packet is corrected.
    fn store<T: Plain>(&mut self, offset: u32, value: &T, checksum: bool) -> Result<(), NotRewritten>;
    /// Writes where it stands, which no call does as quickly: what a device may have summed up is told by
    /// [`changed`](Self::changed), unless it cancels out.
    fn write<T: Plain + Copy>(&mut self, offset: u32, value: &T) -> Result<(), NotRewritten>;
    /// A word of the packet that a device may have summed up was `from` and is `to`.
    fn changed(&mut self, from: u16, to: u16);
    /// Corrects the 16-bit checksum at `offset` for a changed header word of `size` bytes (2 or 4).
    fn replace_l3_checksum(&mut self, offset: u32, from: u32, to: u32, size: u32)
    -> Result<(), NotRewritten>;
    /// The same for the transport's; `pseudo` if the word stands in the pseudo header, `zero_is_none` for UDP.
    fn replace_l4_checksum(
        &mut self,
        offset: u32,
        from: u32,
        to: u32,
        size: u32,
        pseudo: bool,
        zero_is_none: bool,
    ) -> Result<(), NotRewritten>;
    /// The same for a difference that is already a one's complement sum.
    fn add_l4_checksum(
        &mut self,
        offset: u32,
        sum: u32,
        pseudo: bool,
        zero_is_none: bool,
    ) -> Result<(), NotRewritten>;

    /// Makes the packet so many bytes long, which is at most what it is.
    fn cut(&mut self, length: u32) -> Result<(), NotRewritten>;
    /// Makes room behind the link header. What stands there is for the caller to write.
    fn widen(&mut self, bytes: u32) -> Result<(), NotRewritten>;

    /// The kernel's route from `src` to `dst` for packets of `length` bytes.
    fn fib(&self, src: &Addr, dst: &Addr, length: u32) -> Fib;
    /// The frame is for this host, whatever link address it bears.
    fn claim(&mut self);
    /// A socket of this host receives this tuple.
    fn socket(&self, tuple: &Tuple) -> bool;
}

/// A packet that the stack has not seen yet, and that leaves without it.
pub trait Wire: Packet {
    /// The neighbour behind which `dst` lies for packets from `src` of `length` bytes. `None` where the stack would have to do
    /// something: ask who has the address, refuse the packet, receive it.
    fn hop(&self, src: &Addr, dst: &Addr, length: u32) -> Option<Hop>;
}
