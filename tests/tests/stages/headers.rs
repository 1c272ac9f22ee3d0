//! What is read of a packet, against another reader: both read the same, or ours refuses it.

use std::net::IpAddr;

use cni_ebpf::abi::{Addr, Reason, Tuple};
use cni_ebpf::datapath::headers::proto;
use cni_ebpf::datapath::work::fragment;
use cni_ebpf::datapath::{Work, stage::Stage};
use cni_tests::frames::{self, Ends};
use cni_tests::memory::{Frame, Memory};
use cni_tests::world::{self, ifindex};
use etherparse::{IpSlice, Ipv6ExtensionSlice, LaxIpSlice, TcpSlice, UdpSlice};
use proptest::collection::vec;
use proptest::prelude::*;

const L3: usize = 14;
const DEVICE: u32 = ifindex::NETDEV;

fn parse(packet: &[u8], work: &mut Work) -> Result<(), Reason> {
    let memory = Memory {
        config: world::CONFIG,
        ..Memory::default()
    };
    let mut frame = Frame::new(packet.to_vec(), DEVICE);
    super::run(Stage::Parse, &memory, &mut frame, work)
}

/// What the other reader finds in an IP packet.
struct Reading<'p> {
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    transport: &'p [u8],
    /// Offset in units of eight bytes, and identification.
    fragment: Option<(u16, u32)>,
}

fn read(packet: &[u8]) -> Option<Reading<'_>> {
    let ip = IpSlice::from_slice(packet.get(L3..)?).ok()?;
    let (ethertype, fragment) = match &ip {
        IpSlice::Ipv4(v4) => {
            let header = v4.header();
            let id = u32::from(header.identification().to_be());
            let fragment = header
                .is_fragmenting_payload()
                .then(|| (header.fragments_offset().value(), id));
            ([0x08, 0x00], fragment)
        }
        IpSlice::Ipv6(v6) => {
            let fragment = v6
                .extensions()
                .clone()
                .into_iter()
                .find_map(|header| match header {
                    Ipv6ExtensionSlice::Fragment(header) if header.is_fragmenting_payload() => {
                        Some((header.fragment_offset().value(), header.identification().to_be()))
                    }
                    _ => None,
                });
            ([0x86, 0xdd], fragment)
        }
    };
    (packet[12..14] == ethertype).then(|| Reading {
        src: ip.source_addr(),
        dst: ip.destination_addr(),
        proto: ip.payload_ip_number().0,
        transport: ip.payload().payload,
        fragment,
    })
}

/// What the other reader refuses and we leave to the receiver: hop-by-hop options that do not come first, and authentication
/// headers that have no room for what they are.
fn is_another_view(packet: &[u8]) -> bool {
    use etherparse::err::{ip::HeadersError, ip::SliceError, ip_auth, ipv6_exts};
    use ipv6_exts::HeaderError::{HopByHopNotAtStart, IpAuth};
    matches!(
        IpSlice::from_slice(&packet[L3..]),
        Err(SliceError::IpHeaders(HeadersError::Ipv6Ext(
            HopByHopNotAtStart | IpAuth(ip_auth::HeaderError::ZeroPayloadLen)
        )))
    )
}

fn offset(packet: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr() - packet.as_ptr().addr()
}

/// The ports by which a flow is known, and whether it is an ICMP error.
fn ports(protocol: u8, transport: &[u8]) -> (u16, u16, bool) {
    const ANSWERER: u16 = 0xffff;
    let word = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
    let (kind, v6) = (transport[0], protocol == proto::ICMPV6);
    match protocol {
        proto::ICMP | proto::ICMPV6 => match (v6, kind) {
            (false, 3 | 4 | 5 | 11 | 12) | (true, 0..128) => (0, 0, true),
            (false, 8) | (true, 128) => (word(4), ANSWERER, false),
            (false, 0) | (true, 129) => (ANSWERER, word(4), false),
            _ => (word(0), 0, false),
        },
        _ => (word(0), word(2), false),
    }
}

fn tuple(src: IpAddr, dst: IpAddr, proto: u8, ports: (u16, u16, bool)) -> Tuple {
    Tuple {
        src: Addr::from(src),
        dst: Addr::from(dst),
        src_port: cni_ebpf::abi::Port::new(ports.0),
        dst_port: cni_ebpf::abi::Port::new(ports.1),
        proto,
        ..Tuple::default()
    }
}

