//! Where a packet goes.

use super::headers::L3;
use super::stage::{self, Stage};
use super::work::fragment;
use super::{Fib, GSO_BY_FRAGS, Outcome, Packet, Tables, Work, way};
use crate::abi::{
    Addr, Endpoint, Flow, Prefix, Reason, Route, endpoint_flags, route_action, route_flags, via,
};

/// The route to an address.
#[inline(always)]
pub(super) fn lookup<'t, T: Tables>(
    tables: &'t T,
    work: &mut Work,
    addr: &Addr,
) -> Result<&'t Route, Reason> {
    work.route_key = Prefix::host(*addr);
    tables.route(&work.route_key).ok_or(Reason::NoRoute)
}

/// A multicast, broadcast, loopback or link-local destination: a pod's link ends at its node.
#[inline(always)]
pub(super) fn is_link_local(addr: &Addr) -> bool {
    if addr.is_v4() {
        let [first, ..] = addr.word_v4().to_ne_bytes();
        // 224.0.0.0/4 and above, and "this network"; 169.254.0.0/16 is where clouds keep their metadata and clusters
        // their DNS caches, and goes by the routes.
        return first >= 224 || first == 0 || is_loopback(addr);
    }
    let [first, second, ..] = addr.octets();
    first == 0xff
        || (first == 0xfe && second & 0xc0 == 0x80)
        || (addr.hi == 0 && addr.lo == 0)
        || is_loopback(addr)
}

/// The stack lets these in from anywhere as soon as somebody sets `route_localnet`, which other proxies do.
#[inline(always)]
pub(super) fn is_loopback(addr: &Addr) -> bool {
    if addr.is_v4() {
        let [first, ..] = addr.word_v4().to_ne_bytes();
        return first == 127;
    }
    addr.hi == 0 && addr.lo == u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 0, 1])
}

/// Hands the packet to a local endpoint: straight into it, or through the stack where plugins behind ours act there.
#[inline(always)]
pub(super) fn to_endpoint(work: &mut Work, endpoint: &Endpoint) {
    work.to_ifindex = endpoint.ifindex;
    work.way = if through_stack(work, endpoint) {
        way::HANDLED
    } else {
        way::PEER
    };
}

/// Which way the direction at hand of a known connection takes. Plugins and proxies in the stack see both directions of a
/// connection or none: what they have seen half of, kube-proxy drops as invalid.
#[inline(always)]
pub(super) fn remember_way(work: &mut Work, flow: &Flow) {
    let way = if work.reply != 0 {
        flow.via_reply
    } else {
        flow.via_forward
    };
    work.stack_reply = u8::from(work.reply != 0 && way == via::STACK);
    work.straight = u8::from(way != via::STACK);
}

/// Whether a packet for a local endpoint takes the stack's way to it.
#[inline(always)]
pub(super) fn through_stack(work: &Work, endpoint: &Endpoint) -> bool {
    work.stack_reply != 0 || is_the_stacks(work, endpoint)
}

/// Whether the stack carries the connection to a local endpoint.
#[inline(always)]
fn is_the_stacks(work: &Work, endpoint: &Endpoint) -> bool {
    work.straight == 0 && endpoint.flags & endpoint_flags::VIA_STACK != 0
}

/// Whether the stack carries what this endpoint sends by the route, as it carries what the endpoint gets. To another node
/// itself it knows a way of its own past the tunnel, which that node would not take.
#[inline(always)]
pub(super) fn by_stack(endpoint: &Endpoint, route: &Route) -> bool {
    let past_the_tunnel = route.action == route_action::TUNNEL && route.flags & route_flags::NODE != 0;
    endpoint.flags & endpoint_flags::VIA_STACK != 0
        && matches!(
            route.action,
            route_action::DIRECT | route_action::TUNNEL | route_action::FIB
        )
        && !past_the_tunnel
}

/// How a connection's packets reach a local endpoint.
#[inline(always)]
pub(super) fn via_to(work: &Work, endpoint: &Endpoint) -> u8 {
    if is_the_stacks(work, endpoint) {
        via::STACK
    } else {
        via::PEER
    }
}

