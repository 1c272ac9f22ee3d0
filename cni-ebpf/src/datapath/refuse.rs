//! Answers that the programs give in somebody's name: a Service that has nobody refuses at once, its address answers
//! pings, and what is too large or too old for the way to a backend is told so.
//!
//! The packet is made its own answer. It may still await a checksum from a device (CHECKSUM_PARTIAL), which no program
//! can see or change: of TCP the sum that stands there tells, and an ICMP error is put in front of what it is about, so
//! that the packet inside stays complete as far as that sum reaches.

use super::checksum::Sum;
use super::headers::{ICMP_ANSWERER, L3, icmp, icmpv6, proto, tcp};
use super::rewrite::{HOPS, begin_hops, correct16};
use super::work::{direct, fragment};
use super::{NotRewritten, Packet, Tables, Work};
use crate::abi::{Reason, hook};

/// What an answer says, as [`Work::answer_kind`] holds it.
pub mod answer {
    /// Nobody listens there.
    pub const REFUSE: u8 = 1;
    /// An echo reply.
    pub const ECHO: u8 = 2;
    /// Larger than [`Work::answer_mtu`](super::Work::answer_mtu).
    pub const TOO_BIG: u8 = 3;
    pub const EXPIRED: u8 = 4;
}

/// Makes the packet its answer and sends it back. Afterwards `work.answered` says so, and the run's reason stands.
#[inline(always)]
pub(super) fn stage<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Result<(), Reason> {
    let kind = work.answer_kind;
    // Of a datagram in parts one answer is enough, and an error is never about an error.
    let later = work.headers.fragment == fragment::LATER && kind != answer::ECHO;
    // A reset is never about a reset. To what another node sent on an answer would be in the name of an address that this
    // other node has itself.
    let resets =
        kind == answer::REFUSE && work.tuple.proto == proto::TCP && work.headers.tcp_flags & tcp::RST != 0;
    if later || resets || work.headers.icmp_error != 0 || work.direct == direct::CAME {
        return Ok(());
    }
    way_back(tables, packet, work);
    if kind == answer::ECHO {
        echo(packet, work)?;
    } else if kind == answer::REFUSE && work.tuple.proto == proto::TCP {
        if work.headers.fragment != fragment::WHOLE {
            return Ok(());
        }
        reset(packet, work)?;
    } else {
        error(tables, packet, work)?;
    }
    // In the tunnel every node has the same link address.
    if work.way != super::way::TUNNEL {
        turn_back(packet)?;
    }
    work.answered = 1;
    Ok(())
}

/// Exchanges the link addresses.
#[inline(always)]
fn turn_back<P: Packet>(packet: &mut P) -> Result<(), NotRewritten> {
    let [d0, d1, d2, s0, s1, s2]: [u16; 6] = packet.load(0).ok_or(NotRewritten)?;
    packet.store(0, &[s0, s1, s2, d0, d1, d2], false)
}

/// Exchanges the network addresses; no checksum over them changes.
#[inline(always)]
fn exchange_addresses<P: Packet>(packet: &mut P, work: &Work) -> Result<(), NotRewritten> {
    let (src, dst) = (&work.tuple.src, &work.tuple.dst);
    if work.headers.v6 != 0 {
        packet.store(L3 + 8, &dst.words(), false)?;
        return packet.store(L3 + 24, &src.words(), false);
    }
    packet.store(L3 + 12, &[dst.word_v4(), src.word_v4()], false)
}

#[inline(always)]
fn echo<P: Packet>(packet: &mut P, work: &Work) -> Result<(), NotRewritten> {
    exchange_addresses(packet, work)?;
    begin_hops(packet, &work.headers)?;
    if work.headers.fragment == fragment::LATER {
        return Ok(());
    }
    let l4 = work.headers.l4;
    let asked: u16 = packet.load(l4).ok_or(NotRewritten)?;
    let reply = if work.headers.v6 != 0 {
        icmpv6::ECHO_REPLY
    } else {
        icmp::ECHO_REPLY
    };
    let answered = u16::from_ne_bytes([reply, 0]);
    packet.replace_l4_checksum(l4 + 2, u32::from(asked), u32::from(answered), 2, false, false)?;
    packet.store(l4, &answered, false)
}

