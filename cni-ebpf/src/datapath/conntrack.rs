//! Connections: finding them, aging them, moving them on.
//!
//! Nothing here waits for the agent. Both tables are LRU maps, so a table that is full gives up what was used least;
//! a connection enters the first table only when its other side has answered, and of TCP when the originator has said that
//! it heard that, so that a flood of first packets fills the second and evicts nobody who is talking. An entry whose idle
//! time is over counts as absent wherever it is found, and the timestamp is looked at in that moment and not by a collector.

use super::headers::{proto, tcp};
use super::policy::FROM_HOST;
use super::work::fragment;
use super::{BACK, Packet, Table, Tables, Work, nat};
use crate::abi::{
    Alias, Endpoint, Flow, FlowKey, Port, Reason, Settings, Tuple, event_kind, flow_flags, hook, put,
    tcp_state, via,
};

pub const SECOND: u64 = 1_000_000_000;

/// How long a flow may be silent, in seconds.
pub mod timeout {
    pub const TCP_NEW: u64 = 60;
    pub const TCP_ESTABLISHED: u64 = 24 * 3600;
    /// One side has ended: the other may think for long before it answers. kube-proxy has the stack wait so long too.
    pub const TCP_FIN_WAIT: u64 = 3600;
    pub const TCP_TIME_WAIT: u64 = 30;
    pub const TCP_CLOSED: u64 = 10;
    pub const DATAGRAM_NEW: u64 = 60;
    pub const DATAGRAM_ESTABLISHED: u64 = 180;
    pub const SCTP_ESTABLISHED: u64 = 6 * 3600;
    pub const ICMP: u64 = 30;
}

/// The idle time after which a flow in this state is over, in seconds.
#[inline(always)]
pub fn idle_timeout(protocol: u8, state: u8) -> u64 {
    match (protocol, state) {
        (proto::TCP, tcp_state::NEW) => timeout::TCP_NEW,
        (proto::TCP, tcp_state::ESTABLISHED) => timeout::TCP_ESTABLISHED,
        (proto::TCP, tcp_state::FIN_WAIT) => timeout::TCP_FIN_WAIT,
        (proto::TCP, tcp_state::TIME_WAIT) => timeout::TCP_TIME_WAIT,
        (proto::TCP, _) => timeout::TCP_CLOSED,
        (proto::ICMP | proto::ICMPV6, _) => timeout::ICMP,
        (proto::SCTP, tcp_state::ESTABLISHED) => timeout::SCTP_ESTABLISHED,
        (_, tcp_state::ESTABLISHED) => timeout::DATAGRAM_ESTABLISHED,
        _ => timeout::DATAGRAM_NEW,
    }
}

/// Whether the flow's idle time is over.
#[inline(always)]
pub fn expired(protocol: u8, flow: &Flow, now: u64) -> bool {
    now.saturating_sub(flow.seen.get()) > idle_timeout(protocol, flow.state.get()) * SECOND
}

/// Whether (`a`, `a_port`) is the smaller side.
#[inline(always)]
fn ordered(tuple: &Tuple) -> bool {
    let Tuple {
        src,
        dst,
        src_port,
        dst_port,
        ..
    } = tuple;
    if src.hi != dst.hi {
        src.hi < dst.hi
    } else if src.lo != dst.lo {
        src.lo < dst.lo
    } else {
        src_port.wire() <= dst_port.wire()
    }
}

/// Writes the key of `tuple`'s flow; true if the sender is side `a`.
#[inline(always)]
pub fn key_of(tuple: &Tuple, key: &mut FlowKey) -> bool {
    let from_a = ordered(tuple);
    if from_a {
        key.a = tuple.src;
        key.b = tuple.dst;
        key.a_port = tuple.src_port;
        key.b_port = tuple.dst_port;
    } else {
        key.a = tuple.dst;
        key.b = tuple.src;
        key.a_port = tuple.dst_port;
        key.b_port = tuple.src_port;
    }
    key.proto = tuple.proto;
    key.pad = 0;
    key.reserved = 0;
    from_a
}

