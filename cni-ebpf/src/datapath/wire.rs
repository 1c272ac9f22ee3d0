//! What arrives for a Service by a device and leaves again, before the stack has made a packet of it (XDP).
//!
//! Taken is what is certain to leave this node by the device that brought it: a connection from outside to a backend that is
//! elsewhere and no tunnel away, and what comes back from there. All else passes on, unchanged and with nothing entered for it, to `from_netdev`, which would
//! have done the same with what is taken here.

use super::checksum::Sum;
use super::connection::{advance_known, known_as};
use super::headers::{self, Ethertype, L3, proto};
use super::work::fragment;
use super::{
    Headers, Outcome, Tables, Wire, Work, balance, conntrack, external, nat, origin, route, service, way,
};
use crate::abi::{Addr, Alias, direction, flow_flags, hook, route_action, service_scope, via};

/// Whether [`xdp_nodeport`] has taken the packet. What passes on is neither counted nor told: the hook behind does that.
#[inline(always)]
pub fn takes(work: &Work, outcome: &Outcome) -> bool {
    outcome.is_err() || work.way == way::NEIGHBOUR
}

/// What arrives on a device of the node, before anybody else sees it.
#[inline(always)]
pub fn xdp_nodeport<T: Tables, W: Wire>(tables: &T, packet: &mut W, work: &mut Work) -> Outcome {
    super::start(work, hook::XDP_NODEPORT, direction::INGRESS);
    if !serves(tables, packet, work) {
        return work.pass();
    }
    let Some(alias) = conntrack::by_alias(tables, &work.tuple) else {
        return begin(tables, packet, work);
    };
    known(tables, packet, work, alias)
}

/// Whether the packet could be one of a connection that passes through.
#[inline(always)]
fn serves<T: Tables, W: Wire>(tables: &T, packet: &mut W, work: &mut Work) -> bool {
    if tables.config().has_services() == 0
        || headers::ethertype(packet) != Ethertype::Ip
        || super::open(tables, packet, work).is_err()
    {
        return false;
    }
    let about = &work.headers;
    if about.fragment != fragment::WHOLE
        || about.icmp_error != 0
        || about.ttl <= 1
        || !matches!(work.tuple.proto, proto::TCP | proto::UDP)
        || awaits_checksum(packet, work)
        || origin::carries_tunnelled(tables, work)
    {
        return false;
    }
    let (src, dst) = (&work.tuple.src, &work.tuple.dst);
    !route::is_loopback(src) && !route::is_loopback(dst) && tables.endpoint(dst).is_none()
}

/// A packet of a connection that has a translated tuple.
#[inline(always)]
fn known<T: Tables, W: Wire>(tables: &T, packet: &mut W, work: &mut Work, alias: &Alias) -> Outcome {
    let answers = alias.reply != 0;
    let found = conntrack::behind(tables, work, alias);
    let Some(known) = found.and_then(
        #[inline(always)]
        |found| known_as(tables, packet, work, found, None, true),
    ) else {
        return if answers {
            work.pass()
        } else {
            begin(tables, packet, work)
        };
    };
    let flow = known.found.flow;
    let ends_here = flow.flags.get() & flow_flags::HOST != 0
        || flow.source_endpoint != 0
        || flow.destination_endpoint != 0;
    if ends_here || service::may_move(tables, work, flow) {
        return work.pass();
    }
    nat::leaving(work, flow);
    if !leaves(tables, packet, work) {
        return work.pass();
    }
    advance_known(tables, packet, work, &known)?;
    super::send(tables, packet, work)?;
    address(packet, work)
}

/// The first packet of a connection to a Service. Of a known one its flow says that no pod of this node is at either end.
#[inline(always)]
fn begin<T: Tables, W: Wire>(tables: &T, packet: &mut W, work: &mut Work) -> Outcome {
    if conntrack::amidst(work)
        || conntrack::is_nobodys(tables, packet, work).is_err()
        || tables.endpoint(&work.tuple.src).is_some()
        || balance::asked(tables, packet, work, service_scope::EXTERNAL).is_err()
        || work.choice.found == 0
        || origin::outside(tables, work, true).is_err()
    {
        return work.pass();
    }
    external::chosen(work);
    if tables.endpoint(&work.out.dst).is_some() || !leaves(tables, packet, work) {
        return work.pass();
    }
    conntrack::begin(packet, work);
    work.flow.flags.set(work.flow.flags.get() | flow_flags::OUTSIDE);
    if let Some(settings) = tables.settings() {
        work.flow.class_epoch.set(settings.class_epoch);
    }
    work.flow.via_reply = via::DEVICE;
    external::pass_through(tables, packet, work)?;
    address(packet, work)
}

/// Whether the way to `work.out.dst` is one that needs nobody else: into `work.way`, with the link header.
#[inline(always)]
fn leaves<T: Tables, W: Wire>(tables: &T, packet: &mut W, work: &mut Work) -> bool {
    let destination = work.out.dst;
    let Ok(route) = route::lookup(tables, work, &destination) else {
        return false;
    };
    let direct = route.action == route_action::DIRECT;
    if !direct && route.action != route_action::FIB || route::exceeds(packet, work, route.mtu) {
        return false;
    }
    let named = direct && route.gateway != Addr::UNSPECIFIED;
    let next = if named { route.gateway } else { destination };
    // By the address that the packet came with: see `route::by_fib`.
    let Some(hop) = packet.hop(&work.tuple.src, &next, work.headers.length) else {
        return false;
    };
    let gateway = if direct { route.gateway } else { hop.gateway };
    if direct && hop.ifindex != route.ifindex || named && hop.gateway != gateway {
        return false;
    }
    // Not every device takes frames that never were in a socket buffer; the one that brought this takes it back.
    if hop.ifindex != packet.ifindex() {
        return false;
    }
    work.link = hop.link;
    work.neighbour(hop.ifindex, gateway);
    true
}

/// Writes the link header: behind this program nobody does.
#[inline(always)]
fn address<W: Wire>(packet: &mut W, work: &Work) -> Outcome {
    packet.write(0, &work.link)?;
    Ok(())
}

/// Whether a device is still to compute the packet's checksum. Where it leaves by this program nobody would: what tells a
/// packet of another machine from one of this, which a virtual device hands over unfinished, stays behind. The sum over
/// the pseudo header stands there then; of finished packets it is that of one in 65,536, which goes the longer way.
#[inline(always)]
fn awaits_checksum<W: Wire>(packet: &W, work: &Work) -> bool {
    let Headers { l4, length, .. } = work.headers;
    let at = if work.tuple.proto == proto::TCP { 16 } else { 6 };
    let sum = Sum::pseudo(
        &work.tuple.src,
        &work.tuple.dst,
        length - (l4 - L3),
        work.tuple.proto,
    );
    packet
        .load::<u16>(l4 + at)
        .is_none_or(|stands| stands == sum.fold())
}
