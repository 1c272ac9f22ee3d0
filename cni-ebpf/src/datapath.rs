//! The packet path as pure code: values in, values out.
//!
//! The order of stages stands in this file and nowhere else. The same code is compiled for the kernel, where
//! [`Tables`] are maps and [`Packet`] is the socket buffer, and for the host, where both are in memory.
//!
//! ```text
//! from_pod     parse, spoof check, fragments ─┐
//! from_netdev  parse, fragments, whose is it ─┼─ connection: known? revalidate │ new? service, policy, NAT, entry ─ route
//! to_pod       parse, fragments ──────────────┘
//! to_netdev    parse, fragments, tunnel key, masquerade of what the stack sends
//! xdp_nodeport parse, whose is it ─ connection that passes through: known? new? ─ route; what is not one, from_netdev decides
//! ```

mod balance;
pub mod checksum;
mod connection;
pub mod conntrack;
mod deliver;
mod direct;
mod external;
mod fragments;
pub mod headers;
mod limit;
mod lot;
pub mod maglev;
pub mod nat;
mod origin;
pub mod policy;
mod refuse;
mod related;
mod report;
pub mod rewrite;
mod route;
mod sctp;
mod sender;
pub mod service;
pub mod socket;
mod stack;
pub mod stage;
mod tables;
mod verdict;
mod wire;
pub mod work;

pub use refuse::answer;
pub use report::finish;
pub use tables::{BACK, Fib, GSO_BY_FRAGS, Hop, NotInserted, NotRewritten, Packet, Table, Tables, Wire};
pub use verdict::{Outcome, Verdict, way};
pub use wire::{takes, xdp_nodeport};
pub use work::{Headers, Work};

use crate::abi::{
    Addr, Config, Endpoint, Reason, direction, endpoint_flags, flow_flags, hook, put, route_action,
    route_flags, service_scope, via,
};
use connection::{advance_known, enter, known, known_as, sending};
use deliver::{deliver, forward, send, translate};
use headers::Ethertype;
use stage::Stage;

/// What every hook begins with: nothing of the packet before is told or counted with this one.
#[inline(always)]
fn start(work: &mut Work, at: u8, towards: u8) {
    put(&mut work.hook, at);
    put(&mut work.direction, towards);
    put(&mut work.endpoint, 0);
    put(&mut work.rule, 0);
    put(&mut work.service, 0);
    put(&mut work.state, 0);
    put(&mut work.tell, 0);
    put(&mut work.reply, 0);
    put(&mut work.unmasked, 0);
    put(&mut work.straight, 0);
    put(&mut work.departure, 0);
    put(&mut work.entered, 0);
    put(&mut work.answered, 0);
    put(&mut work.direct, 0);
    work.event.dnat.clear();
    put(&mut work.event.dnat_port, crate::abi::Port::ZERO);
    put(&mut work.way, way::PASS);
}

/// Reads the packet.
#[inline(always)]
fn open<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Result<(), Reason> {
    work.now = tables.now();
    work.tuple.src.clear();
    work.tuple.dst.clear();
    stage::call(Stage::Parse, tables, packet, work)
}

/// An IPv6 fragment that goes to the stack is marked: the stack puts the datagram together, and if it cuts it again,
/// the new fragments name no device by which they came (`ip6_copy_metadata` copies the mark alone). `to_pod` would take
/// them for the host's own.
#[inline(always)]
fn remember_arrival(work: &mut Work) {
    let headers = &work.headers;
    if headers.fragment != work::fragment::WHOLE
        && headers.v6 != 0
        && matches!(work.way, way::PASS | way::LOCAL)
    {
        work.way = way::ARRIVED;
    }
}

/// What a pod sends: its egress, a local destination's ingress, and the way there, in one run.
#[inline(always)]
pub fn from_pod<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    let outcome = sent_by_pod(tables, packet, work);
    refused(tables, packet, work, outcome)?;
    remember_arrival(work);
    Ok(())
}

/// Whoever sends to an address of this node's range that no pod has, because the pod is gone, is told at once: nobody is
/// left to end its connection.
#[inline(always)]
fn refused<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work, outcome: Outcome) -> Outcome {
    if outcome != Err(Reason::NoEndpoint) {
        return outcome;
    }
    balance::answered(tables, packet, work, answer::REFUSE, Reason::NoEndpoint)
}

