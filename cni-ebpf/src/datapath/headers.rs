//! From bytes to a tuple.
//!
//! Everything that later stages read of the packet is read here, so that malformed packets end here. In the kernel it is a
//! global function: the verifier looks at it once, alone, and takes its result as an unknown number; inlined, each of
//! its many ends would be followed through all that comes after.
//!
//! Behind a VLAN tag, or several (802.1Q, 802.1ad), nothing is read: pods neither send nor get such packets
//! (`unknown_ethertype`); on the node's devices they are the stack's, whose VLAN devices have hooks of their own.

mod control;
mod extension;

use super::work::fragment;
use super::{Headers, Packet, Tables, Work};
use crate::abi::{Addr, Plain, Port, Reason, Tuple};

pub mod proto {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;

    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION: u8 = 60;
}

pub mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

pub mod icmp {
    pub const ECHO_REPLY: u8 = 0;
    pub const UNREACHABLE: u8 = 3;
    pub const SOURCE_QUENCH: u8 = 4;
    pub const REDIRECT: u8 = 5;
    pub const ECHO: u8 = 8;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER: u8 = 12;
}

pub mod icmpv6 {
    /// Types below are errors.
    pub const FIRST_QUERY: u8 = 128;
    pub const ECHO: u8 = 128;
    pub const ECHO_REPLY: u8 = 129;
    pub const ROUTER_SOLICITATION: u8 = 133;
    pub const REDIRECT: u8 = 137;
}

/// Where the network header stands: behind the Ethernet header.
pub const L3: u32 = 14;
const ETHERTYPE: u32 = 12;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;

/// The port that stands for the side that answers an ICMP query; the side that asks has the query's id.
pub(super) const ICMP_ANSWERER: Port = Port::new(0xffff);
/// More extension headers than this are refused.
const EXTENSION_HEADERS: u32 = 8;

#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv4 {
    version_ihl: u8,
    tos: u8,
    total: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    proto: u8,
    checksum: u16,
    src: u32,
    dst: u32,
}
// SAFETY: integers without padding (20 bytes).
unsafe impl Plain for Ipv4 {}

#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv6 {
    version: u32,
    payload: u16,
    next: u8,
    hops: u8,
    src: [u32; 4],
    dst: [u32; 4],
}
// SAFETY: integers without padding (40 bytes).
unsafe impl Plain for Ipv6 {}

/// What a network header said.
struct Network {
    l4: u32,
    proto: u8,
}

#[inline(always)]
fn join(words: [u32; 4]) -> Addr {
    let [a, b, c, d] = words;
    #[cfg(target_endian = "little")]
    let (hi, lo) = (
        u64::from(a) | u64::from(b) << 32,
        u64::from(c) | u64::from(d) << 32,
    );
    #[cfg(target_endian = "big")]
    let (hi, lo) = (
        u64::from(b) | u64::from(a) << 32,
        u64::from(d) | u64::from(c) << 32,
    );
    Addr { hi, lo }
}

/// What is above the Ethernet header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ethertype {
    Ip,
    Arp,
    Other,
}

#[inline(always)]
pub fn ethertype<P: Packet>(packet: &P) -> Ethertype {
    let Some(wire) = packet.load::<u16>(ETHERTYPE) else {
        return Ethertype::Other;
    };
    match u16::from_be(wire) {
        IPV4 | IPV6 if !packet.vlan() => Ethertype::Ip,
        ARP => Ethertype::Arp,
        _ => Ethertype::Other,
    }
}

/// Reads the headers into `work`.
#[inline(always)]
pub fn parse<T: Tables, P: Packet>(tables: &T, packet: &P, work: &mut Work) -> Result<(), Reason> {
    let config = tables.config();
    let ethertype = u16::from_be(packet.load::<u16>(ETHERTYPE).ok_or(Reason::Truncated)?);
    let Work {
        headers,
        tuple,
        inner,
        ..
    } = work;
    clear(headers);
    // The tag stands beside the packet and would leave with it, on a VLAN of the sender's choice.
    let ethertype = if packet.vlan() { 0 } else { ethertype };
    tuple.src_port = Port::ZERO;
    tuple.dst_port = Port::ZERO;
    tuple.proto = 0;
    let network = if ethertype == IPV4 {
        if config.serves_ipv4() == 0 {
            return Err(Reason::FamilyDisabled);
        }
        ipv4(packet, headers, tuple)?
    } else if ethertype == IPV6 {
        if config.serves_ipv6() == 0 {
            return Err(Reason::FamilyDisabled);
        }
        ipv6(tables, packet, headers, tuple)?
    } else if ethertype == ARP {
        return Err(Reason::Arp);
    } else {
        return Err(Reason::UnknownEthertype);
    };
    tuple.proto = network.proto;
    tuple.pad = 0;
    tuple.reserved = 0;
    headers.l4 = network.l4;
    if headers.fragment == fragment::LATER {
        // Ports come from what the first fragment said.
        tuple.src_port = Port::ZERO;
        tuple.dst_port = Port::ZERO;
        return match network.proto {
            proto::TCP | proto::UDP | proto::SCTP | proto::ICMP | proto::ICMPV6 => Ok(()),
            _ => Err(Reason::UnknownProtocol),
        };
    }
    transport(packet, headers, tuple, inner)
}

