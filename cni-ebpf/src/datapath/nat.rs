//! Source translation, and the aliases under which translated tuples find their flow.
//!
//! A flow and its aliases live and die together. The direction that does not pass through an alias looks after it once
//! a second and enters it again if it went missing; an alias whose flow is gone is free for whoever needs the tuple.
//! So there is no collector and nothing that it could delete too early.

mod port;

use super::conntrack::{self, SECOND};
use super::headers::tcp;
use super::work::entered;
use super::{Packet, Table, Tables, Work};
use crate::abi::{Addr, Alias, Flow, FlowKey, Port, Reason, Tuple, flow_flags, tcp_state};

pub use port::Search;
pub(super) use port::allocate;

/// The tuple in which a reply to a source-translated flow arrives. `forward` is the flow's own.
#[inline(always)]
fn reply_tuple(forward: &Tuple, snat: &Addr, snat_port: Port, out: &mut Tuple) {
    out.src = forward.dst;
    out.dst = *snat;
    out.src_port = forward.dst_port;
    out.dst_port = snat_port;
    out.proto = forward.proto;
    out.pad = 0;
    out.reserved = 0;
}

/// The tuple that the originator of a destination-translated flow dialled.
#[inline(always)]
fn dialled_tuple(forward: &Tuple, dnat: &Addr, dnat_port: Port, out: &mut Tuple) {
    out.src = forward.src;
    out.dst = *dnat;
    out.src_port = forward.src_port;
    out.dst_port = dnat_port;
    out.proto = forward.proto;
    out.pad = 0;
    out.reserved = 0;
}

/// The clock of aliases: they are looked after once a second.
#[inline(always)]
pub(super) fn seconds(now: u64) -> u32 {
    (now / SECOND) as u32
}

#[inline(always)]
fn fill_alias(work: &mut Work, reply: u32, endpoint: u32) {
    work.alias.flow.copy_from(&work.key);
    work.alias.created = seconds(work.now);
    work.alias.seen.set(seconds(work.now));
    work.alias.reply = reply;
    work.alias.endpoint = endpoint;
}

/// An alias without a flow is given this long, in seconds: its flow is entered right after it, perhaps by another CPU
/// this moment.
const GRACE: u32 = 1;

/// Makes `work.alias_tuple` free in this table for `work.key`. False if another living flow has it there.
#[inline(always)]
fn vacate<T: Tables>(tables: &T, work: &Work, table: Table) -> bool {
    let Some(alias) = tables.alias(table, &work.alias_tuple) else {
        return true;
    };
    if alias.flow != work.key && taken(tables, work, alias) {
        return false;
    }
    tables.remove_alias(table, &work.alias_tuple);
    true
}

/// Whether the alias under `work.alias_tuple` leads to a flow that lives and has this tuple still.
#[inline(always)]
fn taken<T: Tables>(tables: &T, work: &Work, alias: &Alias) -> bool {
    let Some(found) = conntrack::by_key(tables, &alias.flow, work.now) else {
        return seconds(work.now).saturating_sub(alias.created) <= GRACE;
    };
    leads_to(alias, found.flow, &work.alias_tuple)
}

/// Whether the alias that stands under `tuple` is still that of the flow: one that began again with another port has left
/// the old one behind.
#[inline(always)]
pub(super) fn leads_to(alias: &Alias, flow: &Flow, tuple: &Tuple) -> bool {
    let (addr, port) = if alias.reply != 0 {
        (&flow.snat, flow.snat_port)
    } else {
        (&flow.dnat, flow.dnat_port)
    };
    *addr == tuple.dst && port == tuple.dst_port
}

/// Makes `work.alias_tuple` free for `work.key`. False if another living flow has it. Both tables count: a tuple must not
/// stand in one for one flow and in the other for another.
#[inline(always)]
fn free<T: Tables>(tables: &T, work: &Work) -> bool {
    vacate(tables, work, Table::Established) && vacate(tables, work, Table::New)
}

/// Whether the answers to `work.out` would be another flow's: one that is translated to this source and port.
#[inline(always)]
pub(super) fn is_disputed<T: Tables>(tables: &T, work: &mut Work) -> bool {
    work.alias_tuple = work.out.reversed();
    !free(tables, work)
}

/// Takes `work.alias_tuple` for `work.key`. False if another living flow has it.
#[inline(always)]
fn take<T: Tables>(tables: &T, work: &Work, table: Table) -> bool {
    free(tables, work) && tables.insert_alias(table, &work.alias_tuple, &work.alias).is_ok()
}