#[inline(always)]
fn sent_by_pod<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    start(work, hook::FROM_POD, direction::EGRESS);
    open(tables, packet, work)?;
    let mut cut_by = None;
    if work.headers.fragment != work::fragment::WHOLE {
        // What is forged is not remembered.
        cut_by = Some(sender::check(tables, packet, work, 0)?);
        fragments::resolve(tables, work)?;
    }
    let found = if work.headers.icmp_error == 0 {
        conntrack::find(tables, work)
    } else {
        None
    };
    let sender = match cut_by {
        Some(sender) => sender,
        // A flow names its ends: of what is known no address is looked up.
        None => sender::check(tables, packet, work, sending(work, found.as_ref()))?,
    };
    if sender.flags & endpoint_flags::PACE == 0 {
        limit::check(tables, packet, work, sender, direction::EGRESS)?;
    }
    if work.headers.icmp_error != 0 {
        return related_from_pod(tables, packet, work, sender);
    }
    connection_from_pod(tables, packet, work, sender, found)
}

#[inline(always)]
fn connection_from_pod<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    sender: &Endpoint,
    found: Option<conntrack::Found<'_>>,
) -> Outcome {
    if let Some(found) = found
        && let Some(known) = known_as(tables, packet, work, found, Some(sender), false)
        && !balance::moves(tables, packet, work, known.found.flow, service_scope::CLUSTER)
    {
        advance_known(tables, packet, work, &known)?;
        let receiver = if work.reply == 0 {
            known.destination
        } else {
            known.source
        };
        return forward(tables, packet, work, sender, receiver);
    }
    conntrack::may_begin(tables, packet, work)?;
    // A Service is looked for on a miss only: an established connection outlives its Service.
    work.out = work.tuple;
    balance::ask(tables, packet, work, service_scope::CLUSTER)?;
    let served = work.choice.found != 0;
    if served {
        work.out.dst = work.choice.addr;
        work.out.dst_port = work.choice.port;
        work.service = work.choice.service;
    }
    let receiver = tables.endpoint(&work.out.dst);
    if !served && receiver.is_none() && tables.config().has_services() != 0 {
        let destination = work.tuple.dst;
        let is_service = route::lookup(tables, work, &destination)?.action == route_action::SERVICE;
        if is_service || balance::is_pinged(tables, work) {
            return balance::vacant(tables, packet, work);
        }
    }
    conntrack::begin(packet, work);
    policy::admit(tables, packet, work, Some(sender), receiver, false)?;
    balance::enter_among(tables, packet, work)?;
    work.flow.via_reply = via::PEER;
    if let Some(receiver) = receiver {
        // A pod that meets itself behind a Service would take its own address for a forged one.
        if served && (balance::hides_source(work) || receiver.id == sender.id) {
            balance::hide_source(tables, packet, work, 0)?;
        } else {
            balance::keep_source(tables, packet, work)?;
        }
        // The stack would see one side of a translation on the way there and the other on the way back.
        work.straight = u8::from(served || work.contested != 0);
        work.flow.via_forward = route::via_to(work, receiver);
        work.flow.via_reply = work.flow.via_forward;
        limit::check_leaving(tables, packet, work, sender)?;
        enter(tables, work)?;
        balance::show_source(work);
        work.stack_reply = 0;
        return deliver(tables, packet, work, receiver);
    }
    let destination = work.out.dst;
    let route = route::lookup(tables, work, &destination)?;
    if served && balance::hides_source(work) && route.action != route_action::HOST {
        route::leave(tables, packet, work, route)?;
        balance::hide_source(tables, packet, work, 0)?;
    } else if !served && work.contested == 0 && route::by_stack(sender, route) {
        work.flow.via_reply = via::STACK;
    } else {
        masquerade_new(tables, packet, work, route)?;
    }
    work.flow.via_forward = route::via_of(work.way);
    limit::check_leaving(tables, packet, work, sender)?;
    enter(tables, work)?;
    balance::show_source(work);
    send(tables, packet, work)
}

/// Routes a new connection out of the node, with a translated source if it leaves the cluster.
#[inline(always)]
fn masquerade_new<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    route: &crate::abi::Route,
) -> Outcome {
    if route.flags & route_flags::MASQUERADE == 0 || tables.config().masquerades() == 0 {
        balance::keep_source(tables, packet, work)?;
        return route::leave(tables, packet, work, route);
    }
    // The address to masquerade with is that of the device by which the packet leaves, so the kernel's route comes
    // first. Where the stack must decide, `to_netdev` does all of it.
    stage::call(Stage::Fib, tables, packet, work)?;
    if work.way != way::NEIGHBOUR {
        // There it would begin in its rival's place.
        if work.contested != 0 {
            return balance::undeliverable(tables, packet, work);
        }
        return Ok(());
    }
    let ifindex = work.to_ifindex;
    stack::masquerade(tables, packet, work, ifindex)?;
    if work.headers.ttl <= 1 || route::exceeds(packet, work, route.mtu) {
        return work.pass();
    }
    Ok(())
}