#[inline(always)]
fn clear(headers: &mut Headers) {
    headers.l4_length = 0;
    headers.fragment_id = 0;
    headers.tcp_flags = 0;
    headers.icmp_type = 0;
    headers.fragment = fragment::WHOLE;
    headers.icmp_error = 0;
    headers.no_checksum = 0;
    headers.icmp_reply = 0;
    headers.inner_l3 = 0;
    headers.inner_l4 = 0;
    headers.inner_room = 0;
}

#[inline(always)]
fn ipv4<P: Packet>(packet: &P, headers: &mut Headers, tuple: &mut Tuple) -> Result<Network, Reason> {
    let ip: Ipv4 = packet.load(L3).ok_or(Reason::Truncated)?;
    let header = u32::from(ip.version_ihl & 0xf) * 4;
    let total = u32::from(u16::from_be(ip.total));
    if ip.version_ihl >> 4 != 4 || header < 20 || total < header || L3 + total > packet.length() {
        return Err(Reason::Malformed);
    }
    headers.v6 = 0;
    headers.ttl = ip.ttl;
    headers.length = total;
    tuple.src = Addr::v4_word(ip.src);
    tuple.dst = Addr::v4_word(ip.dst);
    let fragment = u16::from_be(ip.fragment);
    let (offset, more) = (fragment & 0x1fff, fragment & 0x2000 != 0);
    note_fragment(headers, u32::from(ip.id), offset, more, ip.proto)?;
    // With options and without, the transport must begin inside of the datagram.
    Ok(Network {
        l4: L3 + header,
        proto: ip.proto,
    })
}

/// `offset` counts units of eight bytes.
#[inline(always)]
fn note_fragment(headers: &mut Headers, id: u32, offset: u16, more: bool, proto: u8) -> Result<(), Reason> {
    if offset == 0 && !more {
        return Ok(());
    }
    // RFC 3128: a second fragment at offset 1 rewrites the flags of the TCP header that was judged.
    if offset == 1 && proto == proto::TCP {
        return Err(Reason::Malformed);
    }
    headers.fragment = if offset == 0 {
        fragment::FIRST
    } else {
        fragment::LATER
    };
    headers.fragment_id = id;
    Ok(())
}

#[inline(always)]
fn ipv6<T: Tables, P: Packet>(
    tables: &T,
    packet: &P,
    headers: &mut Headers,
    tuple: &mut Tuple,
) -> Result<Network, Reason> {
    let ip: Ipv6 = packet.load(L3).ok_or(Reason::Truncated)?;
    let total = 40 + u32::from(u16::from_be(ip.payload));
    if u32::from_be(ip.version) >> 28 != 6 || L3 + total > packet.length() {
        return Err(Reason::Malformed);
    }
    headers.v6 = 1;
    headers.ttl = ip.hops;
    headers.length = total;
    tuple.src = join(ip.src);
    tuple.dst = join(ip.dst);
    if tuple.src.is_v4() || tuple.dst.is_v4() {
        return Err(Reason::MappedAddress);
    }
    extension::walk(tables, packet, headers, ip.next)
}

#[inline(always)]
fn transport<P: Packet>(
    packet: &P,
    headers: &mut Headers,
    tuple: &mut Tuple,
    inner: &mut Tuple,
) -> Result<(), Reason> {
    let l4 = headers.l4;
    let least = match tuple.proto {
        proto::TCP => 20,
        proto::SCTP => 12,
        proto::UDP => 8,
        proto::ICMP if headers.v6 == 0 => 8,
        proto::ICMPV6 if headers.v6 == 1 => 8,
        _ => return Err(Reason::UnknownProtocol),
    };
    if l4 + least > L3 + headers.length {
        return Err(Reason::Truncated);
    }
    headers.l4_length = least;
    if tuple.proto == proto::ICMP || tuple.proto == proto::ICMPV6 {
        return control::message(packet, headers, tuple, inner);
    }
    let [src, dst]: [u16; 2] = packet.load(l4).ok_or(Reason::Truncated)?;
    tuple.src_port = Port::from_wire(src);
    tuple.dst_port = Port::from_wire(dst);
    if tuple.proto == proto::TCP {
        let [offset, flags]: [u8; 2] = packet.load(l4 + 12).ok_or(Reason::Truncated)?;
        let header = u32::from(offset >> 4) * 4;
        if header < 20 || (headers.fragment == fragment::WHOLE && l4 + header > L3 + headers.length) {
            return Err(Reason::Malformed);
        }
        headers.l4_length = header;
        headers.tcp_flags = flags & 0x3f;
    } else if tuple.proto == proto::UDP {
        let [length, checksum]: [u16; 2] = packet.load(l4 + 4).ok_or(Reason::Truncated)?;
        let length = u32::from(u16::from_be(length));
        if length < 8 || (headers.fragment == fragment::WHOLE && l4 + length > L3 + headers.length) {
            return Err(Reason::Malformed);
        }
        headers.no_checksum = u8::from(checksum == 0);
        if checksum == 0 && headers.v6 == 1 {
            return Err(Reason::Malformed);
        }
    }
    Ok(())
}
