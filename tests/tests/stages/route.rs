//! Where a packet goes: the longest prefix, and what each kind of route does.

use std::net::IpAddr;

use cni_ebpf::abi::{Addr, Prefix, Reason, Route, route_action, route_flags};
use cni_ebpf::datapath::{Tables, Verdict};
use cni_tests::frames::Ends;
use cni_tests::memory::Memory;
use cni_tests::world::{self, Hook, ifindex, ip, pod};
use proptest::collection::vec;
use proptest::prelude::*;

/// Addresses that share many leading bits.
fn any_address() -> impl Strategy<Value = Addr> {
    let near = |bits: u32| vec(0..bits, 0..3);
    let v4 = near(32).prop_map(|bits| {
        let flipped = bits.iter().fold(0x0a01_0003u32, |word, bit| word ^ 1 << bit);
        Addr::v4(flipped.to_be_bytes())
    });
    let v6 = near(128).prop_map(|bits| {
        let flipped = bits
            .iter()
            .fold(0xfd00_0001_u128 << 96 | 3, |word, bit| word ^ 1 << bit);
        Addr::v6(flipped.to_be_bytes())
    });
    prop_oneof![v4, v6]
}

fn bit(addr: Addr, at: u32) -> bool {
    addr.octets()[at as usize / 8] << (at % 8) & 0x80 != 0
}