/// The flow's tuple in the originator's direction, as policy sees it.
#[inline(always)]
pub fn forward_tuple(key: &FlowKey, flow: &Flow, out: &mut Tuple) {
    let origin_a = flow.flags.get() & flow_flags::ORIGIN_A != 0;
    oriented(key, origin_a, out);
}

/// The key as a tuple that side `a` (or `b`) sends.
#[inline(always)]
pub fn oriented(key: &FlowKey, from_a: bool, out: &mut Tuple) {
    if from_a {
        out.src = key.a;
        out.dst = key.b;
        out.src_port = key.a_port;
        out.dst_port = key.b_port;
    } else {
        out.src = key.b;
        out.dst = key.a;
        out.src_port = key.b_port;
        out.dst_port = key.a_port;
    }
    out.proto = key.proto;
    out.pad = 0;
    out.reserved = 0;
}

/// Whether the side of a flow for which an endpoint's number was `recorded` is what stands at its address now. Nothing is
/// recorded of a side that was not seen by the hook that entered the flow.
#[inline(always)]
pub(super) fn is_of(recorded: u32, endpoint: Option<&Endpoint>) -> bool {
    endpoint.is_none_or(|endpoint| recorded == endpoint.id || matches!(recorded, 0 | FROM_HOST))
}

/// A flow that a packet belongs to.
pub struct Found<'t> {
    pub flow: &'t Flow,
    pub table: Table,
}

/// Looks `key` up in both tables. What is over is not found.
#[inline(always)]
pub(super) fn by_key<'t, T: Tables>(tables: &'t T, key: &FlowKey, now: u64) -> Option<Found<'t>> {
    if let Some(flow) = tables.flow(Table::Established, key)
        && !expired(key.proto, flow, now)
    {
        return Some(Found {
            flow,
            table: Table::Established,
        });
    }
    let flow = tables.flow(Table::New, key)?;
    (!expired(key.proto, flow, now)).then_some(Found {
        flow,
        table: Table::New,
    })
}

/// Finds the flow of `work.tuple`: by its own key, then by an alias. Sets `work.key`, `work.reply` and `work.aliased`.
/// Nothing is changed: whose packet it is, and whether it may pass, is not known yet.
#[inline(always)]
pub(super) fn find<'t, T: Tables>(tables: &'t T, work: &mut Work) -> Option<Found<'t>> {
    let from_a = key_of(&work.tuple, &mut work.key);
    work.aliased = 0;
    work.past = 0;
    work.rival = 0;
    if let Some(found) = by_key(tables, &work.key, work.now) {
        let origin_a = found.flow.flags.get() & flow_flags::ORIGIN_A != 0;
        work.reply = u8::from(origin_a != from_a);
        work.rival = u8::from(is_rival(work, found.flow));
        // It never has what bears a port that it gave up, over or not.
        if work.rival == 0 && !gave_way(work, found.flow) {
            if !is_over(found.flow) {
                return usable(work, found);
            }
            work.past = found.flow.created;
        }
    }
    // Behind a translation another may have begun since, with the same ends on one side of it.
    if let Some(alias) = by_alias(tables, &work.tuple)
        && (work.past == 0 || succeeds(tables, work, alias))
    {
        return behind(tables, work, alias);
    }
    if work.past == 0 || begins(work) {
        return None;
    }
    let found = by_key(tables, &work.key, work.now)?;
    usable(work, found)
}

/// Whether the packet bears the port that the flow's originator has given up to another flow, which is answered by it:
/// to somebody behind the node, or to one of its own.
#[inline(always)]
fn gave_way(work: &Work, flow: &Flow) -> bool {
    work.reply != 0
        && flow.flags.get() & flow_flags::SNAT != 0
        && work.tuple.dst_port != flow.snat_port
        && work.tuple.dst == flow.snat
}

/// Whether the packet goes where the flow does, and was sent there by its own sender: the flow's originator dialled a Service,
/// and is answered in its name. One socket may send to both. What the stack hands to a pod it may have translated itself.
#[inline(always)]
fn is_rival(work: &Work, flow: &Flow) -> bool {
    work.reply == 0 && work.hook != hook::TO_POD && flow.flags.get() & flow_flags::DNAT != 0
}