/// The way, for the flow.
#[inline(always)]
pub(super) fn via_of(way: u8) -> u8 {
    match way {
        way::PEER => via::PEER,
        way::NEIGHBOUR => via::DEVICE,
        way::TUNNEL | way::TUNNEL_KEY | way::TOO_BIG => via::TUNNEL,
        _ => via::STACK,
    }
}

/// Where a packet that is not for a local endpoint leaves.
#[inline(always)]
pub(super) fn leave<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    route: &Route,
) -> Outcome {
    // A known connection to a Service that is not translated here was the stack's when it began, and stays there; a new one
    // does not come this far.
    if matches!(
        route.action,
        route_action::HOST | route_action::STACK | route_action::SERVICE
    ) {
        work.way = way::LOCAL;
        return Ok(());
    }
    work.way = way::PASS;
    work.answer_mtu = 0;
    // What the stack can do and redirection cannot, it does: it answers with "time exceeded" or "too big", it cuts
    // into fragments. What it sends comes by `to_netdev`.
    let oversize = exceeds(packet, work, route.mtu);
    if oversize && route.action == route_action::TUNNEL && route.flags & route_flags::NODE != 0 {
        // The host itself reaches other nodes without the tunnel, and so would this. Pods that began before there was a
        // tunnel send more than it carries.
        return too_big(work, route.mtu);
    }
    if oversize {
        work.answer_mtu = route.mtu;
    }
    if work.headers.ttl <= 1 || oversize {
        return Ok(());
    }
    match route.action {
        route_action::ENDPOINTS => return Err(Reason::NoEndpoint),
        route_action::TUNNEL => {
            work.way = way::TUNNEL;
            work.gateway = route.gateway;
        }
        route_action::DIRECT => work.neighbour(route.ifindex, route.gateway),
        route_action::FIB => return stage::call(Stage::Fib, tables, packet, work),
        _ => return Err(Reason::NoRoute),
    }
    Ok(())
}

/// The packet is larger than `mtu`, and the stack, which says so where it would have sent the packet the same way, knows a
/// way of its own past the tunnel. So its sender is told here, unless it is a packet that nobody answers (RFC 1122, 4443).
#[inline(always)]
fn too_big(work: &mut Work, mtu: u32) -> Outcome {
    if work.headers.icmp_error != 0 || work.headers.fragment == fragment::LATER {
        return Err(Reason::TooBig);
    }
    work.way = way::TOO_BIG;
    work.answer_mtu = mtu;
    Ok(())
}

/// Asks the kernel's routing table.
#[inline(always)]
pub(super) fn by_fib<P: Packet>(packet: &P, work: &mut Work) -> Outcome {
    work.way = way::PASS;
    work.answer_mtu = 0;
    // By the address that the pod sent from, before and after translation: rules that look at the source must not lead
    // a connection's first packet one way and the others another.
    match packet.fib(&work.tuple.src, &work.out.dst, on_the_wire(packet, work)) {
        Fib::Device { ifindex, gateway } => work.neighbour(ifindex, gateway),
        Fib::Stack => {}
        // To what is not translated the stack says it.
        Fib::TooBig { mtu } => work.answer_mtu = mtu,
        Fib::Unroutable => return Err(Reason::NoRoute),
    }
    Ok(())
}

/// Whether the packet, or a segment that it will be cut into, is larger than `mtu`.
#[inline(always)]
pub(super) fn exceeds<P: Packet>(packet: &P, work: &Work, mtu: u32) -> bool {
    mtu != 0 && on_the_wire(packet, work) > mtu
}

/// The length, from the network header on, of the packet or of the segments that it will be cut into; 0 if nobody can tell.
#[inline(always)]
fn on_the_wire<P: Packet>(packet: &P, work: &Work) -> u32 {
    let headers = &work.headers;
    match packet.segment_size() {
        0 => headers.length,
        GSO_BY_FRAGS => 0,
        segment => headers.l4 - L3 + headers.l4_length + segment,
    }
}
