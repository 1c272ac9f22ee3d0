//! The node's own side: masquerade, and the host's flows, which share one range of ports.
//!
//! The host's connections to the outside are entered in the same table as those of pods, so that one allocator knows
//! every port in use. They keep their port; only if a pod's flow has it towards the same destination are they
//! translated too.

use super::headers::{ICMP_ANSWERER, proto};
use super::refuse::answer;
use super::stage::{self, Stage};
use super::work::fragment;
use super::{
    Outcome, Packet, Tables, Work, balance, conntrack, enter, known, nat, open, route, service, translate,
};
use crate::abi::{Addr, Flow, Reason, flow_flags, route_action, route_flags, via};

/// Gives `work.flow` the address of device `ifindex` as its source, with a port that nobody uses.
#[inline(always)]
pub(super) fn masquerade<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    ifindex: u32,
) -> Result<(), Reason> {
    let device = tables.device(ifindex).ok_or(Reason::NatNoAddress)?;
    let address = if work.headers.v6 != 0 {
        device.masquerade_v6
    } else {
        device.masquerade_v4
    };
    if address == Addr::UNSPECIFIED {
        return Err(Reason::NatNoAddress);
    }
    work.snat = address;
    work.keep_port = 0;
    stage::call(Stage::Allocate, tables, packet, work)
}

/// A packet of one of the host's own flows, which are translated where they must be.
#[inline(always)]
pub(super) fn to_host<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    known: &super::connection::Known<'_>,
) -> Outcome {
    let found = &known.found;
    conntrack::advance(packet, work, found.flow);
    work.tell = 0;
    nat::leaving(work, found.flow);
    if conntrack::ripe(work, found.table) {
        super::connection::promote(tables, packet, work)?;
    }
    translate(tables, packet, work)?;
    work.pass()
}

/// An answer that was judged before the stack got it, and that the stack translates: only here, where it reaches the pod, does
/// it bear the address that the pod dialled. Whose connection would not be known as answered otherwise is: so its
/// datagrams stay where the stack sends them when Services become ours.
#[inline(always)]
pub(super) fn answered<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) {
    if open(tables, packet, work).is_err()
        || work.headers.fragment != fragment::WHOLE
        || work.headers.icmp_error != 0
    {
        return;
    }
    let Some(found) = conntrack::find(tables, work) else {
        return;
    };
    let flow = found.flow;
    let news =
        flow.flags.get() & flow_flags::REPLIED == 0 || work.headers.tcp_flags & !flow.tcp_reply.get() != 0;
    if work.reply == 0 || work.aliased != 0 || flow.via_forward != via::STACK || !news {
        return;
    }
    conntrack::advance(packet, work, flow);
    work.tell = 0;
    if conntrack::ripe(work, found.table) {
        // Translated by the stack alone, it has no tuple but its own.
        let _ = stage::call(Stage::Promote, tables, packet, work);
    }
}

/// The alias stands and the flow is gone: it is built again, under the policy of this moment.
#[inline(always)]
pub(super) fn rebuilt<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    if !nat::rebuild(tables, packet, work) || work.reply == 0 {
        return work.pass();
    }
    let origin = work.out.src;
    // A host's flow that was not translated needs no entry to be answered.
    let Some(receiver) = tables.endpoint(&origin) else {
        return work.pass();
    };
    if !conntrack::is_of(work.flow.source_endpoint, Some(receiver)) {
        return work.pass();
    }
    work.endpoint = receiver.id;
    super::policy::admit(tables, packet, work, Some(receiver), None, false)?;
    work.flow.via_reply = via::PEER;
    enter(tables, work)?;
    let forward = work.out;
    work.out = forward.reversed();
    work.stack_reply = 0;
    super::deliver(tables, packet, work, receiver)
}

/// Whether the stack sends on what came in the middle of a stream for a load balancer's address: nobody has translated it, so
/// nobody knows the stream. A router would send it here again, and again, until it has been round too often.
#[inline(always)]
fn goes_round<T: Tables, P: Packet>(tables: &T, packet: &P, work: &mut Work) -> bool {
    if packet.ingress_ifindex() == 0 || !conntrack::amidst(work) || tables.config().has_services() == 0 {
        return false;
    }
    let Work { choice, tuple, .. } = work;
    service::serves_outside(tables, choice, tuple)
}