/// Whether the flow behind the alias is younger than the one that may be over.
#[inline(always)]
fn succeeds<T: Tables>(tables: &T, work: &Work, alias: &Alias) -> bool {
    by_key(tables, &alias.flow, work.now)
        .is_some_and(|found| found.flow.created >= work.past && nat::leads_to(alias, found.flow, &work.tuple))
}

/// Whether another connection may have taken the flow's place without taking its key: a side has ended it, or the stack
/// was to carry it and nobody has answered. What the stack does not know its way to any more, a Service whose proxy is
/// gone, may be ours by now. What is translated here keeps its translation when it is sent again.
#[inline(always)]
fn is_over(flow: &Flow) -> bool {
    let settled = flow_flags::REPLIED | flow_flags::DNAT | flow_flags::SNAT;
    ended(flow) || flow.via_forward == via::STACK && flow.flags.get() & settled == 0
}

/// Whether somebody else than the flow's own client may take its ends: both sides have ended the stream, or one by a reset. Where
/// one side has said its last word the other may still speak.
#[inline(always)]
pub(super) fn is_abandoned(flow: &Flow) -> bool {
    flow.state.get() >= tcp_state::TIME_WAIT
}

/// Whether a side has reset the stream, and did not go on after it.
#[inline(always)]
pub(super) fn was_reset(flow: &Flow) -> bool {
    flow.state.get() == tcp_state::CLOSED
}

/// The flow to which an alias of `work.tuple` leads. Sets `work.key`, `work.reply` and `work.aliased`.
#[inline(always)]
pub(super) fn behind<'t, T: Tables>(tables: &'t T, work: &mut Work, alias: &Alias) -> Option<Found<'t>> {
    work.aliased = 1;
    work.key.copy_from(&alias.flow);
    work.reply = alias.reply as u8;
    let found = by_key(tables, &work.key, work.now)?;
    if !nat::leads_to(alias, found.flow, &work.tuple) {
        return None;
    }
    usable(work, found)
}

#[inline(always)]
pub(super) fn by_alias<'t, T: Tables>(tables: &'t T, tuple: &Tuple) -> Option<&'t Alias> {
    tables
        .alias(Table::Established, tuple)
        .or_else(|| tables.alias(Table::New, tuple))
}

/// The first packet of a TCP connection.
#[inline(always)]
pub(super) fn begins(work: &Work) -> bool {
    let flags = work.headers.tcp_flags;
    work.tuple.proto == proto::TCP && flags & tcp::SYN != 0 && flags & tcp::ACK == 0
}

/// Whether a side has ended the flow. One that this node knows by its last packets only is new, and over all the same.
#[inline(always)]
pub(super) fn ended(flow: &Flow) -> bool {
    let flags = flow.tcp_forward.get() | flow.tcp_reply.get();
    flow.state.get() >= tcp_state::FIN_WAIT || flags & (tcp::FIN | tcp::RST) != 0
}

/// A new connection may begin where an old one with the same tuple has ended; and an ICMP query is never an answer,
/// whatever its id.
#[inline(always)]
fn usable<'t>(work: &Work, found: Found<'t>) -> Option<Found<'t>> {
    let icmp = work.tuple.proto == proto::ICMP || work.tuple.proto == proto::ICMPV6;
    if icmp && work.headers.fragment != fragment::LATER && work.reply != work.headers.icmp_reply {
        return None;
    }
    if begins(work) && ended(found.flow) {
        return None;
    }
    Some(found)
}

