//! What arrives for an address of this node or of a Service: new connections to frontends, and both directions of
//! translated ones, whichever node their ends are on.

use super::connection::{advance_known, enter, known};
use super::conntrack::Found;
use super::stage::{self, Stage};
use super::work::direct;
use super::{
    Outcome, Packet, Tables, Work, balance, conntrack, deliver, nat, origin, policy, refuse, route, service,
    way,
};
use crate::abi::{
    Reason, Settings, flow_flags, route_action, route_flags, service_flags, service_scope, via,
};

/// Who comes from another node is outside, a pod behind the tunnel too: clients of this node alone are spared the external
/// policy.
const SCOPE: u8 = service_scope::EXTERNAL;

/// A packet that is not addressed to a pod of this node.
#[inline(always)]
pub(super) fn arriving<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    tunnel: bool,
) -> Outcome {
    if work.headers.icmp_error != 0 {
        return related(tables, packet, work);
    }
    let Some(alias) = conntrack::by_alias(tables, &work.tuple) else {
        return begin(tables, packet, work, tunnel);
    };
    let answers = alias.reply != 0;
    if let Some(mut known) = known(tables, packet, work, None, true) {
        if !balance::moves(tables, packet, work, known.found.flow, SCOPE) {
            return onward(tables, packet, work, &mut known);
        }
    } else if answers {
        is_known_to_nobody(tables, packet, work, tunnel)?;
        return super::stack::rebuilt(tables, packet, work);
    }
    begin(tables, packet, work, tunnel)
}

/// A packet of a known connection, in either direction.
#[inline(always)]
fn onward<'t, T: Tables, P: Packet>(
    tables: &'t T,
    packet: &mut P,
    work: &mut Work,
    known: &mut super::connection::Known<'t>,
) -> Outcome {
    let flow = known.found.flow;
    if flow.flags.get() & flow_flags::HOST != 0 {
        return super::stack::to_host(tables, packet, work, known);
    }
    conntrack::forward_tuple(&work.key, flow, &mut work.out);
    // The way leads to whoever the flow belongs to; whose address that is now, the flow says.
    let reply = work.reply != 0;
    let (target, recorded) = if reply {
        (work.out.src, flow.source_endpoint)
    } else {
        (work.out.dst, flow.destination_endpoint)
    };
    let receiver = tables.endpoint(&target);
    if !conntrack::is_of(recorded, receiver) {
        return work.pass();
    }
    if reply {
        known.source = receiver;
    } else {
        known.destination = receiver;
    }
    work.endpoint = receiver.map_or(0, |receiver| receiver.id);
    advance_known(tables, packet, work, known)?;
    if let Some(receiver) = receiver {
        return deliver(tables, packet, work, receiver);
    }
    super::direct::follow(work, flow);
    send_on(tables, packet, work)
}

/// To `work.out.dst`, which is no pod of this node.
#[inline(always)]
fn send_on<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    let destination = work.out.dst;
    let route = route::lookup(tables, work, &destination)?;
    if route.action == route_action::HOST {
        deliver::translate(tables, packet, work)?;
        return work.pass();
    }
    route::leave(tables, packet, work, route)?;
    if work.way != way::NEIGHBOUR && work.way != way::TUNNEL {
        return balance::undeliverable(tables, packet, work);
    }
    super::send(tables, packet, work)
}