/// A packet that the stack sends through a device of the node.
#[inline(always)]
pub(super) fn leaving<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    let destination = work.tuple.dst;
    let Ok(route) = route::lookup(tables, work, &destination) else {
        return work.pass();
    };
    let is_service = route.action == route_action::SERVICE;
    if tables.config().has_services() != 0 && (is_service || balance::is_pinged(tables, work)) {
        // Of a socket that no program connected to an endpoint. Outside nobody has this address.
        return balance::vacant(tables, packet, work);
    }
    if goes_round(tables, packet, work) {
        return balance::answered(tables, packet, work, answer::REFUSE, Reason::InvalidState);
    }
    if route.flags & route_flags::MASQUERADE == 0 || tables.config().masquerades() == 0 {
        return work.pass();
    }
    if work.headers.icmp_error != 0 {
        // The stack's, about an answer that it was to forward to a pod: the far side knows the node's address only.
        // Nothing is changed unless the flow is found.
        let _ = stage::call(Stage::Related, tables, packet, work);
        return work.pass();
    }
    let source = work.tuple.src;
    let pod = tables.endpoint(&source);
    if pod.is_none() && !host_flow(tables, work, &source) {
        return work.pass();
    }
    if let Some(known) = known(tables, packet, work, pod, false) {
        let found = &known.found;
        if found.flow.flags.get() & flow_flags::SNAT != 0 {
            of_host(tables, packet, work, found.flow)?;
            return work.pass();
        }
        // `from_pod` left it to the stack where the packet leaves, and so the address to leave with to us.
        if pod.is_none() || work.reply != 0 || found.flow.via_forward != via::STACK {
            return work.pass();
        }
    } else {
        conntrack::ask_others(tables, packet, work)?;
    }
    work.out = work.tuple;
    conntrack::begin(packet, work);
    work.tell = 0;
    if let Some(pod) = pod {
        work.flow.source_endpoint = pod.id;
        let device = packet.ifindex();
        masquerade(tables, packet, work, device)?;
    } else {
        keep_or_exchange_port(tables, packet, work)?;
    }
    enter_stacks(tables, packet, work)?;
    work.pass()
}

/// Gives a flow of the host, `work.out`, a port towards its destination that nobody behind this node has: its own, if it can be.
#[inline(always)]
fn keep_or_exchange_port<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
) -> Result<(), Reason> {
    work.flow.flags.set(work.flow.flags.get() | flow_flags::HOST);
    work.snat = work.tuple.src;
    work.keep_port = 1;
    stage::call(Stage::Allocate, tables, packet, work)
}

/// Enters a translated flow that the stack carries in both directions, and translates its first packet.
#[inline(always)]
fn enter_stacks<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    work.flow.via_forward = via::STACK;
    work.flow.via_reply = via::STACK;
    enter(tables, work)?;
    balance::show_source(work);
    translate(tables, packet, work)
}

/// A new flow of the host to a pod of this node: somebody whom the node hides may have its port there, and would get its
/// answers. Its own are translated where the pod sends them, for the stack knows nothing of another port.
#[inline(always)]
pub(super) fn give_way<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    if must_give_way(tables, work) {
        keep_or_exchange_port(tables, packet, work)?;
        work.flow.via_reply = via::DEVICE;
    }
    Ok(())
}

/// Whether `work.out`, which nobody knows, begins a flow of the host whose answers would be another's.
#[inline(always)]
fn must_give_way<T: Tables>(tables: &T, work: &mut Work) -> bool {
    let source = work.tuple.src;
    nat::is_disputed(tables, work) && host_flow(tables, work, &source)
}

/// What the host sends to the cluster has no entry, unless it had to give way.
#[inline(always)]
pub(super) fn began_by_host<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
) -> Result<bool, Reason> {
    work.out = work.tuple;
    if !must_give_way(tables, work) {
        return Ok(false);
    }
    conntrack::begin(packet, work);
    work.tell = 0;
    keep_or_exchange_port(tables, packet, work)?;
    enter_stacks(tables, packet, work)?;
    Ok(true)
}

/// A packet of a flow that was given a port where it leaves.
#[inline(always)]
pub(super) fn of_host<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    flow: &Flow,
) -> Outcome {
    if nat::due(work, flow) {
        stage::call(Stage::LookAfter, tables, packet, work)?;
    }
    if flow.flags.get() & flow_flags::HOST != 0 {
        conntrack::advance(packet, work, flow);
        work.tell = 0;
    } else {
        // A pod's: `from_pod` has counted it.
        flow.seen.set(work.now);
    }
    nat::leaving(work, flow);
    translate(tables, packet, work)
}

/// Whether this is a flow of the host from a port that could be allocated to a pod.
#[inline(always)]
fn host_flow<T: Tables>(tables: &T, work: &mut Work, source: &Addr) -> bool {
    let config = tables.config();
    let port = u32::from(work.tuple.src_port.get());
    // Of ICMP only queries have something that could be taken for a port.
    let icmp = matches!(work.tuple.proto, proto::ICMP | proto::ICMPV6);
    if port < config.first_port()
        || port > config.last_port()
        || (icmp && work.tuple.dst_port != ICMP_ANSWERER)
    {
        return false;
    }
    route::lookup(tables, work, source).is_ok_and(|route| route.action == route_action::HOST)
}