/// An ICMP error from a pod.
#[inline(always)]
fn related_from_pod<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    sender: &Endpoint,
) -> Outcome {
    stage::call(Stage::Related, tables, packet, work)?;
    let receiver = tables.endpoint(&work.out.dst);
    forward(tables, packet, work, sender, receiver)
}

/// What the host's stack hands to a pod: its own packets, and what another proxy or a chained plugin handled.
#[inline(always)]
pub fn to_pod<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    start(work, hook::TO_POD, direction::INGRESS);
    let config = tables.config();
    if packet.mark() & config.own_mark_mask() == config.own_mark() {
        if config.has_services() == 0 {
            stack::answered(tables, packet, work);
        }
        return work.pass();
    }
    open(tables, packet, work)?;
    fragments::resolve(tables, work)?;
    let Some(receiver) = tables.endpoint(&work.tuple.dst) else {
        let link_local = route::is_link_local(&work.tuple.dst);
        return Err(if link_local {
            Reason::LinkLocal
        } else {
            Reason::NoEndpoint
        });
    };
    if receiver.ifindex != packet.ifindex() {
        return Err(Reason::NoEndpoint);
    }
    work.endpoint = receiver.id;
    limit::check(tables, packet, work, receiver, direction::INGRESS)?;
    if work.headers.icmp_error != 0 {
        stage::call(Stage::Related, tables, packet, work)?;
        return work.pass();
    }
    if let Some(known) = known(tables, packet, work, Some(receiver), true) {
        advance_known(tables, packet, work, &known)?;
        translate(tables, packet, work)?;
        return work.pass();
    }
    conntrack::may_begin(tables, packet, work)?;
    work.out = work.tuple;
    conntrack::begin(packet, work);
    let arrived = packet.mark() & config.own_mark_mask() == config.mark_of_arrival();
    let from_host = packet.ingress_ifindex() == 0 && !arrived;
    policy::admit(tables, packet, work, None, Some(receiver), from_host)?;
    work.flow.via_forward = via::STACK;
    work.flow.via_reply = via::STACK;
    if from_host {
        stack::give_way(tables, packet, work)?;
    }
    enter(tables, work)?;
    balance::show_source(work);
    translate(tables, packet, work)?;
    work.pass()
}

/// What arrives on a device of the node, or out of the tunnel. What is not for a pod is the stack's.
#[inline(always)]
pub fn from_netdev<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    start(work, hook::FROM_NETDEV, direction::INGRESS);
    let tunnel = packet.ifindex() == tables.config().tunnel_device();
    if !tunnel && headers::ethertype(packet) != Ethertype::Ip {
        return work.pass();
    }
    let outcome = arrived(tables, packet, work, tunnel);
    refused(tables, packet, work, outcome)?;
    remember_arrival(work);
    Ok(())
}

#[inline(always)]
fn arrived<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work, tunnel: bool) -> Outcome {
    match open(tables, packet, work) {
        Ok(()) => {}
        // What cannot be read is no pod's business here: the stack judges what is its own, and `to_pod` stands before
        // every pod. Out of the tunnel nothing comes but pods' packets.
        Err(_) if !tunnel => return work.pass(),
        Err(reason) => return Err(reason),
    }
    if !tunnel && origin::carries_tunnelled(tables, work) {
        return work.pass();
    }
    // A pod of this node sends by `from_pod`, never from outside, whoever the packet is for.
    let loopback = route::is_loopback(&work.tuple.src) || route::is_loopback(&work.tuple.dst);
    if loopback || tables.endpoint(&work.tuple.src).is_some() {
        return Err(Reason::Martian);
    }
    if tunnel {
        origin::tunnelled(tables, packet, work)?;
    }
    match fragments::resolve(tables, work) {
        // What no stack has for its own, ours would send back to where it came from.
        Err(_) if !tunnel && !balance::is_nobodys(tables, work) => return work.pass(),
        outcome => outcome?,
    }
    let named = work.direct == work::direct::CAME;
    // Not a copy: the stack of this chain is full on kernels that count it whole.
    let target = if named { &work.choice.addr } else { &work.tuple.dst };
    if let Some(receiver) = tables.endpoint(target) {
        work.endpoint = receiver.id;
        return arriving(tables, packet, work, receiver);
    }
    if named {
        return Err(Reason::NoEndpoint);
    }
    if tunnel {
        let destination = work.tuple.dst;
        let route = route::lookup(tables, work, &destination)?;
        match route.action {
            route_action::HOST => {}
            route_action::ENDPOINTS => return Err(Reason::NoEndpoint),
            _ => return Err(Reason::HostAddress),
        }
    }
    external::arriving(tables, packet, work, tunnel)
}