/// Notes the packet on its flow: time, counters, state.
#[inline(always)]
pub(super) fn advance<P: Packet>(packet: &P, work: &mut Work, flow: &Flow) {
    let bytes = u64::from(packet.length());
    flow.seen.set(work.now);
    let seen = if work.reply == 0 {
        flow.packets_forward.add(1);
        flow.bytes_forward.add(bytes);
        &flow.tcp_forward
    } else {
        flow.packets_reply.add(1);
        flow.bytes_reply.add(bytes);
        &flow.tcp_reply
    };
    let before = flow.state.get();
    let mut state = before;
    let flags = work.headers.tcp_flags;
    // Who goes on after a reset of its own did not send it: it was forged. A later fragment shows no flags.
    let revived = flags != 0 && flags & tcp::RST == 0 && seen.get() & tcp::RST != 0;
    if work.tuple.proto == proto::TCP && (revived || flags & !seen.get() != 0) {
        if revived {
            seen.set(seen.get() & !tcp::RST);
            state = unended(work, flow);
        }
        seen.set(seen.get() | flags);
        work.tell = event_kind::FLAGS;
        let both = flow.tcp_forward.get() & flow.tcp_reply.get();
        let any = flow.tcp_forward.get() | flow.tcp_reply.get();
        if any & tcp::RST != 0 {
            state = tcp_state::CLOSED;
        } else if both & tcp::FIN != 0 {
            state = tcp_state::TIME_WAIT;
        } else if any & tcp::FIN != 0 {
            state = tcp_state::FIN_WAIT;
        }
    }
    if work.reply != 0 && flow.flags.get() & flow_flags::REPLIED == 0 {
        flow.flags.set(flow.flags.get() | flow_flags::REPLIED);
    }
    if state == tcp_state::NEW {
        state = unended(work, flow);
    }
    if state != before {
        flow.state.set(state);
        if state >= tcp_state::TIME_WAIT {
            work.tell = event_kind::CLOSE;
        }
    }
    work.state = state;
}

/// The state of a flow that nobody has ended. An answer to a SYN says nothing of who sent that: the one that it bears must
/// have heard it, and says so. Where answers go another way, what the originator says is all that tells of them.
#[inline(always)]
fn unended(work: &Work, flow: &Flow) -> u8 {
    let heard = work.tuple.proto != proto::TCP || flow.tcp_forward.get() & tcp::ACK != 0;
    if heard && flow.flags.get() & (flow_flags::REPLIED | flow_flags::DSR) != 0 {
        tcp_state::ESTABLISHED
    } else {
        tcp_state::NEW
    }
}

/// Whether the flow is to move to the table that floods do not reach: both sides have heard each other. ICMP stays: a
/// query ends with its answer, and pings of a scan must not evict connections. So does what was answered by a reset.
#[inline(always)]
pub(super) fn ripe(work: &Work, table: Table) -> bool {
    let icmp = work.key.proto == proto::ICMP || work.key.proto == proto::ICMPV6;
    table == Table::New && !icmp && work.state == tcp_state::ESTABLISHED
}

/// Whether the packet may begin a connection: an answer or a reset is one to something that is not there.
#[inline(always)]
pub(super) fn may_begin<T: Tables, P: Packet>(tables: &T, packet: &P, work: &Work) -> Result<(), Reason> {
    is_nobodys(tables, packet, work)?;
    if work.headers.icmp_reply != 0 || work.headers.tcp_flags & tcp::RST != 0 {
        return Err(Reason::InvalidState);
    }
    Ok(())
}

/// That no other load's program knows the packet's connection, as far as it can be known. Who led what is in the midst of one
/// to a new backend, or to the stack, would have it reset; datagrams begin one where nobody knows them.
#[inline(always)]
pub(super) fn is_nobodys<T: Tables, P: Packet>(tables: &T, packet: &P, work: &Work) -> Result<(), Reason> {
    if amidst(work) && unsettled(tables, work) {
        return Err(Reason::Unsettled);
    }
    ask_others(tables, packet, work)
}

/// Has the other load's programs look at a packet of which this one's know nothing. What comes back goes on.
#[inline(always)]
pub(super) fn ask_others<T: Tables, P: Packet>(tables: &T, packet: &P, work: &Work) -> Result<(), Reason> {
    let hands_over = |settings: &Settings| settings.hands_over != 0 && is_replacing(settings, work);
    if !begins(work) && tables.settings().is_some_and(hands_over) && packet.handed_over(work.hook) < BACK {
        return Err(Reason::Unsettled);
    }
    Ok(())
}

/// A packet of TCP that does not begin a connection.
#[inline(always)]
pub(super) fn amidst(work: &Work) -> bool {
    work.tuple.proto == proto::TCP && !begins(work)
}

