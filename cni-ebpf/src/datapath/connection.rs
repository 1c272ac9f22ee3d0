//! The packet's connection: known ones are counted and asked about again, new ones entered.

use super::conntrack::{self, Found};
use super::stage::{self, Stage};
use super::{Outcome, Packet, Table, Tables, Work, nat, policy};
use crate::abi::{Endpoint, Reason, flow_flags, via};

/// Enters `work.flow` among the new connections, in the place of one that is over.
#[inline(always)]
pub(super) fn enter<T: Tables>(tables: &T, work: &Work) -> Result<(), Reason> {
    if tables.flow(Table::Established, &work.key).is_some() {
        tables.remove_flow(Table::Established, &work.key);
    }
    tables
        .insert_flow(Table::New, &work.key, &work.flow)
        .map_err(|_| Reason::ConntrackFull)
}

/// The flow of the packet. `None` too if another flow has taken over its translated tuple.
#[inline(always)]
pub(super) fn known<'t, T: Tables, P: Packet>(
    tables: &'t T,
    packet: &mut P,
    work: &mut Work,
) -> Option<Found<'t>> {
    let found = conntrack::find(tables, work)?;
    if nat::due(work, found.flow) && stage::call(Stage::LookAfter, tables, packet, work).is_err() {
        return None;
    }
    Some(found)
}

/// Counts the packet on its flow, asks policy again if anything moved, and works out how it leaves (`work.out`).
/// `near` is the endpoint at which this hook stands; the other one is looked up if `far` says that it may be local.
/// Gives that other one.
#[inline(always)]
pub(super) fn advance_known<'t, T: Tables, P: Packet>(
    tables: &'t T,
    packet: &mut P,
    work: &mut Work,
    found: &Found<'_>,
    near: &Endpoint,
    receives: bool,
) -> Result<Option<&'t Endpoint>, Reason> {
    conntrack::advance(packet, work, found.flow);
    conntrack::forward_tuple(&work.key, found.flow, &mut work.out);
    let other = if receives {
        None
    } else {
        tables.endpoint(if work.reply == 0 {
            &work.out.dst
        } else {
            &work.out.src
        })
    };
    let near_is_source = (work.reply == 0) != receives;
    let (source, destination) = if near_is_source {
        (Some(near), other)
    } else {
        (other, Some(near))
    };
    policy::revalidate(tables, packet, work, found.flow, source, destination)?;
    work.service = found.flow.service;
    nat::leaving(work, found.flow);
    work.stack_reply = u8::from(work.reply != 0 && found.flow.via_reply == via::STACK);
    let translated = found.flow.flags.get() & flow_flags::SNAT != 0;
    work.unmasked = u8::from(work.reply == 0 && found.flow.via_forward == via::STACK && !translated);
    if conntrack::ripe(work, found.table) {
        promote(tables, packet, work)?;
    }
    Ok(other)
}

/// Promotes the flow; `work.out` is needed afterwards.
#[inline(always)]
pub(super) fn promote<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    let out = work.out;
    stage::call(Stage::Promote, tables, packet, work)?;
    work.out = out;
    Ok(())
}
