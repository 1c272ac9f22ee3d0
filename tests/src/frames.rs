//! Packets, byte by byte where a library would refuse to build them.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::checksum;
use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader, UdpHeader};

/// Who sends to whom.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub src_mac: [u8; 6],
    pub dst_mac: [u8; 6],
    pub src: IpAddr,
    pub dst: IpAddr,
    pub src_port: u16,
    pub dst_port: u16,
    pub ttl: u8,
}

impl Ends {
    pub fn reversed(self) -> Self {
        Self {
            src_mac: self.dst_mac,
            dst_mac: self.src_mac,
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            ttl: self.ttl,
        }
    }

    fn ethernet(self, payload: &[u8]) -> Vec<u8> {
        let ethertype: u16 = if self.src.is_ipv4() { 0x0800 } else { 0x86dd };
        [
            &self.dst_mac[..],
            &self.src_mac,
            &ethertype.to_be_bytes(),
            payload,
        ]
        .concat()
    }

    /// An IP packet around a transport that is complete, its checksum included.
    pub fn ip(self, protocol: u8, transport: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let length = u16::try_from(transport.len()).unwrap();
                let mut header =
                    Ipv4Header::new(length, self.ttl, IpNumber(protocol), src.octets(), dst.octets())
                        .unwrap();
                header.header_checksum = header.calc_header_checksum();
                header.write(&mut bytes).unwrap();
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                ipv6_header(src, dst, self.ttl, protocol, transport.len())
                    .write(&mut bytes)
                    .unwrap();
            }
            _ => panic!("one family"),
        }
        bytes.extend_from_slice(transport);
        self.ethernet(&bytes)
    }

    pub fn tcp(self, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut header = TcpHeader::new(self.src_port, self.dst_port, 1000, 64000);
        header.fin = flags & 1 != 0;
        header.syn = flags & 2 != 0;
        header.rst = flags & 4 != 0;
        header.ack = flags & 16 != 0;
        header.checksum = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => header
                .calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)
                .unwrap(),
            (IpAddr::V6(src), IpAddr::V6(dst)) => header
                .calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload)
                .unwrap(),
            _ => panic!("one family"),
        };
        self.ip(6, &[&header.to_bytes()[..], payload].concat())
    }

    pub fn udp(self, payload: &[u8]) -> Vec<u8> {
        let header = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let ip = Ipv4Header::new(0, 64, IpNumber::UDP, src.octets(), dst.octets()).unwrap();
                UdpHeader::with_ipv4_checksum(self.src_port, self.dst_port, &ip, payload).unwrap()
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let ip = ipv6_header(src, dst, 64, 17, 0);
                UdpHeader::with_ipv6_checksum(self.src_port, self.dst_port, &ip, payload).unwrap()
            }
            _ => panic!("one family"),
        };
        self.ip(17, &[&header.to_bytes()[..], payload].concat())
    }

    /// An echo request or reply; the id is the source port.
    pub fn echo(self, reply: bool, payload: &[u8]) -> Vec<u8> {
        let v4 = self.src.is_ipv4();
        let kind = match (v4, reply) {
            (true, false) => 8,
            (true, true) => 0,
            (false, false) => 128,
            (false, true) => 129,
        };
        let [i0, i1] = self.src_port.to_be_bytes();
        let rest = [&[kind, 0, 0, 0, i0, i1, 0, 1][..], payload].concat();
        self.icmp(&rest)
    }

    /// An ICMP error of this type and code about the packet `inner` (an Ethernet frame).
    pub fn icmp_error(self, kind: u8, code: u8, inner: &[u8]) -> Vec<u8> {
        self.icmp(
            &[
                &[kind, code, 0, 0, 0, 0, 5, 0],
                &inner[14..inner.len().min(14 + 68)],
            ]
            .concat(),
        )
    }

    /// An ICMP message; its checksum is computed.
    pub fn icmp(self, message: &[u8]) -> Vec<u8> {
        let mut message = message.to_vec();
        let mut sum = checksum::Sum16BitWords::new();
        let sum = match (self.src, self.dst) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => sum
                .add_16bytes(src.octets())
                .add_16bytes(dst.octets())
                .add_4bytes(u32::try_from(message.len()).unwrap().to_be_bytes())
                .add_2bytes([0, 58]),
            _ => sum,
        };
        let sum = sum.add_slice(&message).ones_complement();
        message[2..4].copy_from_slice(&sum.to_ne_bytes());
        self.ip(if self.src.is_ipv4() { 1 } else { 58 }, &message)
    }

    /// An SCTP packet; its CRC is not computed.
    pub fn sctp(self, payload: &[u8]) -> Vec<u8> {
        let [s0, s1] = self.src_port.to_be_bytes();
        let [d0, d1] = self.dst_port.to_be_bytes();
        self.ip(
            132,
            &[&[s0, s1, d0, d1, 0, 0, 0, 0, 0, 0, 0, 0][..], payload].concat(),
        )
    }
}

