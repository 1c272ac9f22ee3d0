//! `rel_44`: random bytes and mutated packets. Nothing crashes, what is malformed is dropped as it came, and both builds
//! agree on every one.

use std::collections::BTreeSet;

use cni_ebpf::abi::{Config, Reason};
use cni_tests::frames::{self, Ends};
use cni_tests::memory::Frame;
use cni_tests::world::{self, Hook, ifindex, ip, mac, pod};
use etherparse::SlicedPacket;

use crate::{Pair, hex, privileged, runs_in_kernel, with_pair};

/// Packets that both builds judge in a run; `MILLRACE_PACKETS` asks for another number.
const PACKETS: usize = 1_000_000;
/// The run is the same each time; `MILLRACE_SEED` asks for another one.
const SEED: usize = 0x6d69_6c6c_7261_6365;
/// After so many packets both worlds forget their connections, long before a table is full.
const EPOCH: usize = 1000;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.roll(256) as u8
    }
}

/// A packet that is right, to be spoilt, and where it appears.
struct Seed {
    bytes: Vec<u8>,
    hook: Hook,
    device: u32,
}

fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for v6 in [false, true] {
        for (number, dst) in from_pods(v6) {
            let device = ifindex::POD_A + u32::from(number) - 2;
            let ends = ends(mac(device), pod(number, v6), dst);
            for ends in [ends, ends.reversed()] {
                seeds.extend(kinds(ends).into_iter().map(|bytes| Seed {
                    bytes,
                    hook: Hook::FromPod,
                    device,
                }));
            }
        }
        for (src, dst) in from_elsewhere(v6) {
            let ends = ends([2, 9, 9, 9, 9, 9], src, dst);
            for hook in [Hook::FromNetdev, Hook::ToNetdev] {
                seeds.extend(kinds(ends).into_iter().map(|bytes| Seed {
                    bytes,
                    hook,
                    device: ifindex::NETDEV,
                }));
            }
        }
    }
    seeds.extend(never(ifindex::POD_A).into_iter().map(|bytes| Seed {
        bytes,
        hook: Hook::FromPod,
        device: ifindex::POD_A,
    }));
    seeds
}

fn ends(src_mac: [u8; 6], src: std::net::IpAddr, dst: std::net::IpAddr) -> Ends {
    Ends {
        src_mac,
        dst_mac: world::NODE_MAC,
        src,
        dst,
        src_port: 33000,
        dst_port: 80,
        ttl: 64,
    }
}

/// A pod's number, and whom it talks to.
fn from_pods(v6: bool) -> Vec<(u8, std::net::IpAddr)> {
    let pods = [2, 3, 4, 5].map(|number| pod(number, v6));
    let others = if v6 {
        [
            "fd00:2::9",
            "fd00:3::9",
            "2001:db8::1",
            "2620:fe::9",
            "fd00:96::1",
            "fd00:1::77",
        ]
    } else {
        [
            "10.2.0.9",
            "10.3.0.9",
            "192.0.2.1",
            "9.9.9.9",
            "10.96.0.1",
            "10.9.0.1",
        ]
    };
    let mut pairs: Vec<_> = others.iter().map(|other| (2, ip(other))).collect();
    pairs.extend([
        (2, pods[1]),
        (3, pods[0]),
        (2, pods[3]),
        (5, pods[1]),
        (2, pods[2]),
    ]);
    pairs
}

/// Other nodes' pods, the outside, and the node: to pods, to the node and away.
fn from_elsewhere(v6: bool) -> Vec<(std::net::IpAddr, std::net::IpAddr)> {
    let [direct, tunnelled, node, far] = if v6 {
        ["fd00:2::9", "fd00:3::9", "2001:db8::1", "2620:fe::9"]
    } else {
        ["10.2.0.9", "10.3.0.9", "192.0.2.1", "9.9.9.9"]
    }
    .map(ip);
    let mut pairs = vec![
        (node, far),
        (node, direct),
        (node, tunnelled),
        (far, node),
        (direct, node),
    ];
    for number in [2, 4, 5, 77] {
        let pod = pod(number, v6);
        pairs.extend([
            (far, pod),
            (direct, pod),
            (tunnelled, pod),
            (node, pod),
            (pod, far),
        ]);
    }
    pairs
}

