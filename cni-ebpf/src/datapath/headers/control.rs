//! ICMP: queries by their id, errors by the packet inside.

use super::{ICMP_ANSWERER, Ipv4, Ipv6, L3, icmp, icmpv6, join, proto};
use crate::abi::{Addr, Port, Reason, Tuple};
use crate::datapath::{Headers, Packet};

#[inline(always)]
pub(super) fn message<P: Packet>(
    packet: &P,
    headers: &mut Headers,
    tuple: &mut Tuple,
    inner: &mut Tuple,
) -> Result<(), Reason> {
    let [kind, code]: [u8; 2] = packet.load(headers.l4).ok_or(Reason::Truncated)?;
    headers.icmp_type = kind;
    tuple.src_port = Port::ZERO;
    tuple.dst_port = Port::ZERO;
    let v6 = headers.v6 == 1;
    let (error, query, answer) = if v6 {
        (
            kind < icmpv6::FIRST_QUERY,
            kind == icmpv6::ECHO,
            kind == icmpv6::ECHO_REPLY,
        )
    } else {
        let error = matches!(
            kind,
            icmp::UNREACHABLE | icmp::SOURCE_QUENCH | icmp::REDIRECT | icmp::TIME_EXCEEDED | icmp::PARAMETER
        );
        (error, kind == icmp::ECHO, kind == icmp::ECHO_REPLY)
    };
    if error {
        headers.icmp_error = 1;
        return inner_packet(packet, headers, tuple.proto, inner);
    }
    if query || answer {
        let id: u16 = packet.load(headers.l4 + 4).ok_or(Reason::Truncated)?;
        // The ports tell the asking side from the answering one, so that a query never passes as an answer.
        let (src, dst) = if query {
            (Port::from_wire(id), ICMP_ANSWERER)
        } else {
            (ICMP_ANSWERER, Port::from_wire(id))
        };
        tuple.src_port = src;
        tuple.dst_port = dst;
        headers.icmp_reply = u8::from(answer);
    } else {
        tuple.src_port = Port::new(u16::from(kind) << 8 | u16::from(code));
    }
    Ok(())
}

/// The packet that an ICMP error is about: as much of it as there is must hold the ports.
#[inline(always)]
fn inner_packet<P: Packet>(
    packet: &P,
    headers: &mut Headers,
    proto: u8,
    inner: &mut Tuple,
) -> Result<(), Reason> {
    let l3 = headers.l4 + 8;
    headers.inner_l3 = l3;
    let end = L3 + headers.length;
    inner.pad = 0;
    inner.reserved = 0;
    let (l4, inner_proto) = if proto == proto::ICMP {
        let ip: Ipv4 = packet.load(l3).ok_or(Reason::Truncated)?;
        let header = u32::from(ip.version_ihl & 0xf) * 4;
        // Only a first fragment holds the ports.
        if ip.version_ihl >> 4 != 4 || header < 20 || u16::from_be(ip.fragment) & 0x1fff != 0 {
            return Err(Reason::Malformed);
        }
        inner.src = Addr::v4_word(ip.src);
        inner.dst = Addr::v4_word(ip.dst);
        (l3 + header, ip.proto)
    } else {
        let ip: Ipv6 = packet.load(l3).ok_or(Reason::Truncated)?;
        if u32::from_be(ip.version) >> 28 != 6 {
            return Err(Reason::Malformed);
        }
        inner.src = join(ip.src);
        inner.dst = join(ip.dst);
        if inner.src.is_v4() || inner.dst.is_v4() {
            return Err(Reason::MappedAddress);
        }
        // One fragment header in front of the transport is usual in a "packet too big".
        if ip.next == proto::FRAGMENT {
            let [next, _]: [u8; 2] = packet.load(l3 + 40).ok_or(Reason::Truncated)?;
            let word: u16 = packet.load(l3 + 42).ok_or(Reason::Truncated)?;
            if u16::from_be(word) >> 3 != 0 {
                return Err(Reason::Malformed);
            }
            (l3 + 48, next)
        } else {
            (l3 + 40, ip.next)
        }
    };
    if l4 + 8 > end {
        return Err(Reason::Truncated);
    }
    inner.proto = inner_proto;
    headers.inner_l4 = l4;
    headers.inner_room = end - l4;
    inner_ports(packet, l4, inner)
}

#[inline(always)]
fn inner_ports<P: Packet>(packet: &P, l4: u32, inner: &mut Tuple) -> Result<(), Reason> {
    match inner.proto {
        proto::TCP | proto::UDP | proto::SCTP => {
            let [src, dst]: [u16; 2] = packet.load(l4).ok_or(Reason::Truncated)?;
            inner.src_port = Port::from_wire(src);
            inner.dst_port = Port::from_wire(dst);
            Ok(())
        }
        proto::ICMP | proto::ICMPV6 => {
            let [kind, _]: [u8; 2] = packet.load(l4).ok_or(Reason::Truncated)?;
            let id: u16 = packet.load(l4 + 4).ok_or(Reason::Truncated)?;
            let (query, answer) = if inner.proto == proto::ICMP {
                (kind == icmp::ECHO, kind == icmp::ECHO_REPLY)
            } else {
                (kind == icmpv6::ECHO, kind == icmpv6::ECHO_REPLY)
            };
            if !query && !answer {
                return Err(Reason::RelatedUnknown);
            }
            let id = Port::from_wire(id);
            (inner.src_port, inner.dst_port) = if query {
                (id, ICMP_ANSWERER)
            } else {
                (ICMP_ANSWERER, id)
            };
            Ok(())
        }
        _ => Err(Reason::UnknownProtocol),
    }
}