/// Whether both have read the same.
fn agree(packet: &[u8], work: &Work) -> Result<(), TestCaseError> {
    let Some(reading) = read(packet) else {
        prop_assert!(is_another_view(packet), "the other reader refuses the packet");
        return Ok(());
    };
    let headers = &work.headers;
    let later = matches!(reading.fragment, Some((1.., _)));
    let found = if later {
        (0, 0, false)
    } else {
        ports(reading.proto, reading.transport)
    };
    prop_assert_eq!(work.tuple, tuple(reading.src, reading.dst, reading.proto, found));
    prop_assert_eq!(headers.v6 != 0, reading.src.is_ipv6());
    prop_assert_eq!(headers.l4 as usize, offset(packet, reading.transport));
    prop_assert_eq!(
        headers.length as usize,
        headers.l4 as usize - L3 + reading.transport.len()
    );
    let state = match reading.fragment {
        None => fragment::WHOLE,
        Some((0, _)) => fragment::FIRST,
        Some(_) => fragment::LATER,
    };
    prop_assert_eq!(headers.fragment, state);
    prop_assert_eq!(headers.fragment_id, reading.fragment.map_or(0, |(_, id)| id));
    if state == fragment::WHOLE {
        whole(&reading, work)?;
    }
    prop_assert_eq!(headers.icmp_error != 0, found.2);
    if found.2 {
        inner(packet, work)?;
    }
    Ok(())
}

/// What only a whole transport shows.
fn whole(reading: &Reading<'_>, work: &Work) -> Result<(), TestCaseError> {
    let headers = &work.headers;
    match reading.proto {
        proto::TCP => {
            let tcp = TcpSlice::from_slice(reading.transport)
                .map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(headers.l4_length as usize, tcp.header_slice().len());
            let flags = [tcp.fin(), tcp.syn(), tcp.rst(), tcp.psh(), tcp.ack(), tcp.urg()];
            let flags = flags
                .iter()
                .rev()
                .fold(0, |bits, flag| bits << 1 | u8::from(*flag));
            prop_assert_eq!(headers.tcp_flags, flags);
        }
        proto::UDP => {
            let udp = UdpSlice::from_slice(reading.transport)
                .map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert_eq!(headers.l4_length as usize, udp.header_len());
            prop_assert_eq!(headers.no_checksum != 0, udp.checksum() == 0);
        }
        proto::ICMP | proto::ICMPV6 => {
            prop_assert_eq!(headers.icmp_type, reading.transport[0]);
            let answer = matches!(
                (reading.proto, reading.transport[0]),
                (proto::ICMP, 0) | (proto::ICMPV6, 129)
            );
            prop_assert_eq!(headers.icmp_reply != 0, answer);
        }
        _ => prop_assert_eq!(headers.l4_length, 12),
    }
    Ok(())
}

/// The packet that an ICMP error is about.
fn inner(packet: &[u8], work: &Work) -> Result<(), TestCaseError> {
    let headers = &work.headers;
    let l3 = headers.l4 as usize + 8;
    let (ip, _) =
        LaxIpSlice::from_slice(&packet[l3..]).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert_eq!(headers.inner_l3 as usize, l3);
    let l4 = offset(packet, ip.payload().payload);
    prop_assert_eq!(headers.inner_l4 as usize, l4);
    prop_assert_eq!(headers.inner_room, L3 as u32 + headers.length - headers.inner_l4);
    let protocol = ip.payload_ip_number().0;
    let found = ports(protocol, &packet[l4..]);
    prop_assert_eq!(
        work.inner,
        tuple(ip.source_addr(), ip.destination_addr(), protocol, found)
    );
    Ok(())
}

fn any_ends() -> impl Strategy<Value = Ends> {
    let v4 = any::<[[u8; 4]; 2]>().prop_map(|ends| ends.map(IpAddr::from));
    // Not `::ffff:0:0/96`, which is refused.
    let v6 = any::<[[u8; 16]; 2]>().prop_map(|ends| {
        ends.map(|mut octets| {
            octets[0] |= 0x20;
            IpAddr::from(octets)
        })
    });
    (prop_oneof![v4, v6], any::<[u16; 2]>(), any::<u8>()).prop_map(
        |([src, dst], [src_port, dst_port], ttl)| Ends {
            src_mac: [2, 0, 0, 0, 0, 1],
            dst_mac: world::NODE_MAC,
            src,
            dst,
            src_port,
            dst_port,
            ttl,
        },
    )
}

/// A whole packet of every protocol that is forwarded.
fn any_whole() -> impl Strategy<Value = Vec<u8>> {
    let words = (0..=10u8, any::<u8>(), any::<u8>(), 0..7);
    (any_ends(), words, vec(any::<u8>(), 70..140)).prop_map(
        |(ends, (options, kind, code, shape), payload)| {
            let v6 = ends.src.is_ipv6();
            match shape {
                0 => {
                    let mut packet = ends.tcp(code & 0x17, &payload);
                    packet[if v6 { 54 } else { 34 } + 12] = (5 + options) << 4;
                    packet
                }
                1 => {
                    let mut packet = ends.udp(&payload);
                    // IPv4 lets a datagram go without a checksum.
                    if !v6 && code & 1 != 0 {
                        packet[40..42].fill(0);
                    }
                    packet
                }
                2 => ends.sctp(&payload),
                3 => ends.echo(kind & 1 != 0, &payload),
                // Neither an error nor a query of ours.
                4 => ends.icmp(
                    &[
                        &[if v6 { 130 } else { 13 } + kind % 3, code, 0, 0, 0, 0, 0, 0],
                        &payload[..],
                    ]
                    .concat(),
                ),
                5 => {
                    let kind = if v6 {
                        1 + kind % 4
                    } else {
                        [3, 11, 12][usize::from(kind % 3)]
                    };
                    let quoted = ends.reversed().udp(&payload);
                    let [first, _] = frames::fragments(&quoted, 8, 5);
                    ends.icmp_error(kind, code, if code & 1 != 0 { &first } else { &quoted })
                }
                _ => {
                    let kind = if v6 { 3 } else { 11 };
                    ends.icmp_error(kind, code, &ends.reversed().echo(code & 1 != 0, &payload))
                }
            }
        },
    )
}