/// A packet of no known connection: a Service's, or the stack's.
#[inline(always)]
fn begin<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work, tunnel: bool) -> Outcome {
    let protocol = work.tuple.proto;
    let middle = conntrack::amidst(work);
    let asks = service::serves(protocol) || refuse::is_echo(work);
    is_known_to_nobody(tables, packet, work, tunnel)?;
    if tables.config().has_services() == 0 || !asks {
        return work.pass();
    }
    if !middle {
        balance::ask(tables, packet, work, SCOPE)?;
    } else if tunnel || !came_from_another_node(tables, packet, work) {
        // There is nothing to choose. The stack may know the stream, from a proxy before; it refuses what is for its own addresses,
        // and what it would send on meets `to_netdev`.
        return work.pass();
    }
    if work.choice.found == 0 {
        let destination = work.tuple.dst;
        let route = route::lookup(tables, work, &destination);
        let is_service = route.is_ok_and(|found| found.action == route_action::SERVICE);
        if !is_service && !balance::is_pinged(tables, work) {
            return work.pass();
        }
        if !tunnel {
            balance::ask(tables, packet, work, service_scope::CLUSTER)?;
            work.choice.flags |= service_flags::MASQUERADE;
        }
        if work.choice.found == 0 {
            return balance::vacant(tables, packet, work);
        }
    }
    if !tunnel {
        who_asks(tables, work)?;
    }
    chosen(work);
    conntrack::begin(packet, work);
    if !tunnel {
        work.flow.flags.set(work.flow.flags.get() | flow_flags::OUTSIDE);
    }
    let receiver = tables.endpoint(&work.out.dst);
    policy::admit(tables, packet, work, None, receiver, false)?;
    work.flow.via_reply = if tunnel { via::TUNNEL } else { via::DEVICE };
    let Some(receiver) = receiver else {
        return begin_remote(tables, packet, work);
    };
    work.endpoint = receiver.id;
    stage::call(Stage::Dial, tables, packet, work)?;
    // Behind the stack the port that it is given would be a client's of its own.
    work.straight = work.contested;
    work.flow.via_forward = route::via_to(work, receiver);
    let stack = work.flow.via_forward == via::STACK;
    if stack {
        work.flow.via_reply = via::STACK;
    }
    // The stack takes nothing that bears an address of its own from outside.
    if balance::hides_source(work) && !stack {
        balance::hide_source(tables, packet, work, 0)?;
    } else {
        balance::keep_source(tables, packet, work)?;
    }
    enter(tables, work)?;
    balance::show_source(work);
    work.stack_reply = 0;
    deliver(tables, packet, work, receiver)
}

/// That no other load of programs knows a packet that this one does not know. What comes out of the tunnel for the host is the
/// stack's to judge all the same.
#[inline(always)]
fn is_known_to_nobody<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    tunnel: bool,
) -> Outcome {
    conntrack::ask_others(tables, packet, work)?;
    if conntrack::amidst(work) && !tunnel {
        stage::call(Stage::Settled, tables, packet, work)?;
    }
    Ok(())
}

/// That the packet in the middle of a stream is for no pod of this node that is gone: the stack would answer with an error that
/// ends no connection. Nor for a connection that may become known in a moment: the stack would end that.
#[inline(always)]
pub(super) fn settled<T: Tables, P: Packet>(tables: &T, packet: &P, work: &mut Work) -> Outcome {
    if conntrack::unsettled(tables, work) && !packet.socket(&work.tuple) {
        return Err(Reason::Unsettled);
    }
    if is_nodes(tables, work) {
        return Ok(());
    }
    let destination = work.tuple.dst;
    match route::lookup(tables, work, &destination) {
        Ok(found) if found.action == route_action::ENDPOINTS => Err(Reason::NoEndpoint),
        _ => Ok(()),
    }
}

/// Whether the packet in the middle of a stream is one that another node led to its backend until now, and that finds it from
/// here as well.
#[inline(always)]
fn came_from_another_node<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> bool {
    tables.config().tunnel_device() != 0
        && balance::asked(tables, packet, work, SCOPE).is_ok()
        && work.choice.found != 0
        && work.choice.flags & service_flags::ANY_NODE != 0
}

/// Whether the packet is for the node's own address. Most are.
#[inline(always)]
fn is_nodes<T: Tables>(tables: &T, work: &Work) -> bool {
    let destination = work.tuple.dst;
    let is_own = |settings: &Settings| destination == settings.node_v4 || destination == settings.node_v6;
    tables.settings().is_some_and(is_own)
}

/// Whether the client may ask, and whether it can be answered past this node: to another node answers go by the tunnel,
/// which takes nobody else's address.
#[inline(always)]
fn who_asks<T: Tables>(tables: &T, work: &mut Work) -> Result<(), Reason> {
    if work.choice.flags & service_flags::DSR != 0 && origin::outside(tables, work, false).is_ok() {
        work.direct = direct::LEAVES;
        return Ok(());
    }
    origin::outside(tables, work, true)
}

/// The packet goes to the backend that was chosen.
#[inline(always)]
pub(super) fn chosen(work: &mut Work) {
    work.out = work.tuple;
    work.out.dst = work.choice.addr;
    work.out.dst_port = work.choice.port;
    work.service = work.choice.service;
}

