//! Packets of Services: what is asked of a new connection, and what its flow is told.

use super::refuse::{self, answer};
use super::stage::{self, Stage};
use super::work::direct;
use super::{Outcome, Packet, Table, Tables, Work, conntrack, nat, service};
use crate::abi::{Addr, Flow, Reason, client_kind, flow_flags, put, service_flags};

/// Asks whether `work.tuple` dials a Service, and which backend it is given: `work.choice`. A Service that nobody serves
/// refuses at once.
#[inline(always)]
pub(super) fn ask<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work, scope: u8) -> Outcome {
    put(&mut work.choice.found, 0);
    if tables.config().has_services() == 0 || !service::serves(work.tuple.proto) {
        return Ok(());
    }
    match asked(tables, packet, work, scope) {
        Err(Reason::ServiceNoBackend) => {
            answered(tables, packet, work, answer::REFUSE, Reason::ServiceNoBackend)
        }
        outcome => outcome,
    }
}

/// The same, and an error is the caller's.
#[inline(always)]
pub(super) fn asked<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work, scope: u8) -> Outcome {
    work.choice.scope = scope;
    work.choice.client.client = work.tuple.src;
    work.choice.client.kind = client_kind::ADDRESS;
    stage::call(Stage::Choose, tables, packet, work)
}

/// Drops the packet for `reason`, with an answer to its sender.
#[inline(always)]
pub(super) fn answered<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    kind: u8,
    reason: Reason,
) -> Outcome {
    work.answer_kind = kind;
    stage::call(Stage::Answer, tables, packet, work)?;
    Err(reason)
}

/// Tells the packet's sender the largest that its way carries, as the stack would have: no refusal.
#[inline(always)]
pub(super) fn told_size<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    let outcome = answered(tables, packet, work, answer::TOO_BIG, Reason::TooBig);
    if work.answered == 0 {
        return outcome.map_err(|_| Reason::TooBig);
    }
    work.answered = 0;
    Ok(())
}

/// A packet that only the stack could have told its sender about, and that the stack must not see: to it the packet is
/// addressed otherwise than to its receiver.
#[inline(always)]
pub(super) fn undeliverable<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    if work.headers.ttl <= 1 {
        return answered(tables, packet, work, answer::EXPIRED, Reason::TtlExceeded);
    }
    if work.answer_mtu != 0 {
        return answered(tables, packet, work, answer::TOO_BIG, Reason::TooBig);
    }
    Err(Reason::NoRoute)
}

/// A packet for an address of the Service range that is no frontend.
#[inline(always)]
pub(super) fn vacant<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    let Work { choice, tuple, .. } = work;
    if !service::lives(tables, choice, &tuple.dst) {
        return Err(Reason::ServiceUnknown);
    }
    if refuse::is_echo(work) {
        work.answer_kind = answer::ECHO;
        stage::call(Stage::Answer, tables, packet, work)?;
        // An answer like any other, not a refusal.
        work.answered = 0;
        return Ok(());
    }
    let reason = Reason::ServiceNoBackend;
    answered(tables, packet, work, answer::REFUSE, reason)
}

/// Whether the datagram leaves its flow for a backend that serves: then it begins a new one.
#[inline(always)]
pub(super) fn moves<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    flow: &Flow,
    scope: u8,
) -> bool {
    if !service::may_move(tables, work, flow) {
        return false;
    }
    // Where nobody serves, what there is stays as it is.
    if asked(tables, packet, work, scope).is_err() || work.choice.found == 0 {
        return false;
    }
    if flow.flags.get() & flow_flags::DNAT == 0 {
        for table in [Table::New, Table::Established] {
            tables.remove_flow(table, &work.key);
        }
    }
    true
}

/// A flow in which something moved this lately is in use.
const IN_USE: u64 = 120 * conntrack::SECOND;

/// Tells `work.flow` what was dialled and where it goes. Two Services may lead one client's port to one backend: the
/// connection that is there is not broken, and who tries again is given another backend or another port.
#[inline(always)]
pub(super) fn dial<T: Tables>(tables: &T, work: &mut Work) -> Result<(), Reason> {
    if let Some(found) = conntrack::by_key(tables, &work.key, work.now) {
        let flow = found.flow;
        let same = flow.flags.get() & flow_flags::DNAT != 0
            && flow.dnat == work.tuple.dst
            && flow.dnat_port == work.tuple.dst_port;
        if !same && !conntrack::ended(flow) && work.now.saturating_sub(flow.seen.get()) < IN_USE {
            return Err(Reason::ServiceTuple);
        }
    }
    work.flow.service = work.choice.service;
    work.flow.backend = work.choice.backend;
    nat::enter_dialled(tables, work)
}

/// Whether the frontend says that the source is to be translated, and no reason is known to keep it.
#[inline(always)]
pub(super) fn hides_source(work: &Work) -> bool {
    work.choice.flags & service_flags::MASQUERADE != 0 && work.direct == direct::NO
}

/// Gives `work.flow` a source on this node: the device's address by which it leaves, if it leaves by one that has any, or
/// the node's own.
#[inline(always)]
pub(super) fn hide_source<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    ifindex: u32,
) -> Outcome {
    let v6 = work.headers.v6 != 0;
    let mut address = Addr::UNSPECIFIED;
    if ifindex != 0
        && let Some(device) = tables.device(ifindex)
    {
        address = if v6 {
            device.masquerade_v6
        } else {
            device.masquerade_v4
        };
    }
    if address == Addr::UNSPECIFIED
        && let Some(settings) = tables.settings()
    {
        address = if v6 { settings.node_v6 } else { settings.node_v4 };
    }
    if address == Addr::UNSPECIFIED {
        return Err(Reason::NatNoAddress);
    }
    work.snat = address;
    work.keep_port = 0;
    stage::call(Stage::Allocate, tables, packet, work)
}

/// Makes the translated source that of the packet, behind `enter`.
#[inline(always)]
pub(super) fn show_source(work: &mut Work) {
    if work.flow.flags.get() & flow_flags::SNAT != 0 {
        work.out.src = work.flow.snat;
        work.out.src_port = work.flow.snat_port;
    }
}
