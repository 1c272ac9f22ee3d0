//! Services: from a frontend to one of its backends.
//!
//! Asked once for a new connection, by packets and by sockets alike. What the frontend says of the whole Service
//! (refuse, drop, whom it serves) comes before any slot is looked at.

use super::conntrack::SECOND;
use super::headers::proto;
use super::{Tables, Work, conntrack, lot, maglev};
use crate::abi::{
    Addr, Affinity, AffinityKey, Flow, MemberKey, Port, Racy, Reason, Service, ServiceKey, SourceRange,
    Tuple, flow_flags, service_flags, service_scope, tcp_state, via,
};

/// What a new connection dialled, and the backend that was chosen for it.
#[derive(Clone, Default, Debug)]
#[repr(C)]
pub struct Choice {
    /// By whom a Service with affinity knows the client: see [`client_kind`](crate::abi::client_kind).
    pub client: AffinityKey,
    pub key: ServiceKey,
    pub addr: Addr,
    pub service: u32,
    pub backend: u32,
    /// The frontend's [`service_flags`].
    pub flags: u32,
    pub port: Port,
    /// 1: a Service, and a backend was chosen.
    pub found: u8,
    /// From where it is asked: a [`service_scope`].
    pub scope: u8,
}

impl Default for ServiceKey {
    fn default() -> Self {
        Self {
            addr: Addr::UNSPECIFIED,
            port: Port::ZERO,
            proto: 0,
            scope: 0,
            pad: 0,
        }
    }
}

/// Whether a protocol has ports by which it could be a Service's.
#[inline(always)]
pub(super) fn serves(protocol: u8) -> bool {
    matches!(protocol, proto::TCP | proto::UDP | proto::SCTP)
}

/// The frontend of `tuple.dst`, seen from `choice.scope`.
#[inline(always)]
fn frontend<'t, T: Tables>(tables: &'t T, choice: &mut Choice, tuple: &Tuple) -> Option<&'t Service> {
    choice.key.addr = tuple.dst;
    choice.key.port = tuple.dst_port;
    choice.key.proto = tuple.proto;
    choice.key.scope = choice.scope;
    choice.key.pad = 0;
    let service = tables.service(&choice.key)?;
    choice.flags = service.flags;
    Some(service)
}

/// Fills `work.choice` for the destination of `work.tuple`; `choice.scope` and `choice.client` say who asks.
#[inline(always)]
pub(super) fn stage<T: Tables>(tables: &T, work: &mut Work) -> Result<(), Reason> {
    let Work {
        tuple, choice, now, ..
    } = work;
    choose(tables, tuple, choice, *now)
}

#[inline(always)]
pub(super) fn choose<T: Tables>(
    tables: &T,
    tuple: &Tuple,
    choice: &mut Choice,
    now: u64,
) -> Result<(), Reason> {
    choice.found = 0;
    let Some(service) = frontend(tables, choice, tuple) else {
        return Ok(());
    };
    choice.service = service.id;
    if service.ranges != 0 {
        let source = SourceRange {
            len: 160,
            ranges: service.ranges,
            words: tuple.src.words(),
        };
        if tables.source_range(&source).is_none() {
            return Err(Reason::ServiceSource);
        }
    }
    if service.flags & service_flags::REJECT != 0 {
        return Err(Reason::ServiceNoBackend);
    }
    if service.flags & service_flags::DROP != 0 {
        return Err(Reason::ServiceNotLocal);
    }
    choice.client.service = service.id;
    pick(tables, service, choice, tuple, now)?;
    choice.found = 1;
    Ok(())
}

/// Leads the client to a backend of the Service: to its own, if it has one, or to any.
#[inline(always)]
fn pick<T: Tables>(
    tables: &T,
    service: &Service,
    choice: &mut Choice,
    tuple: &Tuple,
    now: u64,
) -> Result<(), Reason> {
    if service.flags & service_flags::AFFINITY == 0 {
        return any(tables, service, choice, tuple, now);
    }
    if let Some(last) = tables.affinity(&choice.client)
        && now.saturating_sub(last.seen.get()) <= u64::from(service.affinity_seconds) * SECOND
    {
        let member = MemberKey {
            service: service.id,
            backend: last.backend,
        };
        if tables.member(&member).is_some() {
            last.seen.set(now);
            return lead(tables, choice, member.backend);
        }
    }
    any(tables, service, choice, tuple, now)?;
    let last = Affinity {
        seen: Racy::new(now),
        backend: choice.backend,
        pad: 0,
    };
    tables.remember_client(&choice.client, &last);
    Ok(())
}

