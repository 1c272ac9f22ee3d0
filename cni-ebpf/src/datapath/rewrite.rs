//! Writing the packet: addresses, ports, checksums, link header.
//!
//! Checksums of the transport are corrected by the kernel's helpers, because only they know whether the device is still
//! to compute it (CHECKSUM_PARTIAL).

use super::headers::{L3, proto};
use super::work::fragment;
use super::{Headers, NotRewritten, Packet, Tables, sctp};
use crate::abi::{Addr, Port, Tuple};

/// One's complement difference between two addresses, as `bpf_csum_diff` gives it.
#[inline(always)]
pub fn address_difference(from: &Addr, to: &Addr) -> u32 {
    let mut sum = 0u64;
    let (from, to) = (from.words(), to.words());
    for (from, to) in from.iter().zip(to.iter()) {
        sum += u64::from(!from) + u64::from(*to);
    }
    fold32(sum)
}

#[inline(always)]
fn fold32(sum: u64) -> u32 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

/// Corrects a 16-bit checksum for one word that changed (RFC 1624), all in wire order.
#[inline(always)]
pub fn correct16(checksum: u16, from: u16, to: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!from) + u32::from(to);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Where a transport keeps its checksum, and what it covers.
#[derive(Clone, Copy)]
struct Checksum {
    offset: u32,
    /// The addresses count.
    pseudo: bool,
    zero_is_none: bool,
}

#[inline(always)]
fn checksum_of(protocol: u8, l4: u32, none: bool) -> Option<Checksum> {
    let (at, pseudo, zero_is_none) = match protocol {
        proto::TCP => (16, true, false),
        proto::UDP if none => return None,
        proto::UDP => (6, true, true),
        proto::ICMP => (2, false, false),
        proto::ICMPV6 => (2, true, false),
        _ => return None,
    };
    Some(Checksum {
        offset: l4 + at,
        pseudo,
        zero_is_none,
    })
}

/// Makes the packet's tuple `to` where it is `from`.
#[inline(always)]
pub(super) fn translate<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    headers: &Headers,
    from: &Tuple,
    to: &Tuple,
) -> Result<(), NotRewritten> {
    let checksum = if headers.fragment == fragment::LATER {
        None
    } else {
        checksum_of(from.proto, headers.l4, headers.no_checksum != 0)
    };
    let v6 = headers.v6 != 0;
    if from.src != to.src {
        address(packet, v6, L3, false, &from.src, &to.src, checksum)?;
    }
    if from.dst != to.dst {
        address(packet, v6, L3, true, &from.dst, &to.dst, checksum)?;
    }
    if headers.fragment == fragment::LATER {
        return Ok(());
    }
    if from.proto == proto::SCTP {
        if from.src_port == to.src_port && from.dst_port == to.dst_port {
            return Ok(());
        }
        return sctp::ports(tables, packet, headers, from, to);
    }
    if from.src_port != to.src_port {
        port(
            packet,
            headers,
            from.proto,
            false,
            from.src_port,
            to.src_port,
            checksum,
        )?;
    }
    if from.dst_port != to.dst_port {
        port(
            packet,
            headers,
            from.proto,
            true,
            from.dst_port,
            to.dst_port,
            checksum,
        )?;
    }
    Ok(())
}

/// Replaces an address in the network header at `l3`.
#[inline(always)]
fn address<P: Packet>(
    packet: &mut P,
    v6: bool,
    l3: u32,
    destination: bool,
    from: &Addr,
    to: &Addr,
    checksum: Option<Checksum>,
) -> Result<(), NotRewritten> {
    if v6 {
        if let Some(sum) = checksum
            && sum.pseudo
        {
            packet.add_l4_checksum(sum.offset, address_difference(from, to), true, sum.zero_is_none)?;
        }
        let at = l3 + if destination { 24 } else { 8 };
        // No header checksum moves against the address: the device's sum over the packet changes with it. The helper
        // above takes the change of the transport's checksum from that sum, this adds the address's.
        return packet.store(at, &to.words(), true);
    }
    let (old, new) = (from.word_v4(), to.word_v4());
    if let Some(sum) = checksum
        && sum.pseudo
    {
        packet.replace_l4_checksum(sum.offset, old, new, 4, true, sum.zero_is_none)?;
    }
    packet.replace_l3_checksum(l3 + 10, old, new, 4)?;
    packet.store(l3 + if destination { 16 } else { 12 }, &new, false)
}