/// Enters the alias of a destination-translated flow: `work.tuple` is what was dialled.
#[inline(always)]
pub(super) fn enter_dialled<T: Tables>(tables: &T, work: &mut Work) -> Result<(), Reason> {
    let endpoint = work.flow.source_endpoint;
    fill_alias(work, 0, endpoint);
    work.alias_tuple = work.tuple;
    work.flow.dnat = work.tuple.dst;
    work.flow.dnat_port = work.tuple.dst_port;
    work.flow.flags.set(work.flow.flags.get() | flow_flags::DNAT);
    work.event.dnat = work.tuple.dst;
    work.event.dnat_port = work.tuple.dst_port;
    // It is the sender's own tuple: a flow that had it before is over, or this packet would have found it.
    tables.remove_alias(Table::Established, &work.alias_tuple);
    tables.remove_alias(Table::New, &work.alias_tuple);
    tables
        .insert_alias(Table::New, &work.alias_tuple, &work.alias)
        .map_err(|_| Reason::ConntrackFull)?;
    work.entered |= entered::DIALLED;
    Ok(())
}

/// Takes back what was entered for a connection whose first packet is refused after all.
#[inline(always)]
pub(super) fn withdraw<T: Tables>(tables: &T, work: &mut Work) {
    let Work {
        entered,
        key,
        flow,
        out,
        alias_tuple,
        ..
    } = work;
    if *entered & entered::FLOW != 0 {
        tables.remove_flow(Table::New, key);
    }
    conntrack::forward_tuple(key, flow, out);
    if *entered & entered::ANSWERED != 0 {
        reply_tuple(out, &flow.snat, flow.snat_port, alias_tuple);
        tables.remove_alias(Table::New, alias_tuple);
    }
    if *entered & entered::DIALLED != 0 {
        dialled_tuple(out, &flow.dnat, flow.dnat_port, alias_tuple);
        tables.remove_alias(Table::New, alias_tuple);
    }
}

/// Sets `work.alias_tuple` and `work.alias` to the alias that this direction of the flow does not pass through. False
/// if it has none. `work.out` is overwritten with the flow's forward tuple.
#[inline(always)]
fn other_alias(work: &mut Work, flow: &Flow, flags: u16, reply: bool) -> bool {
    let wanted = if reply { flow_flags::DNAT } else { flow_flags::SNAT };
    if flags & wanted == 0 {
        return false;
    }
    conntrack::forward_tuple(&work.key, flow, &mut work.out);
    let Work { out, alias_tuple, .. } = work;
    if reply {
        dialled_tuple(out, &flow.dnat, flow.dnat_port, alias_tuple);
    } else {
        reply_tuple(out, &flow.snat, flow.snat_port, alias_tuple);
    }
    fill_alias(work, u32::from(!reply), flow.source_endpoint);
    true
}

/// Whether it is time to look after the alias that this packet does not pass through: once a second.
#[inline(always)]
pub(super) fn due(work: &Work, flow: &Flow) -> bool {
    let wanted = if work.reply != 0 {
        flow_flags::DNAT
    } else {
        flow_flags::SNAT
    };
    flow.flags.get() & wanted != 0 && flow.alias_seen.get() != seconds(work.now)
}

/// Sees that the alias which this packet does not pass through still stands; enters it again if not. An error if
/// another flow has taken the tuple: this one is over then, and removed.
#[inline(always)]
pub(super) fn look_after<T: Tables>(tables: &T, work: &mut Work) -> Result<(), Reason> {
    let Some(found) = conntrack::by_key(tables, &work.key, work.now) else {
        return Ok(());
    };
    let (flow, table) = (found.flow, found.table);
    let reply = work.reply != 0;
    if !other_alias(work, flow, flow.flags.get(), reply) {
        return Ok(());
    }
    flow.alias_seen.set(seconds(work.now));
    if let Some(alias) = conntrack::by_alias(tables, &work.alias_tuple)
        && alias.flow == work.key
    {
        alias.seen.set(seconds(work.now));
        return Ok(());
    }
    if take(tables, work, table) {
        return Ok(());
    }
    tables.remove_flow(table, &work.key);
    Err(Reason::InvalidState)
}

/// Moves the flow of `work.key`, whose other side has answered, to the table that floods do not reach, and its aliases
/// with it. Where there is no room it stays where it is: it works there too.
#[inline(always)]
pub(super) fn promote<T: Tables>(tables: &T, work: &mut Work) -> Result<(), Reason> {
    let Some(flow) = tables.flow(Table::New, &work.key) else {
        return Ok(());
    };
    if tables.insert_flow(Table::Established, &work.key, flow).is_err() {
        return Ok(());
    }
    let flags = flow.flags.get();
    if flags & (flow_flags::SNAT | flow_flags::DNAT) != 0 {
        promote_aliases(tables, work, flow, flags);
    }
    tables.remove_flow(Table::New, &work.key);
    Ok(())
}