/// Whether connections may be unknown that programs of another layout have let through. Where Services are not ours nothing is
/// held back for that: what is translated by masquerade alone is found again by its alias, unless the table of those is replaced
/// too, and what is not translated begins anew without a loss.
#[inline(always)]
pub(super) fn unsettled<T: Tables>(tables: &T, work: &Work) -> bool {
    tables.config().has_services() != 0
        && tables
            .settings()
            .is_some_and(|settings| is_replacing(settings, work))
}

/// Whether programs are being replaced by those of another layout.
#[inline(always)]
fn is_replacing(settings: &Settings, work: &Work) -> bool {
    settings.unsettled_until > work.now
}

/// Enters `work.flow` as a new connection with the tuple `work.out` in the originator's direction.
#[inline(always)]
pub(super) fn begin<P: Packet>(packet: &P, work: &mut Work) {
    let from_a = key_of(&work.out, &mut work.key);
    let Work { flow, .. } = work;
    flow.seen.set(work.now);
    flow.created = work.now;
    flow.packets_forward.set(1);
    flow.packets_reply.set(0);
    flow.bytes_forward.set(u64::from(packet.length()));
    flow.bytes_reply.set(0);
    flow.dnat.clear();
    flow.snat.clear();
    put(&mut flow.dnat_port, Port::ZERO);
    put(&mut flow.snat_port, Port::ZERO);
    flow.egress_bits.set(0);
    flow.ingress_bits.set(0);
    flow.egress_word.set(0);
    flow.ingress_word.set(0);
    flow.egress_generation.set(0);
    flow.ingress_generation.set(0);
    flow.egress_rule.set(0);
    flow.ingress_rule.set(0);
    flow.class_epoch.set(0);
    flow.ingress_ifindex = packet.ifindex();
    put(&mut flow.service, 0);
    put(&mut flow.backend, 0);
    flow.alias_seen.set(nat::seconds(work.now));
    flow.flags.set(if from_a { flow_flags::ORIGIN_A } else { 0 });
    flow.state.set(tcp_state::NEW);
    flow.tcp_forward.set(work.headers.tcp_flags);
    flow.tcp_reply.set(0);
    put(&mut flow.via_forward, 0);
    put(&mut flow.via_reply, 0);
    put(&mut flow.pad, 0);
    put(&mut flow.source_endpoint, 0);
    put(&mut flow.destination_endpoint, 0);
    for word in &mut flow.reserved {
        put(word, 0);
    }
    work.reply = 0;
    work.state = tcp_state::NEW;
    work.tell = event_kind::NEW;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::abi::Addr;

    fn tuple() -> impl Strategy<Value = Tuple> {
        // Few of each, so that sides are often equal in one part.
        let side = || (0..2u64, 0..2u64, 0..3u16);
        (side(), side(), any::<u8>()).prop_map(|((hi, lo, port), (far_hi, far_lo, far_port), proto)| Tuple {
            src: Addr { hi, lo },
            dst: Addr {
                hi: far_hi,
                lo: far_lo,
            },
            src_port: Port::new(port << 7),
            dst_port: Port::new(far_port << 7),
            proto,
            ..Tuple::default()
        })
    }

    proptest! {
        #[test]
        fn both_directions_of_a_flow_have_one_key_and_each_is_read_back_from_it(tuple in tuple()) {
            let reversed = Tuple {
                src: tuple.dst,
                dst: tuple.src,
                src_port: tuple.dst_port,
                dst_port: tuple.src_port,
                ..tuple
            };
            let (mut there, mut back, mut read) = (FlowKey::default(), FlowKey::default(), Tuple::default());
            let from_a = key_of(&tuple, &mut there);
            let back_from_a = key_of(&reversed, &mut back);
            prop_assert_eq!(there, back);
            prop_assert!(from_a != back_from_a || tuple == reversed);
            oriented(&there, from_a, &mut read);
            prop_assert_eq!(read, tuple);
            oriented(&there, !from_a, &mut read);
            prop_assert_eq!(read, reversed);
        }
    }
}