/// The prefix of so many leading bits of an address.
fn prefix(addr: Addr, len: u32) -> Prefix {
    let mut octets = [0; 16];
    for at in (0..len).filter(|at| bit(addr, *at)) {
        octets[at as usize / 8] |= 0x80 >> (at % 8);
    }
    Prefix {
        len,
        words: Addr::v6(octets).words(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_longest_prefix_that_holds_an_address_is_its_route(
        prefixes in vec((any_address(), 0..=128u32), 0..12), asked in vec(any_address(), 1..12),
    ) {
        let mut memory = Memory::default();
        let mut entries: Vec<(Prefix, u32)> = Vec::new();
        for (number, (addr, len)) in (0..).zip(&prefixes) {
            let key = prefix(*addr, *len);
            // What is written again is replaced.
            entries.retain(|(known, _)| *known != key);
            entries.push((key, number));
            memory.routes.put(key, Route { mtu: number, ..Route::default() });
            memory.cidrs.put(key, number);
        }
        for addr in asked.iter().chain(prefixes.iter().map(|(addr, _)| addr)) {
            let holds = |known: &&(Prefix, u32)| prefix(*addr, known.0.len) == known.0;
            let longest = entries.iter().filter(holds).max_by_key(|(known, _)| known.len);
            let longest = longest.map(|(_, number)| *number);
            let host = Prefix::host(*addr);
            prop_assert_eq!(memory.route(&host).map(|route| route.mtu), longest);
            prop_assert_eq!(memory.cidr(&host).copied(), longest);
        }
    }
}

/// A packet of pod A, on its way to an address behind the route in question.
#[derive(Clone, Copy, Debug)]
struct Sent {
    ttl: u8,
    /// From the network header on.
    length: u32,
    /// That of its segments, without headers; 0: it is sent as it is.
    segment: u32,
    v6: bool,
}

const HEADERS: u32 = 8;
/// The largest packet of the device that the kernel's routes lead to.
const DEVICE_MTU: u32 = 1500;

impl Sent {
    fn network(self) -> u32 {
        if self.v6 { 40 } else { 20 }
    }

    fn on_the_wire(self) -> u32 {
        match self.segment {
            0 => self.length,
            segment => self.network() + HEADERS + segment,
        }
    }
}

/// The gateway that all unknown addresses lie behind, by the kernel's routes.
fn by_kernel(sent: Sent) -> Result<Verdict, Reason> {
    if sent.on_the_wire() > DEVICE_MTU {
        return Ok(Verdict::Pass);
    }
    Ok(Verdict::Neighbour {
        ifindex: ifindex::NETDEV,
        gateway: Addr::from(ip(if sent.v6 { "2001:db8::fe" } else { "192.0.2.254" })),
    })
}

/// What must become of it, row by row.
fn expected(route: Option<Route>, sent: Sent, services: bool) -> Result<Verdict, Reason> {
    let Some(route) = route else {
        return Err(Reason::NoRoute);
    };
    let too_large = route.mtu != 0 && sent.on_the_wire() > route.mtu;
    // Where it is for the stack to answer or to cut.
    let stacks = too_large || sent.ttl <= 1;
    let masqueraded = route.flags & route_flags::MASQUERADE != 0;
    match route.action {
        route_action::SERVICE if services => Err(Reason::ServiceUnknown),
        _ if masqueraded => match by_kernel(sent) {
            Ok(Verdict::Neighbour { .. }) if stacks => Ok(Verdict::Pass),
            outcome => outcome,
        },
        route_action::HOST | route_action::STACK | route_action::SERVICE => Ok(Verdict::Pass),
        // The stack would answer with the MTU of its own way past the tunnel.
        route_action::TUNNEL if too_large && route.flags & route_flags::NODE != 0 => Ok(Verdict::Peer {
            ifindex: ifindex::POD_A,
        }),
        _ if stacks => Ok(Verdict::Pass),
        route_action::ENDPOINTS => Err(Reason::NoEndpoint),
        route_action::TUNNEL => Ok(Verdict::Tunnel {
            remote: route.gateway,
        }),
        route_action::DIRECT => Ok(Verdict::Neighbour {
            ifindex: route.ifindex,
            gateway: route.gateway,
        }),
        route_action::FIB => by_kernel(sent),
        _ => Err(Reason::NoRoute),
    }
}

fn any_sent() -> impl Strategy<Value = Sent> {
    let ttl = prop_oneof![Just(0u8), Just(1), Just(2), Just(64)];
    // A packet has more payload than each of the segments that it is cut into.
    let part = proptest::option::of(1..100u32);
    (ttl, 60..1700u32, part, any::<bool>()).prop_map(|(ttl, length, part, v6)| {
        let mut sent = Sent {
            ttl,
            length,
            segment: 0,
            v6,
        };
        let payload = length - sent.network() - HEADERS;
        sent.segment = part.map_or(0, |part| (payload * part / 100).max(1));
        sent
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Numbers that nobody writes included.
    #[test]
    fn each_kind_of_route_has_its_way(
        action in 0..=9u8, flags in 0..8u8, mtu in prop_oneof![Just(0), 1280..1600u32], sent in any_sent(),
        there in prop_oneof![5 => Just(true), 1 => Just(false)], services: bool,
    ) {
        let v6 = sent.v6;
        let route = Route {
            action,
            flags,
            mtu,
            gateway: Addr::from(ip("192.0.2.7")),
            ifindex: ifindex::NETDEV,
            ..Route::default()
        };
        let mut memory = world::memory();
        memory.config.services = u32::from(services);
        let (net, dst): (&str, IpAddr) = if v6 {
            ("fd00:77::", ip("fd00:77::9"))
        } else {
            ("10.200.0.0", ip("10.200.0.9"))
        };
        memory.routes = Default::default();
        if there {
            let len = if v6 { 64 } else { 16 };
            memory.routes.put(Prefix::new(ip(net), len).unwrap(), route);
        }
        let ends = Ends { ttl: sent.ttl, ..super::ends(ifindex::POD_A, pod(2, v6), dst) };
        let payload = vec![0; (sent.length - sent.network() - HEADERS) as usize];
        let mut frame = world::frame(ends.udp(&payload), ifindex::POD_A);
        frame.segment_size = sent.segment;
        let (outcome, _) = super::pass(&mut memory, Hook::FromPod, &mut frame);
        prop_assert_eq!(outcome, expected(there.then_some(route), sent, services));
    }
}