fn kinds(ends: Ends) -> Vec<Vec<u8>> {
    let v6 = ends.src.is_ipv6();
    let udp = ends.udp(&[1; 64]);
    let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
    let error = ends.icmp_error(kind, code, &ends.reversed().udp(b"inside"));
    let mut all = vec![
        ends.tcp(2, b""),
        ends.tcp(18, b"x"),
        ends.tcp(17, b""),
        ends.tcp(4, b""),
        ends.echo(false, b"ping"),
    ];
    all.extend([ends.echo(true, b"pong"), ends.sctp(b"chunk"), error]);
    all.extend(frames::fragments(&udp, 32, 9));
    if v6 {
        all.push(frames::with_extensions(
            &udp,
            &[(0, vec![0; 8]), (60, vec![0; 8])],
        ));
        all.push(frames::with_extensions(
            &udp,
            &[(51, vec![0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])],
        ));
    } else {
        all.push(frames::with_options(&udp, &[1, 1, 1, 1]));
    }
    all.push(udp);
    all
}

/// What a pod may never send.
fn never(device: u32) -> Vec<Vec<u8>> {
    let to = |dst| ends(mac(device), pod(2, true), ip(dst));
    let dhcp = Ends {
        src_port: 67,
        ..ends(mac(device), pod(2, false), pod(3, false))
    };
    let mut arp = vec![0xff; 12];
    arp.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.resize(60, 0);
    vec![
        arp,
        dhcp.udp(b"offer"),
        to("::ffff:10.1.0.3").udp(b"x"),
        to("fd00:1::3").icmp(&[134, 0, 0, 0, 0, 0, 0, 0]),
        to("ff02::1").udp(b"x"),
    ]
}

fn spoil(bytes: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..dice.roll(4) {
        let at = dice.roll(bytes.len());
        match dice.roll(5) {
            // Headers are where it hurts.
            0 | 1 => bytes[at.min(70)] = dice.byte(),
            2 => bytes[at] ^= 1 << dice.roll(8),
            3 => bytes.truncate(at.max(14)),
            _ => bytes.extend((0..dice.roll(20)).map(|_| 0xa5)),
        }
    }
}

/// Where the packet appears, and what the kernel says of it besides its bytes.
fn circumstances(seed: &Seed, bytes: Vec<u8>, dice: &mut Dice) -> (Hook, Frame) {
    let hook = match dice.roll(8) {
        0 => Hook::ToPod,
        1 => Hook::FromNetdev,
        2 => Hook::ToNetdev,
        3 => Hook::XdpNodeport,
        _ => seed.hook,
    };
    let device = match hook {
        Hook::FromPod | Hook::ToPod if seed.device != ifindex::NETDEV => seed.device,
        Hook::FromPod | Hook::ToPod => ifindex::POD_A + dice.roll(5) as u32,
        Hook::FromNetdev | Hook::ToNetdev if dice.roll(6) == 0 => ifindex::TUNNEL,
        Hook::FromNetdev | Hook::ToNetdev | Hook::XdpNodeport => ifindex::NETDEV,
    };
    let mut frame = world::frame(bytes, device);
    if matches!(hook, Hook::ToPod | Hook::ToNetdev) {
        frame.ingress_ifindex = [0, ifindex::NETDEV, ifindex::POD_A][dice.roll(3)];
    }
    frame.mark = match dice.roll(12) {
        0 => Config::DEFAULT.mark,
        1 => 0x4000,
        2 => (dice.roll(16) as u32) << 28,
        _ => 0,
    };
    if dice.roll(12) == 0 && hook != Hook::XdpNodeport {
        frame.segment_size = 1 + dice.roll(1600) as u32;
    }
    (hook, frame)
}

/// Another reader's judgement: a packet that it cannot read is none that a pod may send or get.
fn is_malformed(bytes: &[u8]) -> bool {
    SlicedPacket::from_ethernet(bytes).is_err()
}

/// Whether whoever is behind this hook is kept from what is malformed. What comes from outside and is no pod's is the
/// stack's business, and so is what it sends; what we have let through once is not read again.
fn guards(hook: Hook, frame: &Frame) -> bool {
    match hook {
        Hook::FromPod => true,
        Hook::ToPod => frame.mark & Config::DEFAULT.mark_mask != Config::DEFAULT.mark,
        Hook::FromNetdev => frame.ifindex == ifindex::TUNNEL,
        _ => false,
    }
}