/// To the backend of this number.
#[inline(always)]
fn lead<T: Tables>(tables: &T, choice: &mut Choice, backend: u32) -> Result<(), Reason> {
    choice.backend = backend;
    let target = tables.backend(&choice.backend).ok_or(Reason::ServiceNoBackend)?;
    choice.addr = target.addr;
    choice.port = target.port;
    Ok(())
}

/// What comes from outside may be asked about twice, by `xdp_nodeport` and by the hook behind that it leaves the packet
/// to: with two different answers, endpoints of other nodes would get more than their share. Who tries again later is
/// given another one.
#[inline(always)]
fn repeatable<T: Tables>(tables: &T, tuple: &Tuple, now: u64) -> u32 {
    let ports = u64::from(tuple.src_port.wire()) << 32
        | u64::from(tuple.dst_port.wire()) << 16
        | u64::from(tuple.proto);
    let moment = now >> 32;
    lot::draw(tables, [tuple.src.hi, tuple.src.lo, tuple.dst.lo, ports, moment]) as u32
}

#[inline(always)]
fn any<T: Tables>(
    tables: &T,
    service: &Service,
    choice: &mut Choice,
    tuple: &Tuple,
    now: u64,
) -> Result<(), Reason> {
    if service.maglev != 0
        && let Some(backend) = maglev::backend(tables, service, tuple)
    {
        return lead(tables, choice, backend);
    }
    let lot = if choice.scope == service_scope::EXTERNAL {
        repeatable(tables, tuple, now)
    } else {
        tables.random()
    };
    let slot = lot.checked_rem(service.slots).ok_or(Reason::ServiceNoBackend)?;
    let slot = tables
        .slot(service.first.wrapping_add(slot))
        .ok_or(Reason::ServiceNoBackend)?
        .read();
    // The frontend was written by a release that has no such slots, or read so long ago that they are another one's.
    if slot.service != service.id {
        return Err(Reason::Unsettled);
    }
    // It is being written. The number is one word, and a row of `backends` is exchanged as a whole.
    if slot.seal != slot.sealed() {
        return lead(tables, choice, slot.backend);
    }
    choice.backend = slot.backend;
    choice.addr = slot.addr;
    choice.port = slot.port;
    Ok(())
}

/// Counts a connection that begins.
#[inline(always)]
pub(super) fn count<T: Tables>(tables: &T, service: &u32) {
    match tables.opened(service) {
        Some(opened) => opened.count(),
        None => tables.remember_opened(service),
    }
}

/// Whether an address of the Service range is one of a Service, so that what is sent to it is answered.
#[inline(always)]
pub(super) fn lives<T: Tables>(tables: &T, choice: &mut Choice, addr: &Addr) -> bool {
    choice.key.addr = *addr;
    choice.key.port = Port::ZERO;
    choice.key.proto = 0;
    choice.key.scope = service_scope::CLUSTER;
    choice.key.pad = 0;
    tables.service(&choice.key).is_some()
}

/// Whether clients outside of the cluster are served where this goes.
#[inline(always)]
pub(super) fn serves_outside<T: Tables>(tables: &T, choice: &mut Choice, tuple: &Tuple) -> bool {
    choice.key.addr = tuple.dst;
    choice.key.port = tuple.dst_port;
    choice.key.proto = tuple.proto;
    choice.key.scope = service_scope::EXTERNAL;
    choice.key.pad = 0;
    tables.service(&choice.key).is_some()
}

/// How long the stack remembers where it sends datagrams that are answered (`nf_conntrack_udp_timeout_stream`).
const STACK_REMEMBERS: u64 = 120 * SECOND;

/// Whether a datagram of a known flow may have to go elsewhere: the flow's backend serves no longer, or there was no
/// Service when it began, and nobody has answered or the stack has forgotten it. Streams stay where they are.
#[inline(always)]
pub(super) fn may_move<T: Tables>(tables: &T, work: &mut Work, flow: &Flow) -> bool {
    let flags = flow.flags.get();
    // Whether a stream that goes by here one way only has ended on the other, its next beginning says.
    let begins_anew = flags & flow_flags::DSR != 0 && conntrack::begins(work);
    let asks = work.tuple.proto == proto::UDP || begins_anew;
    if !asks || work.reply != 0 || tables.config().has_services() == 0 {
        return false;
    }
    if flags & flow_flags::DNAT == 0 {
        let silent = work.now.saturating_sub(flow.seen.get()) >= STACK_REMEMBERS;
        return flow.state.get() == tcp_state::NEW || silent && flow.via_forward == via::STACK;
    }
    // Another node chose.
    if flow.backend == 0 {
        return false;
    }
    let Work { key, out, .. } = work;
    conntrack::forward_tuple(key, flow, out);
    !tables
        .backend(&flow.backend)
        .is_some_and(|backend| backend.addr == work.out.dst && backend.port == work.out.dst_port)
}
