//! Packets of Services: what is asked of a new connection, and what its flow is told.

use super::refuse::{self, answer};
use super::stage::{self, Stage};
use super::work::direct;
use super::{Outcome, Packet, Table, Tables, Work, conntrack, lot, nat, route, service};
use crate::abi::{Addr, Flow, Reason, Tuple, client_kind, flow_flags, put, route_action, service_flags};

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

/// Whether this asks an address of a Service, in the Service range or outside of it, for a sign of life.
#[inline(always)]
pub(super) fn is_pinged<T: Tables>(tables: &T, work: &mut Work) -> bool {
    if !refuse::is_echo(work) {
        return false;
    }
    let Work { choice, tuple, .. } = work;
    service::lives(tables, choice, &tuple.dst)
}

/// Whether the packet is for an address of a Service that no stack has for its own.
#[inline(always)]
pub(super) fn is_nobodys<T: Tables>(tables: &T, work: &mut Work) -> bool {
    let destination = work.tuple.dst;
    let is_stacks =
        route::lookup(tables, work, &destination).map_or(true, |found| found.action == route_action::HOST);
    let Work { choice, tuple, .. } = work;
    !is_stacks && service::lives(tables, choice, &tuple.dst)
}

/// A packet for an address of the Service range that is no frontend, or one that [pings](is_pinged) another one.
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

/// What a new connection, `work.flow` from `work.tuple` to `work.out`, has to know of others of its client: see [`dial`].
#[inline(always)]
pub(super) fn enter_among<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    put(&mut work.contested, 0);
    if tables.config().has_services() == 0 || !service::serves(work.tuple.proto) {
        return Ok(());
    }
    stage::call(Stage::Dial, tables, packet, work)
}

/// Tells `work.flow` what was dialled and where it goes, if it is a Service's or has a rival that is.
///
/// Two frontends may lead one client's port to one backend, and the client may go there by itself. The connection that is
/// there keeps the tuple; the second one has a key of its own, is found by its aliases alone, and must not be answered at the
/// same port: `work.contested`. So must not any that begins from the port that such a second one was given.
#[inline(always)]
pub(super) fn dial<T: Tables>(tables: &T, work: &mut Work) -> Result<(), Reason> {
    let disputed = nat::is_disputed(tables, work);
    work.contested = u8::from(disputed);
    // Of what dials no Service only a Service's connection can have the tuple.
    if work.choice.found == 0 && (work.rival == 0 || !is_anothers(tables, work)) {
        return Ok(());
    }
    if disputed || is_anothers(tables, work) {
        work.contested = 1;
        work.key.reserved = number(&work.tuple);
        if is_anothers(tables, work) {
            return Err(Reason::ServiceTuple);
        }
    }
    if work.choice.found != 0 {
        work.flow.service = work.choice.service;
        work.flow.backend = work.choice.backend;
    }
    nat::enter_dialled(tables, work)
}

/// Whether a connection to something else than `work.tuple.dst` stands under `work.key`. Also one that the sides have ended: the
/// last packets of both must find it, and who dials elsewhere does not say that it is over, as its own client would. Where it was
/// reset nothing is left to say, and who begins takes its ends.
#[inline(always)]
fn is_anothers<T: Tables>(tables: &T, work: &Work) -> bool {
    conntrack::by_key(tables, &work.key, work.now).is_some_and(|found| {
        let flow = found.flow;
        let same = flow.flags.get() & flow_flags::DNAT != 0
            && flow.dnat == work.tuple.dst
            && flow.dnat_port == work.tuple.dst_port;
        let may_take_over = same || conntrack::begins(work) && conntrack::was_reset(flow);
        !may_take_over
    })
}

/// What tells the connections of one client's port to one backend apart: never 0.
#[inline(always)]
fn number(dialled: &Tuple) -> u16 {
    let Tuple { dst, dst_port, .. } = dialled;
    let hash = lot::mix(0, [dst.hi, dst.lo, u64::from(dst_port.wire())]);
    ((hash >> 48) as u16).max(1)
}

/// Gives `work.flow` another port of its client's address, if it must not be answered at its own.
#[inline(always)]
pub(super) fn keep_source<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    if work.contested == 0 {
        return Ok(());
    }
    work.snat = work.tuple.src;
    work.keep_port = 0;
    stage::call(Stage::Allocate, tables, packet, work).map_err(|_| Reason::ServiceTuple)
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