/// The aliases of a flow that was promoted follow it.
#[inline(always)]
fn promote_aliases<T: Tables>(tables: &T, work: &mut Work, flow: &Flow, flags: u16) {
    if other_alias(work, flow, flags, false) {
        promote_alias(tables, work);
    }
    if other_alias(work, flow, flags, true) {
        promote_alias(tables, work);
    }
}

#[inline(always)]
fn promote_alias<T: Tables>(tables: &T, work: &Work) {
    if tables
        .insert_alias(Table::Established, &work.alias_tuple, &work.alias)
        .is_ok()
    {
        tables.remove_alias(Table::New, &work.alias_tuple);
    }
}

/// Whether the alias's flow was lost: one that is over, or whose time is, stays over. Nor does a flow come back by what
/// would begin another, or one that had a rival: an alias does not know what that one dialled.
#[inline(always)]
fn could_be_rebuilt<T: Tables>(tables: &T, work: &Work, alias: &Alias) -> bool {
    let there = |table| tables.flow(table, &alias.flow).is_some();
    let known = there(Table::Established) || there(Table::New);
    if known || alias.flow.reserved != 0 || conntrack::begins(work) {
        return false;
    }
    let idle = seconds(work.now).saturating_sub(alias.seen.get());
    u64::from(idle) <= conntrack::idle_timeout(work.tuple.proto, tcp_state::ESTABLISHED)
}

/// Builds the flow anew whose alias stands and which is gone: the alias proves that this node opened it. `work.out`
/// becomes its forward tuple, `work.flow` the entry.
#[inline(always)]
pub(super) fn rebuild<T: Tables, P: Packet>(tables: &T, packet: &P, work: &mut Work) -> bool {
    let Some(alias) = conntrack::by_alias(tables, &work.tuple) else {
        return false;
    };
    if !could_be_rebuilt(tables, work, alias) {
        return false;
    }
    let reply = alias.reply != 0;
    let key: FlowKey = alias.flow;
    // The far side's address is in the packet: a reply comes from the flow's destination, a dialled tuple from its
    // source.
    let a_is_sender = key.a == work.tuple.src && key.a_port == work.tuple.src_port;
    conntrack::oriented(&key, a_is_sender != reply, &mut work.out);
    conntrack::begin(packet, work);
    work.flow.source_endpoint = alias.endpoint;
    if reply {
        work.flow.snat = work.tuple.dst;
        work.flow.snat_port = work.tuple.dst_port;
        work.flow
            .flags
            .set(work.flow.flags.get() | flow_flags::SNAT | flow_flags::REPLIED);
        work.flow.tcp_forward.set(0);
        work.flow.tcp_reply.set(work.headers.tcp_flags);
        work.flow.state.set(rebuilt_state(work.headers.tcp_flags));
        work.reply = 1;
    } else {
        work.flow.dnat = work.tuple.dst;
        work.flow.dnat_port = work.tuple.dst_port;
        work.flow.flags.set(work.flow.flags.get() | flow_flags::DNAT);
    }
    true
}

/// The state of a flow of which this answer is all that is known.
#[inline(always)]
fn rebuilt_state(tcp_flags: u8) -> u8 {
    if tcp_flags & tcp::RST != 0 {
        tcp_state::CLOSED
    } else if tcp_flags & tcp::FIN != 0 {
        tcp_state::FIN_WAIT
    } else {
        tcp_state::ESTABLISHED
    }
}

/// Writes into `work.out` the tuple that a packet of this flow and direction leaves with: forward from the translated
/// source to the policy's destination, in reply from what was dialled to the originator.
#[inline(always)]
pub(super) fn leaving(work: &mut Work, flow: &Flow) {
    let flags = flow.flags.get();
    if flags & (flow_flags::SNAT | flow_flags::DNAT) == 0 {
        work.out = work.tuple;
        return;
    }
    conntrack::forward_tuple(&work.key, flow, &mut work.out);
    if work.reply == 0 {
        if flags & flow_flags::SNAT != 0 {
            work.out.src = flow.snat;
            work.out.src_port = flow.snat_port;
        }
        return;
    }
    let forward = work.out;
    work.out.src = forward.dst;
    work.out.src_port = forward.dst_port;
    work.out.dst = forward.src;
    work.out.dst_port = forward.src_port;
    if flags & flow_flags::DNAT != 0 {
        work.out.src = flow.dnat;
        work.out.src_port = flow.dnat_port;
    }
}
