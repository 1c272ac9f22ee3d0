//! The packet's connection: known ones are counted and asked about again, new ones entered.

use super::conntrack::{self, Found};
use super::stage::{self, Stage};
use super::work::{direct, entered};
use super::{Outcome, Packet, Table, Tables, Work, nat, policy, route, service};
use crate::abi::{Endpoint, Flow, Reason, flow_flags, via};

/// Enters `work.flow` among the new connections, in the place of one that is over.
#[inline(always)]
pub(super) fn enter<T: Tables>(tables: &T, work: &mut Work) -> Result<(), Reason> {
    if tables.flow(Table::Established, &work.key).is_some() {
        tables.remove_flow(Table::Established, &work.key);
    }
    tables
        .insert_flow(Table::New, &work.key, &work.flow)
        .map_err(|_| Reason::ConntrackFull)?;
    work.entered |= entered::FLOW;
    // What another node was asked for, that one has counted.
    if work.flow.service != 0 && work.direct != direct::CAME {
        service::count(tables, &work.flow.service);
    }
    Ok(())
}

/// A flow that the packet belongs to, with the endpoints it is between as far as they are local and known here.
pub(super) struct Known<'t> {
    pub found: Found<'t>,
    pub source: Option<&'t Endpoint>,
    pub destination: Option<&'t Endpoint>,
}

/// The number of the endpoint at the end of a flow that this packet comes from, 0: none is known.
#[inline(always)]
pub(super) fn sending(work: &Work, found: Option<&Found<'_>>) -> u32 {
    match found {
        Some(found) if work.reply == 0 => found.flow.source_endpoint,
        Some(found) => found.flow.destination_endpoint,
        None => 0,
    }
}

/// The endpoint that the packet goes to, if it is one of this node.
#[inline(always)]
fn receiving<'t, T: Tables>(tables: &'t T, work: &mut Work, flow: &Flow) -> Option<&'t Endpoint> {
    let recorded = if work.reply == 0 {
        flow.destination_endpoint
    } else {
        flow.source_endpoint
    };
    if let Some(endpoint) = tables.endpoint_of(recorded) {
        return Some(endpoint);
    }
    if work.aliased == 0 {
        return tables.endpoint(&work.tuple.dst);
    }
    conntrack::forward_tuple(&work.key, flow, &mut work.out);
    tables.endpoint(if work.reply == 0 {
        &work.out.dst
    } else {
        &work.out.src
    })
}

/// The flow of the packet, if it has one: see [`known_as`].
#[inline(always)]
pub(super) fn known<'t, T: Tables, P: Packet>(
    tables: &'t T,
    packet: &mut P,
    work: &mut Work,
    near: Option<&'t Endpoint>,
    receives: bool,
) -> Option<Known<'t>> {
    let found = conntrack::find(tables, work)?;
    known_as(tables, packet, work, found, near, receives)
}

/// What is known of the flow of the packet, seen from the endpoint `near` at which this hook stands; the other side is looked up if `near`
/// sends. `None` too if another flow has taken over its translated tuple, or if an address has become another pod's since:
/// what its former owner was allowed, and what was on its way to it, is not the new one's.
#[inline(always)]
pub(super) fn known_as<'t, T: Tables, P: Packet>(
    tables: &'t T,
    packet: &mut P,
    work: &mut Work,
    found: Found<'t>,
    near: Option<&'t Endpoint>,
    receives: bool,
) -> Option<Known<'t>> {
    let far = if receives {
        None
    } else {
        receiving(tables, work, found.flow)
    };
    let near_is_source = (work.reply == 0) != receives;
    let (source, destination) = if near_is_source { (near, far) } else { (far, near) };
    if !conntrack::is_of(found.flow.source_endpoint, source)
        || !conntrack::is_of(found.flow.destination_endpoint, destination)
    {
        return None;
    }
    if nat::due(work, found.flow) && stage::call(Stage::LookAfter, tables, packet, work).is_err() {
        return None;
    }
    Some(Known {
        found,
        source,
        destination,
    })
}

/// Asks policy again if anything moved, counts the packet on its flow, and works out how it leaves (`work.out`). What is
/// refused leaves the flow as it was.
#[inline(always)]
pub(super) fn advance_known<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    known: &Known<'_>,
) -> Outcome {
    let Known {
        found,
        source,
        destination,
    } = known;
    policy::revalidate(tables, packet, work, found.flow, *source, *destination)?;
    conntrack::advance(packet, work, found.flow);
    work.service = found.flow.service;
    if found.flow.flags.get() & flow_flags::DNAT != 0 {
        work.event.dnat = found.flow.dnat;
        work.event.dnat_port = found.flow.dnat_port;
    }
    nat::leaving(work, found.flow);
    route::remember_way(work, found.flow);
    let translated = found.flow.flags.get() & flow_flags::SNAT != 0;
    work.unmasked = u8::from(work.reply == 0 && found.flow.via_forward == via::STACK && !translated);
    if conntrack::ripe(work, found.table) {
        promote(tables, packet, work)?;
    }
    Ok(())
}

/// Promotes the flow; `work.out` is needed afterwards.
#[inline(always)]
pub(super) fn promote<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    // Aside, where only ICMP errors have something: the stack has no room for it.
    let Work { out, inner, .. } = work;
    inner.copy_from(out);
    stage::call(Stage::Promote, tables, packet, work)?;
    let Work { out, inner, .. } = work;
    out.copy_from(inner);
    Ok(())
}