/// A packet from another node or from outside for a pod of this one.
#[inline(always)]
fn arriving<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    receiver: &Endpoint,
) -> Outcome {
    let tunnel = packet.ifindex() == tables.config().tunnel_device();
    if work.headers.icmp_error != 0 {
        if !tunnel {
            origin::outside(tables, work, false)?;
        }
        stage::call(Stage::Related, tables, packet, work)?;
        work.stack_reply = 0;
        return deliver(tables, packet, work, receiver);
    }
    if let Some(known) = known(tables, packet, work, Some(receiver), true)
        && direct::leads_there(work, known.found.flow)
    {
        let flags = &known.found.flow.flags;
        if !tunnel && flags.get() & flow_flags::OUTSIDE == 0 {
            origin::outside(tables, work, false)?;
            flags.set(flags.get() | flow_flags::OUTSIDE);
        }
        advance_known(tables, packet, work, &known)?;
        // An answer came by a device, whatever way the connection's first packet took. What began here through the stack goes
        // on through it, also when its endpoint is no longer one that the stack serves.
        work.stack_reply = u8::from(work.reply == 0 && work.straight == 0);
        return deliver(tables, packet, work, receiver);
    }
    conntrack::may_begin(tables, packet, work)?;
    if !tunnel {
        origin::outside(tables, work, false)?;
    }
    work.out = work.tuple;
    direct::choose(tables, work);
    conntrack::begin(packet, work);
    if !tunnel {
        work.flow.flags.set(work.flow.flags.get() | flow_flags::OUTSIDE);
    }
    policy::admit(tables, packet, work, None, Some(receiver), false)?;
    balance::enter_among(tables, packet, work)?;
    balance::keep_source(tables, packet, work)?;
    work.straight = work.contested;
    work.flow.via_forward = route::via_to(work, receiver);
    work.flow.via_reply = if work.flow.via_forward == via::STACK {
        via::STACK
    } else if tunnel && work.direct == work::direct::NO {
        via::TUNNEL
    } else {
        via::DEVICE
    };
    enter(tables, work)?;
    balance::show_source(work);
    work.stack_reply = 0;
    deliver(tables, packet, work, receiver)
}

/// What the host's stack sends through a device of the node, or into the tunnel.
#[inline(always)]
pub fn to_netdev<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    start(work, hook::TO_NETDEV, direction::EGRESS);
    let config = tables.config();
    if packet.mark() & config.own_mark_mask() == config.own_mark()
        || headers::ethertype(packet) != Ethertype::Ip
    {
        return work.pass();
    }
    let tunnel = packet.ifindex() == config.tunnel_device();
    match open(tables, packet, work).and_then(|()| fragments::resolve(tables, work)) {
        Ok(()) => {}
        Err(_) if !tunnel => return work.pass(),
        Err(reason) => return Err(reason),
    }
    let mut owner = Addr::UNSPECIFIED;
    if tunnel {
        let destination = work.tuple.dst;
        let route = route::lookup(tables, work, &destination)?;
        if route.action != route_action::TUNNEL {
            // The host reports its multicast groups on every device, this one included.
            let link_local = route::is_link_local(&destination);
            return Err(if link_local {
                Reason::LinkLocal
            } else {
                Reason::NoRoute
            });
        }
        owner = route.gateway;
    }
    // Whoever dialled a Service whose backend is the node itself may be behind the tunnel as well.
    let answer = external::leaving(tables, packet, work)?;
    if tunnel {
        let [a, b, c, d, e, f] = Config::TUNNEL_SENDER;
        let sender = [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes);
        packet.store(6, &sender, false)?;
        work.way = way::TUNNEL_KEY;
        work.gateway = owner;
        return Ok(());
    }
    if answer {
        return work.pass();
    }
    stack::leaving(tables, packet, work)
}