/// Whether the packet is an echo request, also a part of one. A reply is none, whatever its id: two nodes that took it for one would
/// answer each other for ever.
#[inline(always)]
pub(super) fn is_echo(work: &Work) -> bool {
    let icmp = matches!(work.tuple.proto, proto::ICMP | proto::ICMPV6);
    icmp && work.tuple.dst_port == ICMP_ANSWERER && work.headers.icmp_reply == 0
}

/// RFC 9293: a reset that the sender takes for the answer to this segment.
#[inline(always)]
fn reset<P: Packet>(packet: &mut P, work: &Work) -> Result<(), NotRewritten> {
    let headers = &work.headers;
    let (src, dst) = (&work.tuple.src, &work.tuple.dst);
    let l4 = headers.l4;
    let [_, sequence, acknowledged]: [u32; 3] = packet.load(l4).ok_or(NotRewritten)?;
    let before: u16 = packet.load(l4 + 16).ok_or(NotRewritten)?;
    let segment = headers.length - (l4 - L3);
    let flags = headers.tcp_flags;
    let (sequence, acknowledges, flags) = if flags & tcp::ACK != 0 {
        (acknowledged, 0, tcp::RST)
    } else {
        let occupied = segment.wrapping_sub(headers.l4_length)
            + u32::from(flags & tcp::SYN != 0)
            + u32::from(flags & tcp::FIN != 0);
        let next = u32::from_be(sequence).wrapping_add(occupied);
        (0, next.to_be(), tcp::RST | tcp::ACK)
    };
    let [p0, p1] = work.tuple.dst_port.wire().to_ne_bytes();
    let [p2, p3] = work.tuple.src_port.wire().to_ne_bytes();
    let ports = u32::from_ne_bytes([p0, p1, p2, p3]);
    let offset = u32::from_ne_bytes([0x50, flags, 0, 0]);
    let pseudo = Sum::pseudo(src, dst, 20, proto::TCP);
    // What stands there already is the sum over the addresses and the length: a device is to add the rest.
    let partial = before == Sum::pseudo(src, dst, segment, proto::TCP).fold();
    let checksum = if partial {
        pseudo.fold()
    } else {
        !pseudo
            .add(ports)
            .add(sequence)
            .add(acknowledges)
            .add(offset)
            .fold()
    };
    packet.cut(l4 + 20)?;
    let [c0, c1] = checksum.to_ne_bytes();
    let last = u32::from_ne_bytes([c0, c1, 0, 0]);
    packet.store(l4, &[ports, sequence, acknowledges, offset, last], false)?;
    let length = (l4 - L3 + 20) as u16;
    if headers.v6 != 0 {
        packet.store(L3 + 4, &(length - 40).to_be(), false)?;
    } else {
        let [old]: [u16; 1] = packet.load(L3 + 2).ok_or(NotRewritten)?;
        let checksum: u16 = packet.load(L3 + 10).ok_or(NotRewritten)?;
        packet.store(L3 + 2, &length.to_be(), false)?;
        packet.store(L3 + 10, &correct16(checksum, old, length.to_be()), false)?;
    }
    begin_hops(packet, headers)?;
    exchange_addresses(packet, work)
}

/// How much of the packet an error shows: its network header, and of the transport's what holds ports and checksum.
#[inline(always)]
fn shown(work: &Work) -> u32 {
    if work.answer_kind == answer::TOO_BIG {
        return LARGE;
    }
    let transport = match work.tuple.proto {
        proto::TCP => 20,
        proto::SCTP => 12,
        _ => 8,
    };
    work.headers.l4 - L3 + transport
}

/// Of a packet that is too large more is shown, behind all options of IPv4 and common headers of IPv6.
const LARGE: u32 = 96;
/// More words than a packet with all the headers that parsing accepts shows are not summed up.
const WORDS: u32 = 64;