/// A new connection to a backend that is the node itself, or another node's. From there the answer comes back here only
/// if the source is this node.
#[inline(always)]
fn begin_remote<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    let destination = work.out.dst;
    let route = route::lookup(tables, work, &destination)?;
    if route.action == route_action::HOST {
        work.flow.via_forward = via::STACK;
        work.flow.via_reply = via::STACK;
        stage::call(Stage::Dial, tables, packet, work)?;
        balance::keep_source(tables, packet, work)?;
        enter(tables, work)?;
        balance::show_source(work);
        deliver::translate(tables, packet, work)?;
        return work.pass();
    }
    if route.flags & route_flags::DSR == 0 {
        work.direct = direct::NO;
    }
    route::leave(tables, packet, work, route)?;
    if work.way != way::NEIGHBOUR && work.way != way::TUNNEL {
        return balance::undeliverable(tables, packet, work);
    }
    pass_through(tables, packet, work)
}

/// Enters a connection whose ends are both elsewhere, and sends its first packet on, by the way that was found.
#[inline(always)]
pub(super) fn pass_through<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    let ifindex = if work.way == way::NEIGHBOUR {
        work.to_ifindex
    } else {
        0
    };
    work.flow.via_forward = route::via_of(work.way);
    stage::call(Stage::Dial, tables, packet, work)?;
    if work.direct == direct::LEAVES {
        work.flow.flags.set(work.flow.flags.get() | flow_flags::DSR);
    } else {
        balance::hide_source(tables, packet, work, ifindex)?;
    }
    enter(tables, work)?;
    balance::show_source(work);
    super::send(tables, packet, work)
}

/// An ICMP error: about a translated flow, or the stack's own.
#[inline(always)]
fn related<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    // Nothing is changed unless the flow is found.
    if stage::call(Stage::Related, tables, packet, work).is_err() {
        return work.pass();
    }
    work.stack_reply = 0;
    if let Some(receiver) = tables.endpoint(&work.out.dst) {
        work.endpoint = receiver.id;
        return deliver(tables, packet, work, receiver);
    }
    // It is translated already; where there is no way for it, the stack may find one.
    let destination = work.out.dst;
    let leaves = match route::lookup(tables, work, &destination) {
        Ok(route) if route.action != route_action::HOST => {
            route::leave(tables, packet, work, route).is_ok()
                && (work.way == way::NEIGHBOUR || work.way == way::TUNNEL)
        }
        _ => false,
    };
    if !leaves {
        return work.pass();
    }
    super::send(tables, packet, work)
}

/// Whether the packet of the host's stack belongs to a connection whose other side dialled a Service: then it bears that
/// address when it leaves. Nothing is asked of packets that cannot.
#[inline(always)]
pub(super) fn leaving<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
) -> Result<bool, Reason> {
    if tables.config().has_services() == 0 {
        return Ok(false);
    }
    if work.headers.icmp_error != 0 {
        let done = stage::call(Stage::Related, tables, packet, work).is_ok();
        return Ok(done);
    }
    let from_a = conntrack::key_of(&work.tuple, &mut work.key);
    // What begins anew is not the one that has ended.
    let there = conntrack::by_key(tables, &work.key, work.now)
        .filter(|found| !(conntrack::begins(work) && conntrack::ended(found.flow)));
    let (found, replies) = if let Some(found) = there {
        let replies = (found.flow.flags.get() & flow_flags::ORIGIN_A != 0) != from_a;
        (found, replies)
    } else if let Some(found) = answers_by_alias(tables, work) {
        (found, true)
    } else {
        conntrack::ask_others(tables, packet, work)?;
        return super::stack::began_by_host(tables, packet, work);
    };
    let flags = found.flow.flags.get();
    if !replies && flags & flow_flags::HOST != 0 {
        super::stack::of_host(tables, packet, work, found.flow)?;
        return Ok(true);
    }
    if !replies || flags & flow_flags::DNAT == 0 {
        return Ok(false);
    }
    work.reply = 1;
    // A pod's answer was counted where the pod sent it.
    if found.flow.destination_endpoint == 0 {
        conntrack::advance(packet, work, found.flow);
        work.service = found.flow.service;
    }
    nat::leaving(work, found.flow);
    if conntrack::ripe(work, found.table) {
        super::connection::promote(tables, packet, work)?;
    }
    deliver::translate(tables, packet, work)?;
    Ok(true)
}

/// The flow of an answer to a client that was given another port of its own.
#[inline(always)]
fn answers_by_alias<'t, T: Tables>(tables: &'t T, work: &mut Work) -> Option<Found<'t>> {
    let alias = conntrack::by_alias(tables, &work.tuple)?;
    if alias.reply == 0 {
        return None;
    }
    conntrack::behind(tables, work, alias)
}