/// What both builds have been given since they knew nothing. Where they disagree it is told: a seed alone does not find again what
/// depends on the kernel's own dice.
#[derive(Default)]
struct Epoch(Vec<(Hook, Frame)>);

impl Drop for Epoch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        println!("since the tables were empty:");
        for (hook, frame) in &self.0 {
            println!(
                "{} device {} from {} mark {:#x} segments {} {}",
                hook.name(),
                frame.ifindex,
                frame.ingress_ifindex,
                frame.mark,
                frame.segment_size,
                hex(&frame.bytes)
            );
        }
    }
}

fn storm(pair: &mut Pair, packets: usize, dice: &mut Dice) -> BTreeSet<Reason> {
    let seeds = seeds();
    let mut seen = BTreeSet::new();
    let (mut judged, mut alone, mut dropped) = (0usize, 0usize, 0usize);
    let mut epoch = Epoch::default();
    while judged < packets {
        if (judged + alone).is_multiple_of(EPOCH) {
            pair.forget();
            epoch.0.clear();
        }
        let seed = &seeds[dice.roll(seeds.len())];
        let mut bytes = seed.bytes.clone();
        if dice.roll(50) == 0 {
            bytes = (0..14 + dice.roll(100)).map(|_| dice.byte()).collect();
        } else {
            spoil(&mut bytes, dice);
        }
        let (hook, frame) = circumstances(seed, bytes, dice);
        epoch.0.push((hook, frame.clone()));
        let (outcome, _) = pair.run_frame(hook, &frame);
        if guards(hook, &frame) && is_malformed(&frame.bytes) {
            assert!(outcome.is_err(), "{outcome:?} for {}", hex(&frame.bytes));
        }
        if runs_in_kernel(&frame.bytes) {
            judged += 1;
            dropped += usize::from(outcome.is_err());
        } else {
            alone += 1;
        }
        seen.extend(outcome.err());
    }
    println!("{judged} packets judged by both builds, {alone} shorter ones by the host's alone");
    // Neither a test of nothing but drops nor of nothing but passes.
    assert!(
        dropped > packets / 10 && dropped < packets * 9 / 10,
        "{dropped} of {packets} dropped"
    );
    seen
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable)
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default)
}

#[test]
fn rel_44_random_and_mutated_packets_get_equal_verdicts() {
    cni_tests::require!(privileged(), "running programs needs root");
    let (packets, seed) = (number("MILLRACE_PACKETS", PACKETS), number("MILLRACE_SEED", SEED));
    println!("{packets} packets from MILLRACE_SEED={seed}");
    let only_v4 = Config {
        ipv6: 0,
        ..world::CONFIG
    };
    let only_v6 = Config {
        ipv4: 0,
        ..world::CONFIG
    };
    let plain = Config {
        masquerade: 0,
        services: 0,
        bandwidth: 0,
        ..world::CONFIG
    };
    let share = packets / 10;
    for (config, packets) in [
        (world::CONFIG, packets - 3 * share),
        (only_v4, share),
        (only_v6, share),
        (plain, share),
    ] {
        with_pair(config, move |pair| {
            let seen = storm(pair, packets, &mut Dice(seed as u64));
            let wanted = REACHED
                .iter()
                .filter(|reason| config == world::CONFIG && !seen.contains(reason));
            assert_eq!(wanted.collect::<Vec<_>>(), Vec::<&Reason>::new(), "never seen");
        });
    }
}

/// What a storm comes to, whatever its seed.
const REACHED: [Reason; 22] = [
    Reason::UnknownEthertype,
    Reason::Arp,
    Reason::Truncated,
    Reason::Malformed,
    Reason::MappedAddress,
    Reason::UnknownProtocol,
    Reason::ExtensionHeader,
    Reason::FragmentOrphan,
    Reason::SourceAddress,
    Reason::SourceMac,
    Reason::NeighbourDiscovery,
    Reason::DhcpServer,
    Reason::LinkLocal,
    Reason::Martian,
    Reason::InvalidState,
    Reason::RelatedUnknown,
    Reason::PolicyEgress,
    Reason::PolicyIngress,
    Reason::NatExhausted,
    Reason::NoRoute,
    Reason::NoEndpoint,
    Reason::TunnelKey,
];
