//! The search for a translated port.
//!
//! A connection tries the ports of the range in an order of its own: unguessable from outside (RFC 6056), and always the
//! same for the same connection. So one whose entry was evicted, or stands in a table that these programs do not read,
//! while its alias still stands, goes on under the port that its other side knows.

use super::{fill_alias, reply_tuple, take};
use crate::abi::{FlowKey, Port, Reason, Tuple, flow_flags};
use crate::datapath::headers::{ICMP_ANSWERER, proto};
use crate::datapath::work::entered;
use crate::datapath::{Packet, Table, Tables, Work, conntrack, lot};

/// Says that a port was found; 0 is a port, too, on the wire.
const TAKEN: u32 = 1 << 16;
/// How many ports are tried. Even with one port in a hundred free all tries fail once in thirty thousand.
const TRIES: u32 = 1024;
/// In how many places a connection that has begun already looks for its alias.
const RECALLED: u32 = 4;
/// The state of a search. It stands in the scratch because the stack of a step is what others leave of it.
#[derive(Clone, Default, Debug)]
#[repr(C)]
pub struct Search {
    /// The first port of the range, and how many there are.
    pub first: u32,
    pub size: u32,
    /// One less than the power of two that is not smaller than the range. Modulo this an odd stride visits every place;
    /// those outside of the range are passed over.
    pub mask: u32,
    pub place: u32,
    pub stride: u32,
    /// The port on the wire with a bit above it; 0: none yet.
    pub found: u32,
}

impl Search {
    #[inline(always)]
    fn begin(&mut self, first: u32, last: u32, order: u64) {
        self.first = first;
        self.size = (last.wrapping_sub(first) & 0xffff) + 1;
        self.mask = self.size.next_power_of_two().wrapping_sub(1);
        self.place = (order >> 32) as u32 & self.mask;
        self.stride = order as u32 | 1;
        self.found = 0;
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.place = self.place.wrapping_add(self.stride) & self.mask;
    }

    /// The port in this place, if the range reaches so far.
    #[inline(always)]
    fn port(&self) -> Option<Port> {
        (self.place < self.size).then(|| Port::new(self.first.wrapping_add(self.place) as u16))
    }

    /// How many steps so many tries take: up to half of the places are passed over.
    #[inline(always)]
    fn steps(&self, tries: u32) -> u32 {
        if self.size > self.mask { tries } else { tries * 2 }
    }
}

/// Whether the packet has a port that may be changed: SCTP's checksum is a CRC over the whole packet, and of ICMP only
/// queries have an id.
#[inline(always)]
fn may_change(tuple: &Tuple) -> bool {
    match tuple.proto {
        proto::SCTP => false,
        proto::ICMP | proto::ICMPV6 => tuple.dst_port == ICMP_ANSWERER,
        _ => true,
    }
}

/// The number that decides in which order a connection tries the ports.
#[inline(always)]
fn order<T: Tables>(tables: &T, key: &FlowKey) -> u64 {
    let ports =
        u64::from(key.a_port.wire()) << 32 | u64::from(key.b_port.wire()) << 16 | u64::from(key.proto);
    lot::draw(tables, [key.a.hi, key.a.lo, key.b.hi, key.b.lo, ports])
}

/// The tuple of an answer to the port in this place, into `work.alias_tuple`. False if the range does not reach so far.
#[inline(always)]
fn answer_to_place(work: &mut Work) -> bool {
    let Work {
        search,
        out,
        snat,
        alias_tuple,
        ..
    } = work;
    let Some(port) = search.port() else { return false };
    reply_tuple(out, snat, port, alias_tuple);
    true
}

/// Goes to the place among the first in which the connection's own alias stands; stays where it is if there is none.
#[inline(always)]
fn recall<T: Tables>(tables: &T, work: &mut Work) {
    let first = work.search.place;
    tables.repeat(work.search.steps(RECALLED), |_| {
        if answer_to_place(work)
            && let Some(alias) = conntrack::by_alias(tables, &work.alias_tuple)
            && alias.flow == work.key
        {
            work.search.found = TAKEN;
            return false;
        }
        work.search.advance();
        true
    });
    if work.search.found == 0 {
        work.search.place = first;
        return;
    }
    work.search.found = 0;
    work.keep_port = 0;
}

/// Finds a source port for `work.out` behind `work.snat` and enters the alias. `work.key` must be set. `work.keep_port`:
/// the port as it is comes first (the host's own flows).
#[inline(always)]
pub(crate) fn allocate<T: Tables, P: Packet>(tables: &T, packet: &P, work: &mut Work) -> Result<(), Reason> {
    let config = tables.config();
    let order = order(tables, &work.key);
    work.search.begin(config.first_port(), config.last_port(), order);
    let endpoint = work.flow.source_endpoint;
    fill_alias(work, 1, endpoint);
    let fixed = !may_change(&work.out);
    // Of datagrams nobody knows which is the first, and looking costs as much as entering the flow.
    if work.out.proto == proto::TCP && !conntrack::begins(work) {
        recall(tables, work);
    }
    tables.repeat(work.search.steps(TRIES), |_| {
        let own = fixed || work.keep_port != 0;
        if own {
            let Work {
                out,
                snat,
                alias_tuple,
                ..
            } = work;
            reply_tuple(out, snat, out.src_port, alias_tuple);
        } else {
            let within = answer_to_place(work);
            work.search.advance();
            if !within {
                return true;
            }
        }
        // The host's own flow has a socket on its own port: that is what it keeps.
        let busy = work.keep_port == 0 && packet.socket(&work.alias_tuple);
        if !busy && take(tables, work, Table::New) {
            work.search.found = TAKEN | u32::from(work.alias_tuple.dst_port.wire());
            return false;
        }
        work.keep_port = 0;
        !fixed
    });
    if work.search.found == 0 {
        return Err(Reason::NatExhausted);
    }
    work.flow.snat = work.snat;
    work.flow.snat_port = Port::from_wire(work.search.found as u16);
    work.flow.flags.set(work.flow.flags.get() | flow_flags::SNAT);
    work.entered |= entered::ANSWERED;
    Ok(())
}