/// Replaces a port, or the id of an ICMP query.
#[inline(always)]
fn port<P: Packet>(
    packet: &mut P,
    headers: &Headers,
    protocol: u8,
    destination: bool,
    from: Port,
    to: Port,
    checksum: Option<Checksum>,
) -> Result<(), NotRewritten> {
    let at = match protocol {
        proto::TCP | proto::UDP => u32::from(destination) * 2,
        proto::ICMP | proto::ICMPV6 => 4,
        _ => return Err(NotRewritten),
    };
    if let Some(sum) = checksum {
        let (old, new) = (u32::from(from.wire()), u32::from(to.wire()));
        packet.replace_l4_checksum(sum.offset, old, new, 2, false, sum.zero_is_none)?;
    }
    packet.store(headers.l4 + at, &to.wire(), false)
}

/// Translates an ICMP error: the packet inside from `from` to `to`, and its own addresses from `outer` to
/// (`outer_src`, `to.src`), for it goes to the one who sent the packet inside.
#[inline(always)]
pub(super) fn translate_error<P: Packet>(
    packet: &mut P,
    headers: &Headers,
    outer: &Tuple,
    outer_src: &Addr,
    from: &Tuple,
    to: &Tuple,
) -> Result<(), NotRewritten> {
    let v6 = headers.v6 != 0;
    let own = checksum_of(outer.proto, headers.l4, false);
    let Some(own) = own else { return Err(NotRewritten) };
    if from.src_port != to.src_port {
        inner_port(
            packet,
            headers,
            from.proto,
            false,
            from.src_port,
            to.src_port,
            own,
        )?;
    }
    if from.dst_port != to.dst_port {
        inner_port(packet, headers, from.proto, true, from.dst_port, to.dst_port, own)?;
    }
    if from.src != to.src {
        inner_address(packet, headers, false, &from.src, &to.src, own)?;
    }
    if from.dst != to.dst {
        inner_address(packet, headers, true, &from.dst, &to.dst, own)?;
    }
    if outer.src != *outer_src {
        address(packet, v6, L3, false, &outer.src, outer_src, Some(own))?;
    }
    if outer.dst != to.src {
        address(packet, v6, L3, true, &outer.dst, &to.src, Some(own))?;
    }
    Ok(())
}

/// An address inside of an ICMP error is data to the error's checksum. IPv4's header checksum moves against it, so that
/// the two cancel out. The transport's checksum inside is left: nobody can check it, for the data is cut off.
#[inline(always)]
fn inner_address<P: Packet>(
    packet: &mut P,
    headers: &Headers,
    destination: bool,
    from: &Addr,
    to: &Addr,
    own: Checksum,
) -> Result<(), NotRewritten> {
    let l3 = headers.inner_l3;
    if headers.v6 != 0 {
        packet.add_l4_checksum(own.offset, address_difference(from, to), false, false)?;
        return packet.store(l3 + if destination { 24 } else { 8 }, &to.words(), false);
    }
    packet.replace_l3_checksum(l3 + 10, from.word_v4(), to.word_v4(), 4)?;
    packet.store(l3 + if destination { 16 } else { 12 }, &to.word_v4(), false)
}

#[inline(always)]
fn inner_port<P: Packet>(
    packet: &mut P,
    headers: &Headers,
    protocol: u8,
    destination: bool,
    from: Port,
    to: Port,
    own: Checksum,
) -> Result<(), NotRewritten> {
    let at = match protocol {
        proto::TCP | proto::UDP | proto::SCTP => u32::from(destination) * 2,
        _ => 4,
    };
    let (old, new) = (u32::from(from.wire()), u32::from(to.wire()));
    packet.replace_l4_checksum(own.offset, old, new, 2, false, false)?;
    packet.store(headers.inner_l4 + at, &to.wire(), false)
}

