//! ICMP errors: they belong to the connection of the packet inside, and to nothing else.

use super::conntrack::{self, Found};
use super::work::direct;
use super::{Outcome, Packet, Tables, Work, nat, rewrite};
use crate::abi::{FlowKey, Reason, Tuple, flow_flags, hook};

/// Finds the flow that an ICMP error is about and makes the error what its receiver must see. Afterwards `work.tuple`
/// and `work.out` are the error's own addresses as they are now, `work.stack_reply` says whether the flow returns
/// through the stack.
#[inline(always)]
pub(super) fn stage<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    // The error goes to the one who sent the packet inside; a pod is no router, so its errors are about what it got.
    let forged =
        work.tuple.dst != work.inner.src || (work.hook == hook::FROM_POD && work.tuple.src != work.inner.dst);
    if forged {
        return Err(Reason::RelatedUnknown);
    }
    let found = find(tables, work).ok_or(Reason::RelatedUnknown)?;
    super::route::remember_way(work, found.flow);
    let recorded = if work.reply != 0 {
        found.flow.source_endpoint
    } else {
        found.flow.destination_endpoint
    };
    if !super::direct::leads_there(work, found.flow) {
        return Err(Reason::RelatedUnknown);
    }
    super::direct::follow(work, found.flow);
    if work.direct == direct::LEAVES {
        // Its backend's node knows what it is about, and translates it.
        conntrack::forward_tuple(&work.key, found.flow, &mut work.out);
        work.out.src = work.tuple.src;
        return Ok(());
    }
    let source = leaving(work, &found);
    // What was on its way to the former owner of an address is not the new one's business.
    if !conntrack::is_of(recorded, tables.endpoint(&work.out.src)) {
        return Err(Reason::RelatedUnknown);
    }
    rewrite::translate_error(
        packet,
        &work.headers,
        &work.tuple,
        &source,
        &work.inner,
        &work.out,
    )?;
    work.tuple.dst = work.out.src;
    work.tuple.src = source;
    work.out = work.tuple;
    Ok(())
}

/// The flow that an ICMP error is about. Sets `work.key`, and `work.reply` to the direction of the error: it travels
/// against the packet inside.
#[inline(always)]
fn find<'t, T: Tables>(tables: &'t T, work: &mut Work) -> Option<Found<'t>> {
    let from_a = conntrack::key_of(&work.inner, &mut work.key);
    if let Some(found) = conntrack::by_key(tables, &work.key, work.now) {
        let origin_a = found.flow.flags.get() & flow_flags::ORIGIN_A != 0;
        let inner_replies = origin_a != from_a;
        work.reply = u8::from(!inner_replies);
        return Some(found);
    }
    // The packet inside was dialled to a frontend: the error goes back to the originator.
    // Or it answers a translated source, and the stack could not carry it there: the error goes to the backend.
    if let Some(alias) = conntrack::by_alias(tables, &work.inner) {
        let answers = alias.reply != 0;
        let found = through(tables, work, &alias.flow)?;
        work.reply = u8::from(!answers);
        return nat::leads_to(alias, found.flow, &work.inner).then_some(found);
    }
    // The packet inside left with a translated source: the alias stands under its answer.
    work.alias_tuple = work.inner.reversed();
    let alias = conntrack::by_alias(tables, &work.alias_tuple)?;
    // Or it is the answer to one who dialled a frontend: the error goes to the backend.
    let towards_originator = alias.reply != 0;
    let found = through(tables, work, &alias.flow)?;
    work.reply = u8::from(towards_originator);
    nat::leads_to(alias, found.flow, &work.alias_tuple).then_some(found)
}

#[inline(always)]
fn through<'t, T: Tables>(tables: &'t T, work: &mut Work, key: &FlowKey) -> Option<Found<'t>> {
    work.key.copy_from(key);
    work.reply = 1;
    conntrack::by_key(tables, &work.key, work.now)
}

/// Writes into `work.out` how the packet inside must look for the one who sent it; gives the error's own source.
///
/// The receiver knows its flow by the tuple it sent: what it dialled, from its own address. The error's source is
/// translated if it is the flow's other side itself; a router's stays, except where the flow has a source of this node's:
/// the way to its backend is open to that one only, and who dialled the node hears it from there. A router that has the
/// client on its other side would take nothing that bears its own address, and networks that check sources nothing that
/// bears another's than the node's.
#[inline(always)]
fn leaving(work: &mut Work, found: &Found<'_>) -> crate::abi::Addr {
    let flow = found.flow;
    let flags = flow.flags.get();
    conntrack::forward_tuple(&work.key, flow, &mut work.out);
    let hides = flags & flow_flags::SNAT != 0 && flow.snat != work.out.src;
    if work.reply != 0 {
        if flags & flow_flags::DNAT != 0 {
            work.out.dst = flow.dnat;
            work.out.dst_port = flow.dnat_port;
        }
    } else {
        let forward: Tuple = work.out;
        work.out = forward.reversed();
        if flags & flow_flags::SNAT != 0 {
            work.out.dst = flow.snat;
            work.out.dst_port = flow.snat_port;
        }
    }
    let hidden = hides && (work.reply == 0 || flags & flow_flags::DNAT != 0);
    if hidden || work.tuple.src == work.inner.dst {
        work.out.dst
    } else {
        work.tuple.src
    }
}
