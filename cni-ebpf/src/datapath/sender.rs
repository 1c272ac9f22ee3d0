//! Spoof protection: a pod sends only as itself, and talks to its node about nothing but packets.

use super::headers::{icmpv6, proto};
use super::{Packet, Tables, Work, route, work};
use crate::abi::{Endpoint, Reason};

/// The endpoint that sent the packet. Its flow names it (`known`), or else the source address; device and MAC must be its
/// own.
#[inline(always)]
pub(super) fn check<'t, T: Tables, P: Packet>(
    tables: &'t T,
    packet: &P,
    work: &mut Work,
    known: u32,
) -> Result<&'t Endpoint, Reason> {
    let icmpv6 = work.tuple.proto == proto::ICMPV6
        && (icmpv6::ROUTER_SOLICITATION..=icmpv6::REDIRECT).contains(&work.headers.icmp_type);
    if icmpv6 && work.headers.fragment != work::fragment::LATER {
        return Err(Reason::NeighbourDiscovery);
    }
    // Before the source: what every system says on its link of its own accord (MLD) is no forgery.
    if route::is_link_local(&work.tuple.dst) {
        return Err(Reason::LinkLocal);
    }
    let endpoint = tables
        .endpoint_of(known)
        .or_else(|| tables.endpoint(&work.tuple.src))
        .ok_or(Reason::SourceAddress)?;
    if endpoint.ifindex != packet.ifindex() {
        return Err(Reason::SourceAddress);
    }
    work.endpoint = endpoint.id;
    let mac: [u16; 3] = packet.load(6).ok_or(Reason::Truncated)?;
    if !same_mac(mac, &endpoint.mac) {
        return Err(Reason::SourceMac);
    }
    if work.tuple.proto == proto::UDP && matches!(work.tuple.src_port.get(), 67 | 547) {
        return Err(Reason::DhcpServer);
    }
    Ok(endpoint)
}

/// Word by word: comparing arrays of bytes becomes a call.
#[inline(always)]
fn same_mac(wire: [u16; 3], mac: &[u8; 6]) -> bool {
    let ([w0, w1, w2], [a, b, c, d, e, f]) = (wire, *mac);
    w0 == u16::from_ne_bytes([a, b]) && w1 == u16::from_ne_bytes([c, d]) && w2 == u16::from_ne_bytes([e, f])
}
