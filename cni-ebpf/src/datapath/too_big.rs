//! The answer to a packet that the tunnel cannot carry and the stack must not have.
//!
//! The stack says "too big" where it would have sent the packet the same way. To another node's address it knows a way of
//! its own past the tunnel, and there the packet fits. So this is said here, in the name of the destination.

use super::headers::{L3, proto};
use super::work::fragment;
use super::{NotRewritten, Outcome, Packet, Work, way};
use crate::abi::Reason;

/// So much of the packet is quoted, from its network header on: what its sender knows it by, behind all options of IPv4
/// and common headers of IPv6.
const QUOTED: u16 = 96;
const IPV4: u16 = 20;
const IPV6: u16 = 40;
const ICMP: u16 = 8;
const HOPS: u8 = 64;

/// "Fragmentation needed" and "packet too big".
const NEEDED: [u8; 2] = [3, 4];
const TOO_BIG: [u8; 2] = [2, 0];

/// The packet is larger than `mtu`, which its sender is to be told, unless it is one that nobody answers (RFC 1122, 4443).
#[inline(always)]
pub(super) fn found(work: &mut Work, mtu: u32) -> Outcome {
    if work.headers.icmp_error != 0 || work.headers.fragment == fragment::LATER {
        return Err(Reason::TooBig);
    }
    work.way = way::TOO_BIG;
    work.largest = mtu;
    Ok(())
}

/// Makes of the packet the ICMP error that its sender gets.
#[inline(always)]
pub(super) fn answer<P: Packet>(packet: &mut P, work: &mut Work) -> Outcome {
    let answered = if work.headers.v6 != 0 {
        v6(packet, work)
    } else {
        v4(packet, work)
    };
    answered.map_err(|NotRewritten| Reason::TooBig)?;
    work.way = way::PEER;
    work.to_ifindex = packet.ifindex();
    Ok(())
}

/// Words in wire order; a sum of them does not ask for more.
#[inline(always)]
fn word(bytes: [u8; 2]) -> u16 {
    u16::from_ne_bytes(bytes)
}

#[inline(always)]
fn v4<P: Packet>(packet: &mut P, work: &Work) -> Result<(), NotRewritten> {
    let head = IPV4 + ICMP;
    let quoted = cut(packet, head)?;
    let mtu = (work.largest as u16).to_be();
    let icmp = checksum(quoted + u32::from(word(NEEDED)) + u32::from(mtu));
    let [src0, src1] = halves(work.tuple.dst.word_v4());
    let [dst0, dst1] = halves(work.tuple.src.word_v4());
    let first = word([0x45, 0]);
    let length = (head + QUOTED).to_be();
    // Never cut, so it needs no identification (RFC 6864).
    let whole = word([0x40, 0]);
    let protocol = word([HOPS, proto::ICMP]);
    let addresses = u32::from(src0) + u32::from(src1) + u32::from(dst0) + u32::from(dst1);
    let fixed = u32::from(first) + u32::from(length) + u32::from(whole) + u32::from(protocol);
    let own = checksum(fixed + addresses);
    let header = [
        first,
        length,
        0,
        whole,
        protocol,
        own,
        src0,
        src1,
        dst0,
        dst1,
        word(NEEDED),
        icmp,
        0,
        mtu,
    ];
    packet.store(L3, &header, false)
}

#[inline(always)]
fn v6<P: Packet>(packet: &mut P, work: &Work) -> Result<(), NotRewritten> {
    let quoted = cut(packet, IPV6 + ICMP)?;
    let length = (ICMP + QUOTED).to_be();
    let [mtu0, mtu1] = halves(work.largest.to_be());
    let (src, dst) = (work.tuple.dst.words(), work.tuple.src.words());
    let pseudo = sum(&src) + sum(&dst) + u32::from(length) + u32::from(word([0, proto::ICMPV6]));
    let icmp = checksum(quoted + pseudo + u32::from(word(TOO_BIG)) + u32::from(mtu0) + u32::from(mtu1));
    let header = [word([0x60, 0]), 0, length, word([proto::ICMPV6, HOPS])];
    packet.store(L3, &header, false)?;
    packet.store(L3 + 8, &[src, dst], false)?;
    let error = [word(TOO_BIG), icmp, mtu0, mtu1];
    packet.store(L3 + u32::from(IPV6), &error, false)
}

/// Cuts the packet, makes room for `head` bytes in front of it and turns the link header round. Gives the sum over what
/// is quoted.
#[inline(always)]
fn cut<P: Packet>(packet: &mut P, head: u16) -> Result<u32, NotRewritten> {
    packet.quote(L3 + u32::from(QUOTED), u32::from(head))?;
    let macs: [[u16; 3]; 2] = packet.load(0).ok_or(NotRewritten)?;
    let [to, from] = macs;
    packet.store(0, &[from, to], false)?;
    let (mut total, mut at, end) = (0, L3 + u32::from(head), L3 + u32::from(head + QUOTED));
    while at < end {
        // Unrolled, all words would be on the stack at once.
        let word: u32 = packet.load(core::hint::black_box(at)).ok_or(NotRewritten)?;
        total += (word & 0xffff) + (word >> 16);
        at += 4;
    }
    Ok(total)
}

#[inline(always)]
fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}

#[inline(always)]
fn sum(words: &[u32; 4]) -> u32 {
    words.iter().map(|word| (word & 0xffff) + (word >> 16)).sum()
}

#[inline(always)]
fn checksum(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}
