//! `rel_44`: random bytes and mutated packets. Nothing crashes, what is malformed is dropped as it came, and both builds
//! agree on every one.

use cni_tests::frames::{self, Ends};
use cni_tests::world::{self, Hook, ifindex, ip, mac, pod};

use crate::{privileged, with_pair};

/// Packets in a run; `MILLRACE_PACKETS` asks for another number.
const PACKETS: usize = 1_000_000;
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

/// Packets that are right, to be spoilt.
fn seeds() -> Vec<(Vec<u8>, u32)> {
    let mut seeds = Vec::new();
    for v6 in [false, true] {
        let pods = [2, 3, 4, 5].map(|number| pod(number, v6));
        let far = if v6 { "2620:fe::9" } else { "9.9.9.9" };
        let others = if v6 {
            ["fd00:2::9", "fd00:3::9", "2001:db8::1", far, "fd00:96::1"]
        } else {
            ["10.2.0.9", "10.3.0.9", "192.0.2.1", far, "10.96.0.1"]
        };
        let mut pairs: Vec<_> = others.iter().map(|other| (2, ip(other))).collect();
        pairs.extend([
            (2, pods[1]),
            (3, pods[0]),
            (2, pods[3]),
            (5, pods[1]),
            (2, pods[2]),
        ]);
        for (number, dst) in pairs {
            let device = ifindex::POD_A + u32::from(number) - 2;
            let ends = Ends {
                src_mac: mac(device),
                dst_mac: world::NODE_MAC,
                src: pod(number, v6),
                dst,
                src_port: 33000,
                dst_port: 80,
                ttl: 64,
            };
            for ends in [ends, ends.reversed()] {
                let udp = ends.udp(&[1; 64]);
                let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
                let error = ends.icmp_error(kind, code, &ends.reversed().udp(b"inside"));
                let mut all = vec![
                    ends.tcp(2, b""),
                    ends.tcp(18, b"x"),
                    ends.tcp(17, b""),
                    ends.echo(false, b"ping"),
                ];
                all.extend([ends.echo(true, b"pong"), ends.sctp(b"chunk"), error]);
                all.extend(frames::fragments(&udp, 32, 9));
                if v6 {
                    all.push(frames::with_extensions(
                        &udp,
                        &[(0, vec![0; 8]), (60, vec![0; 8])],
                    ));
                } else {
                    all.push(frames::with_options(&udp, &[1, 1, 1, 1]));
                }
                all.push(udp);
                seeds.extend(all.into_iter().map(|bytes| (bytes, device)));
            }
        }
    }
    seeds
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

#[test]
fn rel_44_random_and_mutated_packets_get_equal_verdicts() {
    cni_tests::require!(privileged(), "running programs needs root");
    let packets = std::env::var("MILLRACE_PACKETS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(PACKETS);
    with_pair(move |pair| {
        let seeds = seeds();
        let mut dice = Dice(0x6d69_6c6c_7261_6365);
        let mut dropped = 0usize;
        for round in 0..packets {
            if round % EPOCH == 0 {
                pair.forget();
            }
            let (seed, device) = &seeds[dice.roll(seeds.len())];
            let mut bytes = seed.clone();
            if dice.roll(50) == 0 {
                bytes = (0..14 + dice.roll(100)).map(|_| dice.byte()).collect();
            } else {
                spoil(&mut bytes, &mut dice);
            }
            let hook = match dice.roll(8) {
                0 => Hook::ToPod,
                1 | 2 => Hook::FromNetdev,
                3 => Hook::ToNetdev,
                _ => Hook::FromPod,
            };
            let device = match hook {
                Hook::FromPod | Hook::ToPod => *device,
                Hook::FromNetdev | Hook::ToNetdev => ifindex::NETDEV,
            };
            let (outcome, _) = pair.run(hook, &bytes, device);
            dropped += usize::from(outcome.is_err());
        }
        // Neither a test of nothing but drops nor of nothing but passes.
        assert!(
            dropped > packets / 10 && dropped < packets * 9 / 10,
            "{dropped} of {packets} dropped"
        );
    });
}