/// An ICMP error in front of the beginning of the packet.
#[inline(always)]
fn error<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &Work) -> Result<(), NotRewritten> {
    let shown = shown(work);
    if shown & 3 != 0 || shown > WORDS * 4 {
        return Err(NotRewritten);
    }
    let v6 = work.headers.v6 != 0;
    let (from, to) = (&work.tuple.dst, &work.tuple.src);
    let mtu = if work.answer_kind == answer::TOO_BIG {
        work.answer_mtu
    } else {
        0
    };
    let (kind, code) = match (work.answer_kind, v6) {
        (answer::TOO_BIG, false) => (icmp::UNREACHABLE, 4),
        (answer::TOO_BIG, true) => (2, 0),
        (answer::EXPIRED, false) => (icmp::TIME_EXCEEDED, 0),
        (answer::EXPIRED, true) => (3, 0),
        (_, false) => (icmp::UNREACHABLE, 3),
        (_, true) => (1, 4),
    };
    let first = u32::from_ne_bytes([kind, code, 0, 0]);
    let length = 8 + shown;
    let mut sum = if v6 {
        Sum::pseudo(from, to, length, proto::ICMPV6)
    } else {
        Sum(0)
    };
    sum = sum.add(first).add(mtu.to_be());
    packet.cut(L3 + shown)?;
    let mut total = sum.0;
    let mut missing = 0u32;
    let seen: &P = packet;
    tables.repeat(shown / 4, |word| {
        match seen.load::<u32>(L3 + word * 4) {
            Some(word) => total += u64::from(word),
            None => missing = 1,
        }
        true
    });
    if missing != 0 {
        return Err(NotRewritten);
    }
    let [c0, c1] = (!Sum(total).fold()).to_ne_bytes();
    let first = u32::from_ne_bytes([kind, code, c0, c1]);
    if v6 {
        packet.widen(48)?;
        let [s0, s1, s2, s3] = from.words();
        let [d0, d1, d2, d3] = to.words();
        let [l0, l1] = (length as u16).to_be_bytes();
        let (version, length) = (
            u32::from_ne_bytes([0x60, 0, 0, 0]),
            u32::from_ne_bytes([l0, l1, proto::ICMPV6, HOPS]),
        );
        packet.store(L3, &[version, length, s0, s1, s2, s3], false)?;
        return packet.store(L3 + 24, &[d0, d1, d2, d3, first, mtu.to_be()], false);
    }
    packet.widen(28)?;
    let [l0, l1] = ((20 + length) as u16).to_be_bytes();
    let start = u32::from_ne_bytes([0x45, 0, l0, l1]);
    // Never cut, so it needs no identification (RFC 6864).
    let whole = u32::from_ne_bytes([0, 0, 0x40, 0]);
    let (src, dst) = (from.word_v4(), to.word_v4());
    let hops = u32::from_ne_bytes([HOPS, proto::ICMP, 0, 0]);
    let [c0, c1] = (!Sum(0).add(start).add(whole).add(hops).add(src).add(dst).fold()).to_ne_bytes();
    let hops = u32::from_ne_bytes([HOPS, proto::ICMP, c0, c1]);
    packet.store(L3, &[start, whole, hops, src, dst, first, mtu.to_be()], false)
}

/// Where an answer goes: back to the pod that asked, or out by the device on which the packet arrived.
#[inline(always)]
fn way_back<T: Tables, P: Packet>(tables: &T, packet: &P, work: &mut Work) {
    work.to_ifindex = packet.ifindex();
    let tunnel = work.to_ifindex == tables.config().tunnel_device();
    if work.hook == hook::FROM_POD {
        work.way = super::way::PEER;
    } else if tunnel {
        work.way = super::way::TUNNEL;
        if let Some((remote, _)) = packet.tunnel_source() {
            work.gateway = remote;
        }
    } else {
        work.way = super::way::BACK;
    }
}