/// One hop further: new MAC addresses, TTL or hop limit one less.
#[inline(always)]
pub(super) fn hop<P: Packet>(
    packet: &mut P,
    headers: &Headers,
    to: &[u8; 6],
    from: &[u8; 6],
) -> Result<(), NotRewritten> {
    let [d0, d1, d2, d3, d4, d5] = *to;
    let [s0, s1, s2, s3, s4, s5] = *from;
    let macs = [
        u16::from_ne_bytes([d0, d1]),
        u16::from_ne_bytes([d2, d3]),
        u16::from_ne_bytes([d4, d5]),
        u16::from_ne_bytes([s0, s1]),
        u16::from_ne_bytes([s2, s3]),
        u16::from_ne_bytes([s4, s5]),
    ];
    packet.write(0, &macs)?;
    hop_only(packet, headers)
}

/// Of IPv4 the word that begins with the TTL, and the checksum behind it; of IPv6 the word that ends with the hop limit.
const TTL: u32 = L3 + 8;
const HOP_LIMIT: u32 = L3 + 6;

/// Hops for a packet that begins here.
pub(super) const HOPS: u8 = 64;

/// As one that begins here: what is left of another packet's hops may not do for the way back.
#[inline(always)]
pub(super) fn begin_hops<P: Packet>(packet: &mut P, headers: &Headers) -> Result<(), NotRewritten> {
    if headers.v6 != 0 {
        let word: u16 = packet.load(HOP_LIMIT).ok_or(NotRewritten)?;
        let [next, _] = word.to_ne_bytes();
        return packet.store(HOP_LIMIT, &u16::from_ne_bytes([next, HOPS]), false);
    }
    let [ttl, checksum]: [u16; 2] = packet.load(TTL).ok_or(NotRewritten)?;
    let [_, protocol] = ttl.to_ne_bytes();
    let fresh = u16::from_ne_bytes([HOPS, protocol]);
    packet.store(TTL, &[fresh, correct16(checksum, ttl, fresh)], false)
}

/// One hop further, where somebody else writes the MAC addresses.
#[inline(always)]
pub(super) fn hop_only<P: Packet>(packet: &mut P, headers: &Headers) -> Result<(), NotRewritten> {
    if headers.v6 != 0 {
        let word: u16 = packet.load(HOP_LIMIT).ok_or(NotRewritten)?;
        let [next, hops] = word.to_ne_bytes();
        let less = u16::from_ne_bytes([next, hops.wrapping_sub(1)]);
        packet.write(HOP_LIMIT, &less)?;
        packet.changed(word, less);
        return Ok(());
    }
    let [ttl, checksum]: [u16; 2] = packet.load(TTL).ok_or(NotRewritten)?;
    let [hops, protocol] = ttl.to_ne_bytes();
    let less = u16::from_ne_bytes([hops.wrapping_sub(1), protocol]);
    packet.write(TTL, &[less, correct16(checksum, ttl, less)])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::datapath::checksum::{add, change, fold};

    /// As a receiver would sum it up.
    fn checksum(words: &[u16]) -> u16 {
        fold(words.iter().fold(0, |sum, word| add(sum, u32::from(*word))))
    }

    fn addr() -> impl Strategy<Value = Addr> {
        let v4 = any::<[u8; 4]>().prop_map(Addr::v4);
        let v6 = any::<[u64; 2]>().prop_map(|[hi, lo]| Addr { hi, lo });
        prop_oneof![v4, v6]
    }

    proptest! {
        /// To the bit: a header checksum of the wrong zero is refused by some.
        #[test]
        fn a_corrected_header_checksum_is_that_of_the_new_header(
            mut words in any::<[u16; 9]>(), at in 0..9usize, to: u16,
        ) {
            let version = 0x45;
            let sum = |words: &[u16]| checksum(&[words, &[version]].concat());
            let (before, from) = (sum(&words), words[at]);
            words[at] = to;
            prop_assert_eq!(correct16(before, from, to), sum(&words));
        }

        #[test]
        fn the_difference_of_two_addresses_takes_one_sum_to_the_other(
            from in addr(), to in addr(), rest: u32,
        ) {
            let sum = |addr: &Addr| addr.words().into_iter().fold(rest, add);
            let (corrected, anew) = (change(fold(sum(&from)), address_difference(&from, &to)), fold(sum(&to)));
            // Two ways to write zero, which every receiver takes for the same.
            prop_assert_eq!(corrected % 0xffff, anew % 0xffff);
        }
    }
}
