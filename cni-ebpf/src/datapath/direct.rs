//! Direct server return: a node that received a client's packet for a Service gives it, as it came, to the node of the
//! backend, and that one answers the client itself.
//!
//! The packet goes through the tunnel and bears the Service's address; which of its pods it is for, the receiving node reads
//! from the link addresses inside of the tunnel, of which nobody needs anything there. So nothing is added to the packet, no
//! header and no option: what fits without it fits with it.

use super::work::direct;
use super::{Packet, Tables, Work, conntrack};
use crate::abi::{Addr, Flow, Port, ServiceKey, Tuple, flow_flags, put, service_scope};

/// The first byte of both link addresses: given out by hand and for one device, as a link address must be, and not how the
/// addresses of other tunnelled frames begin.
const MARK: u8 = 0x06;

/// The link header that names `out.dst` and its port.
#[inline(always)]
pub(super) fn link(out: &Tuple) -> [u16; 6] {
    let [a, b, c, d, e, f, g, h] = out.dst.lo.to_ne_bytes();
    [
        u16::from_ne_bytes([MARK, a]),
        u16::from_ne_bytes([b, c]),
        u16::from_ne_bytes([d, e]),
        u16::from_ne_bytes([MARK, f]),
        u16::from_ne_bytes([g, h]),
        out.dst_port.wire(),
    ]
}

/// Whether the frame names a backend: then it stands in `work.choice`, and the packet is for it, if it is one of this node's.
#[inline(always)]
pub(super) fn came<T: Tables, P: Packet>(tables: &T, packet: &P, work: &mut Work) -> bool {
    let Some([d0, d1, d2, s0, s1, port]) = packet.load::<[u16; 6]>(0) else {
        return false;
    };
    let ([mark, a], [other, f]) = (d0.to_ne_bytes(), s0.to_ne_bytes());
    if mark != MARK || other != MARK || tables.config().has_services() == 0 {
        return false;
    }
    let ([b, c], [d, e], [g, h]) = (d1.to_ne_bytes(), d2.to_ne_bytes(), s1.to_ne_bytes());
    work.choice.addr = Addr {
        hi: 0,
        lo: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
    };
    work.choice.port = Port::from_wire(port);
    if work.headers.v6 != 0
        && let Some(settings) = tables.settings()
    {
        work.choice.addr.hi = settings.pods_v6;
    }
    work.direct = direct::CAME;
    true
}

/// Of a packet that names its backend: whether the connection that it is known to belong to leads there.
#[inline(always)]
pub(super) fn leads_there(work: &mut Work, flow: &Flow) -> bool {
    if work.direct != direct::CAME {
        return true;
    }
    conntrack::forward_tuple(&work.key, flow, &mut work.out);
    work.out.dst == work.choice.addr && work.out.dst_port == work.choice.port
}

/// A new connection: the backend is the one that was named, the Service the one whose frontend was dialled.
#[inline(always)]
pub(super) fn choose<T: Tables>(tables: &T, work: &mut Work) {
    put(&mut work.choice.found, 0);
    if work.direct != direct::CAME {
        return;
    }
    let Work {
        tuple, out, choice, ..
    } = work;
    choice.key = ServiceKey {
        addr: tuple.dst,
        port: tuple.dst_port,
        proto: tuple.proto,
        scope: service_scope::EXTERNAL,
        pad: 0,
    };
    choice.service = tables.service(&choice.key).map_or(0, |service| service.id);
    choice.backend = 0;
    choice.found = 1;
    out.dst = choice.addr;
    out.dst_port = choice.port;
}

/// A packet of a known connection leaves as the first one did.
#[inline(always)]
pub(super) fn follow(work: &mut Work, flow: &Flow) {
    if work.direct == direct::NO && work.reply == 0 && flow.flags.get() & flow_flags::DSR != 0 {
        work.direct = direct::LEAVES;
    }
}