fn ipv6_header(src: Ipv6Addr, dst: Ipv6Addr, hops: u8, next: u8, length: usize) -> Ipv6Header {
    Ipv6Header {
        traffic_class: 0,
        flow_label: Ipv6FlowLabel::ZERO,
        payload_length: u16::try_from(length).unwrap(),
        next_header: IpNumber(next),
        hop_limit: hops,
        source: src.octets(),
        destination: dst.octets(),
    }
}

/// Cuts the payload of an IP packet into two fragments; the second begins at `at`, a multiple of eight.
pub fn fragments(frame: &[u8], at: usize, id: u16) -> [Vec<u8>; 2] {
    pieces(frame, &[at], id).try_into().unwrap()
}

/// Cuts the payload of an IP packet into fragments, one more than there are `cuts`: rising multiples of eight.
pub fn pieces(frame: &[u8], cuts: &[usize], id: u16) -> Vec<Vec<u8>> {
    let v4 = frame[12] == 8;
    let header = if v4 { 14 + 20 } else { 14 + 40 };
    let (head, body) = frame.split_at(header);
    let make = |from: usize, to: usize| {
        let (part, more) = (&body[from..to], to < body.len());
        let offset = u16::try_from(from / 8).unwrap();
        let mut out = head.to_vec();
        if v4 {
            out[16..18].copy_from_slice(&u16::try_from(20 + part.len()).unwrap().to_be_bytes());
            out[18..20].copy_from_slice(&id.to_be_bytes());
            out[20..22].copy_from_slice(&(offset | if more { 0x2000 } else { 0 }).to_be_bytes());
            fix_ipv4(&mut out);
        } else {
            let next = out[20];
            out[20] = 44;
            out[18..20].copy_from_slice(&u16::try_from(8 + part.len()).unwrap().to_be_bytes());
            out.extend_from_slice(&[next, 0]);
            out.extend_from_slice(&(offset << 3 | u16::from(more)).to_be_bytes());
            out.extend_from_slice(&u32::from(id).to_be_bytes());
        }
        out.extend_from_slice(part);
        out
    };
    let ends = [&[0], cuts, &[body.len()]].concat();
    ends.windows(2).map(|pair| make(pair[0], pair[1])).collect()
}

/// Puts extension headers, each (number, bytes), between an IPv6 header and what follows it.
pub fn with_extensions(frame: &[u8], headers: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let (head, body) = frame.split_at(54);
    let mut out = head.to_vec();
    let mut numbers: Vec<u8> = headers.iter().map(|(number, _)| *number).collect();
    numbers.push(out[20]);
    out[20] = numbers[0];
    let mut length = body.len();
    for ((_, bytes), next) in headers.iter().zip(&numbers[1..]) {
        let mut bytes = bytes.clone();
        bytes[0] = *next;
        length += bytes.len();
        out.extend_from_slice(&bytes);
    }
    out[18..20].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
    out.extend_from_slice(body);
    out
}

/// Puts options behind an IPv4 header; their length is a multiple of four.
pub fn with_options(frame: &[u8], options: &[u8]) -> Vec<u8> {
    let (head, body) = frame.split_at(34);
    let mut out = head.to_vec();
    out.extend_from_slice(options);
    out.extend_from_slice(body);
    out[14] = 0x40 | u8::try_from(5 + options.len() / 4).unwrap();
    let total = u16::try_from(out.len() - 14).unwrap();
    out[16..18].copy_from_slice(&total.to_be_bytes());
    fix_ipv4(&mut out);
    out
}

/// Computes the header checksum of an IPv4 packet.
pub fn fix_ipv4(frame: &mut [u8]) {
    let header = usize::from(frame[14] & 0xf) * 4;
    frame[24..26].fill(0);
    let sum = checksum::Sum16BitWords::new()
        .add_slice(&frame[14..14 + header])
        .ones_complement();
    frame[24..26].copy_from_slice(&sum.to_ne_bytes());
}

/// Whether the checksums of an unfragmented TCP, UDP or ICMP packet without options or extension headers are right.
pub fn checksums_hold(frame: &[u8]) -> bool {
    let v4 = frame[12] == 8;
    let (protocol, segment, addresses) = if v4 {
        (frame[23], &frame[34..], &frame[26..34])
    } else {
        (frame[20], &frame[54..], &frame[22..54])
    };
    let header = checksum::Sum16BitWords::new()
        .add_slice(&frame[14..34])
        .ones_complement();
    let mut sum = checksum::Sum16BitWords::new().add_slice(segment);
    if protocol != 1 {
        let length = u32::try_from(segment.len()).unwrap();
        sum = sum
            .add_slice(addresses)
            .add_4bytes(length.to_be_bytes())
            .add_2bytes([0, protocol]);
    }
    (!v4 || header == 0) && sum.ones_complement() == 0
}
