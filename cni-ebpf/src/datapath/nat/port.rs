//! The search for a translated port.
//!
//! A connection tries the ports of the range in an order of its own: unguessable from outside (RFC 6056), and always the
//! same for the same connection. So one whose entry was evicted, or stands in a table that these programs do not read,
//! while its alias still stands, goes on under the port that its other side knows.

use super::{fill_alias, free, reply_tuple};
use crate::abi::{EXHAUSTED_PLACES, FlowKey, Port, Reason, Tuple, flow_flags, via};
use crate::datapath::headers::{ICMP_ANSWERER, proto};
use crate::datapath::work::entered;
use crate::datapath::{Packet, Table, Tables, Work, conntrack, lot};

/// Says that a port was found; 0 is a port, too, on the wire.
const TAKEN: u32 = 1 << 16;
/// How many ports are tried. Even with one port in a hundred free all tries fail once in thirty thousand.
const TRIES: u32 = 1024;
/// How many, while a search towards the same place has failed just now: whoever floods a place through us, or is refused
/// and asks again, must not cost a whole search each time.
const TRIES_IN_VAIN: u32 = 16;
/// The unit of the clock of failed searches, a power of two of nanoseconds, and how many of them they are remembered: 67
/// to 84 milliseconds.
const TICK: u32 = 24;
const TICKS: u32 = 4;
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
        // A quarter to three quarters of a turn: no three steps in a row end outside of the range, which is more than half.
        let quarter = (self.mask + 1) >> 2;
        let turns = 1 + ((order as u32) >> 31);
        self.stride = (order as u32 & quarter.wrapping_sub(1) & self.mask) | (quarter * turns) | 1;
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

/// Whether the packet has a port that may be changed: of ICMP only queries have an id.
#[inline(always)]
fn may_change(tuple: &Tuple) -> bool {
    !matches!(tuple.proto, proto::ICMP | proto::ICMPV6) || tuple.dst_port == ICMP_ANSWERER
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

/// What a search towards the destination of `work.out` is remembered by: the place in the map, and what stands there
/// above the time.
#[inline(always)]
fn destination(work: &Work) -> (u32, u32) {
    let Work { out, snat, .. } = work;
    let rest = u64::from(out.dst_port.wire()) << 16 | u64::from(out.proto);
    let hash = lot::mix(0, [out.dst.hi, out.dst.lo, snat.hi, snat.lo, rest]);
    (hash as u32 % EXHAUSTED_PLACES, (hash >> 32) as u32)
}

#[inline(always)]
fn ticks(now: u64) -> u32 {
    (now >> TICK) as u32
}

/// Whether a search towards the same destination has failed just now.
#[inline(always)]
fn in_vain<T: Tables>(tables: &T, work: &Work) -> bool {
    let (place, tag) = destination(work);
    tables.exhausted(place).is_some_and(|last| {
        let last = last.get();
        (last >> 32) as u32 == tag && ticks(work.now).wrapping_sub(last as u32) <= TICKS
    })
}

#[inline(always)]
fn remember_failure<T: Tables>(tables: &T, work: &Work) {
    let (place, tag) = destination(work);
    if let Some(last) = tables.exhausted(place) {
        last.set(u64::from(tag) << 32 | u64::from(ticks(work.now)));
    }
}

/// Whether a connection that is not translated has the tuple: the host's with a pod, whose socket may be closed already. Its
/// answers would be ours. Where the stack sends them they are looked for by their own tuple first, over or not.
#[inline(always)]
fn is_anothers_own<T: Tables>(tables: &T, work: &mut Work) -> bool {
    let Work {
        alias_tuple,
        plain_key,
        ..
    } = work;
    conntrack::key_of(alias_tuple, plain_key);
    let answered_by_stack = work.flow.via_reply == via::STACK;
    work.plain_key != work.key
        && conntrack::by_key(tables, &work.plain_key, work.now)
            .is_some_and(|found| answered_by_stack || !conntrack::is_abandoned(found.flow))
}

/// Finds a source port for `work.out` behind `work.snat` and enters the alias. `work.key` must be set. `work.keep_port`:
/// the port as it is comes first (the host's own flows, and SCTP, of which parts cannot be given another one).
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
    if work.out.proto == proto::SCTP {
        work.keep_port = 1;
    }
    let known = in_vain(tables, work);
    let tries = if known { TRIES_IN_VAIN } else { TRIES };
    tables.repeat(work.search.steps(tries), |_| {
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
        // The host's own flow has a socket on its own port: that is what it keeps. Where ports are few most are flows', and
        // sockets need not be asked for.
        if free(tables, work)
            && (work.keep_port != 0 || !packet.socket(&work.alias_tuple))
            && !is_anothers_own(tables, work)
            && tables
                .insert_alias(Table::New, &work.alias_tuple, &work.alias)
                .is_ok()
        {
            work.search.found = TAKEN | u32::from(work.alias_tuple.dst_port.wire());
            return false;
        }
        work.keep_port = 0;
        !fixed
    });
    if work.search.found == 0 {
        // Only a whole search says that there are none.
        if !(fixed || known) {
            remember_failure(tables, work);
        }
        return Err(Reason::NatExhausted);
    }
    work.flow.snat = work.snat;
    work.flow.snat_port = Port::from_wire(work.search.found as u16);
    work.flow.flags.set(work.flow.flags.get() | flow_flags::SNAT);
    work.entered |= entered::ANSWERED;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_search_tries_every_port_of_its_range_once_in_a_turn(a: u16, b: u16, order: u64) {
            let (first, last) = (a.min(b), a.max(b));
            let mut search = Search::default();
            search.begin(first.into(), last.into(), order);
            let mut seen = vec![false; usize::from(last - first) + 1];
            let mut outside = 0;
            for _ in 0..=search.mask {
                match search.port() {
                    Some(port) => {
                        let place = port.get().checked_sub(first).map(usize::from);
                        let place = place.and_then(|place| seen.get_mut(place));
                        prop_assert!(place.is_some_and(|seen| !std::mem::replace(seen, true)), "{port:?}");
                        outside = 0;
                    }
                    None => outside += 1,
                }
                prop_assert!(outside < 3, "a search must not run beside its range");
                search.advance();
            }
            prop_assert!(seen.iter().all(|seen| *seen));
            prop_assert!(search.steps(TRIES) <= 2 * TRIES);
        }
    }
}