/// Extension headers in the order of RFC 8200: (number, bytes).
fn any_extensions() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    vec((0..4u8, 0..3u8), 1..6).prop_map(|headers| {
        let one = |(at, (shape, units)): (usize, (u8, u8))| {
            let mut bytes = vec![0; 8 * (usize::from(units) + 1)];
            let number = match shape {
                // Only right behind the IPv6 header.
                0 if at == 0 => proto::HOP_BY_HOP,
                // All segments are behind it.
                1 => {
                    bytes[2] = 2;
                    proto::ROUTING
                }
                2 => {
                    bytes.extend([0; 8]);
                    bytes[1] = 2 * (units + 1);
                    return (proto::AUTHENTICATION, bytes);
                }
                _ => proto::DESTINATION,
            };
            bytes[1] = units;
            (number, bytes)
        };
        headers.into_iter().enumerate().map(one).collect()
    })
}

/// What is right in every respect: whole or cut, with and without options or extension headers.
fn any_packet() -> impl Strategy<Value = Vec<u8>> {
    let cut = proptest::option::of((8..10usize, any::<u16>(), any::<bool>()));
    let more = proptest::option::of((1..=10usize, any_extensions()));
    (any_whole(), cut, more).prop_map(|(mut packet, cut, more)| {
        let body = packet.len() - if packet[12] == 8 { 34 } else { 54 };
        if let Some((at, id, first)) = cut
            && 8 * at < body
        {
            let [head, tail] = frames::fragments(&packet, 8 * at, id);
            packet = if first { head } else { tail };
        }
        match more {
            Some((words, _)) if packet[12] == 8 => frames::with_options(&packet, &vec![1; 4 * words]),
            Some((_, headers)) => frames::with_extensions(&packet, &headers),
            None => packet,
        }
    })
}

/// What somebody may have made of it.
fn any_spoilt() -> impl Strategy<Value = Vec<u8>> {
    let places = || any::<prop::sample::Index>();
    let edits = vec((places(), any::<u8>(), 0..6u8), 0..5);
    (any_packet(), edits).prop_map(|(mut packet, edits)| {
        for (place, byte, shape) in edits {
            let at = place.index(packet.len());
            match shape {
                // Headers are where it hurts.
                0..=2 => packet[place.index(100.min(at + 1))] = byte,
                3 => packet[at] ^= 1 << (byte % 8),
                4 => packet.truncate(at.max(1)),
                _ => packet.extend(std::iter::repeat_n(byte, usize::from(byte % 32))),
            }
        }
        packet
    })
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let random = vec(any::<u8>(), 0..160);
    let family = vec(any::<u8>(), 15..160).prop_map(|mut bytes| {
        let v6 = bytes[0] & 1 != 0;
        bytes[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
        bytes[14] = if v6 { 0x60 } else { 0x45 };
        bytes
    });
    prop_oneof![random, family]
}

/// What of the scratch a packet decides, without the steps of the walk.
fn facts(work: &Work) -> (Tuple, cni_ebpf::datapath::Headers, Option<Tuple>) {
    let mut headers = work.headers.clone();
    (headers.next, headers.wrong) = (0, 0);
    let inner = (headers.icmp_error != 0).then_some(work.inner);
    (work.tuple, headers, inner)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn rel_44_what_is_well_formed_is_read_and_as_another_reader_reads_it(packet in any_packet()) {
        let mut work = Work::default();
        prop_assert_eq!(parse(&packet, &mut work), Ok(()));
        agree(&packet, &work)?;
    }

    #[test]
    fn rel_44_no_packet_is_read_otherwise_than_another_reader_does(
        packet in prop_oneof![4 => any_spoilt(), 1 => any_bytes()],
    ) {
        let mut work = Work::default();
        if parse(&packet, &mut work).is_ok() {
            agree(&packet, &work)?;
        }
    }

    /// The scratch is never cleared.
    #[test]
    fn nothing_of_the_packet_before_is_read_in_this_one(before in any_packet(), packet in any_spoilt()) {
        let (mut clean, mut used) = (Work::default(), Work::default());
        parse(&before, &mut used).unwrap();
        let outcome = parse(&packet, &mut clean);
        prop_assert_eq!(parse(&packet, &mut used), outcome);
        if outcome.is_ok() {
            prop_assert_eq!(facts(&used), facts(&clean));
        }
    }
}
