//! `xdp_nodeport`: what it takes leaves as `from_netdev` would have sent it; what it leaves is untouched and unknown.

use cni_ebpf::abi::{Addr, Reason, Secrets, ServiceKey, service_flags, service_scope};
use cni_ebpf::datapath::Verdict;
use cni_tests::frames::{self, Ends};
use cni_tests::memory::Frame;
use cni_tests::world::{self, Hook, ifindex, ip, mac, pod, port};

use crate::Pair;
use crate::external::{answer_to, client, outside};
use crate::fixtures::{ACK, FIN_ACK, SYN, SYN_ACK, TO_B, families, gateway};
use crate::services::{node, vip};

type Result = std::result::Result<Verdict, Reason>;

fn arrive(pair: &mut Pair, hook: Hook, bytes: &[u8]) -> (Result, Vec<u8>) {
    pair.run(hook, bytes, ifindex::NETDEV)
}

fn towards(v6: bool) -> Result {
    let gateway = Addr::from(ip(if v6 { "2001:db8::2" } else { "192.0.2.2" }));
    Ok(Verdict::Neighbour {
        ifindex: ifindex::NETDEV,
        gateway,
    })
}

/// The packet is left as it was, and nothing remembers it.
fn left(pair: &mut Pair, bytes: &[u8]) {
    let tables = |pair: &mut Pair| {
        let kernel = ["conntrack", "conntrack_new"].map(|table| pair.kernel.flows(table).unwrap());
        (
            kernel,
            pair.memory.flows.iter().map(|table| table.len()).sum::<usize>(),
        )
    };
    let before = tables(pair);
    let (verdict, out) = arrive(pair, Hook::XdpNodeport, bytes);
    assert_eq!((verdict, out), (Ok(Verdict::Pass), bytes.to_vec()));
    assert_eq!(tables(pair), before);
}

/// A connection's packets in both directions, each by the hook that `hook` gives for its number; as they left.
fn exchange(pair: &mut Pair, v6: bool, udp: bool, hook: impl Fn(usize) -> Hook) -> Vec<(Result, Vec<u8>)> {
    let packet = |ends: Ends, flags| {
        if udp {
            ends.udp(b"some text")
        } else {
            ends.tcp(flags, b"text")
        }
    };
    let dialled = outside(v6, port::NODE_REMOTE);
    let mut left = Vec::new();
    for (there, back) in [(SYN, SYN_ACK), (ACK, ACK), (FIN_ACK, FIN_ACK)] {
        let (verdict, out) = arrive(pair, hook(left.len()), &packet(dialled, there));
        assert!(frames::checksums_hold(&out));
        let answer = answer_to(&out, [2, 9, 9, 9, 9, 9], mac(ifindex::NETDEV));
        left.push((verdict, out));
        let (verdict, out) = arrive(pair, hook(left.len()), &packet(answer, back));
        assert!(frames::checksums_hold(&out));
        left.push((verdict, out));
    }
    left
}

#[test]
fn a_connection_to_another_nodes_backend_is_turned_round_as_the_hook_behind_would_send_it() {
    families(|pair, v6| {
        for udp in [false, true] {
            let turned = exchange(pair, v6, udp, |_| Hook::XdpNodeport);
            pair.forget();
            let behind = exchange(pair, v6, udp, |_| Hook::FromNetdev);
            for (number, ((verdict, turned), (wanted, behind))) in turned.iter().zip(&behind).enumerate() {
                let way = if number % 2 == 0 { towards(v6) } else { gateway(v6) };
                assert_eq!((verdict, wanted), (&way, &way));
                assert_eq!(
                    turned[..12],
                    Frame::LINK.concat(),
                    "nobody behind writes the link header"
                );
                assert_eq!(turned[12..], behind[12..], "packet {number}");
            }
            pair.forget();
        }
    });
}

#[test]
fn a_connection_goes_on_on_either_hook() {
    families(|pair, v6| {
        for first in [0, 1] {
            let mixed = exchange(pair, v6, false, |number| {
                if (number + first) % 2 == 0 {
                    Hook::XdpNodeport
                } else {
                    Hook::FromNetdev
                }
            });
            pair.forget();
            let behind = exchange(pair, v6, false, |_| Hook::FromNetdev);
            for ((verdict, mixed), (wanted, behind)) in mixed.iter().zip(&behind) {
                assert_eq!((verdict, &mixed[12..]), (wanted, &behind[12..]));
            }
            pair.forget();
        }
    });
}

#[test]
fn what_is_no_connection_through_this_node_is_left_to_the_hook_behind() {
    families(|pair, v6| {
        let to = |dst_port| outside(v6, dst_port);
        let remote = to(port::NODE_REMOTE);
        let mut all = vec![
            to(port::NODE_CLUSTER).tcp(SYN, b""),
            to(port::NODE_LOCAL).udp(b"x"),
            to(port::NODE_TUNNELLED).tcp(SYN, b""),
            to(port::NODE_REFUSED).tcp(SYN, b""),
            to(port::NODE_ELSEWHERE).tcp(SYN, b""),
            to(port::NODE_HOST).tcp(SYN, b""),
            to(port::NODE_RANGES).tcp(SYN, b""),
            to(4789).udp(b"x"),
            to(9).udp(b"x"),
            remote.tcp(ACK, b""),
            remote.tcp(SYN_ACK, b""),
            remote.echo(false, b"x"),
            remote.sctp(b"x"),
            Ends { ttl: 1, ..remote }.tcp(SYN, b""),
            Ends {
                src: pod(2, v6),
                ..remote
            }
            .tcp(SYN, b""),
            Ends {
                src: node(v6),
                ..remote
            }
            .tcp(SYN, b""),
            Ends {
                dst: vip(v6),
                dst_port: port::TO_B,
                ..remote
            }
            .tcp(SYN, b""),
            Ends {
                dst: pod(3, v6),
                ..remote
            }
            .tcp(SYN, b""),
            Ends {
                dst: client(v6),
                src: node(v6),
                ..remote
            }
            .tcp(SYN, b""),
            remote.tcp(SYN, b"")[..40].to_vec(),
        ];
        all.extend(frames::fragments(&remote.udp(&[7; 64]), 16, 9));
        let mut tagged = remote.tcp(SYN, b"");
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        all.push(tagged);
        for bytes in &all {
            left(pair, bytes);
        }
    });
}

#[test]
fn a_checksum_that_a_device_is_to_compute_is_not_taken_for_one() {
    families(|pair, v6| {
        for udp in [false, true] {
            let dialled = outside(v6, port::NODE_REMOTE);
            let (mut bytes, at) = if udp {
                (dialled.udp(b"text"), 6)
            } else {
                (dialled.tcp(SYN, b""), 16)
            };
            let l4 = if v6 { 54 } else { 34 };
            let length = (bytes.len() - l4) as u16;
            let addresses = if v6 { 22..54 } else { 26..34 };
            let mut sum: u32 = bytes[addresses]
                .chunks(2)
                .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
                .sum();
            sum += u32::from(length) + if udp { 17 } else { 6 };
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            bytes[l4 + at..l4 + at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
            left(pair, &bytes);
            // One that is wrong is handed on like any other.
            bytes[l4 + at] ^= 1;
            assert_eq!(arrive(pair, Hook::XdpNodeport, &bytes).0, towards(v6));
            pair.forget();
        }
    });
}

#[test]
fn the_hook_behind_chooses_the_same_backend() {
    families(|pair, v6| {
        let secrets = Secrets {
            port_seed: cni_ebpf::abi::Racy::new(0x5eed),
            ..Secrets::default()
        };
        pair.kernel.share(&secrets).unwrap();
        pair.memory.secrets = secrets;
        // Half of the connections to the other node's pod, half to pod B.
        let key = ServiceKey {
            addr: Addr::from(node(v6)),
            port: cni_ebpf::abi::Port::new(30099),
            proto: 6,
            scope: service_scope::EXTERNAL,
            pad: 0,
        };
        let service = cni_ebpf::abi::Service {
            id: 7777,
            slots: 2,
            flags: service_flags::MASQUERADE,
            ..cni_ebpf::abi::Service::default()
        };
        pair.put_service(key, service);
        let family = if v6 { world::backend::V6 } else { 0 };
        for (slot, backend) in (0..).zip([world::backend::ROUTED, world::backend::POD_B]) {
            pair.put_slot(7777, slot, backend + family);
        }
        let mut turned = 0;
        for src_port in 50_000..50_064 {
            let bytes = Ends {
                src_port,
                ..outside(v6, 30099)
            }
            .tcp(SYN, b"");
            let (verdict, _) = arrive(pair, Hook::XdpNodeport, &bytes);
            if verdict == Ok(Verdict::Pass) {
                assert_eq!(arrive(pair, Hook::FromNetdev, &bytes).0, TO_B);
            } else {
                assert_eq!(verdict, towards(v6));
                turned += 1;
            }
            pair.forget();
        }
        assert!((10..54).contains(&turned), "{turned} of 64");
    });
}

#[test]
fn what_is_refused_after_it_was_taken_is_dropped_for_the_same_reason() {
    families(|pair, v6| {
        for hook in [Hook::XdpNodeport, Hook::FromNetdev] {
            let dialled = outside(v6, port::NODE_REMOTE);
            assert_eq!(arrive(pair, hook, &dialled.tcp(SYN, b"")).0, towards(v6));
            // The world has one port.
            let second = Ends {
                src_port: 50124,
                ..dialled
            };
            assert_eq!(
                arrive(pair, hook, &second.tcp(SYN, b"")).0,
                Err(Reason::NatExhausted)
            );
            pair.forget();
        }
    });
}

#[test]
fn a_neighbour_that_is_not_known_yet_is_the_stacks_to_find() {
    families(|pair, v6| {
        let mut frame = world::frame(outside(v6, port::NODE_REMOTE).tcp(SYN, b""), ifindex::NETDEV);
        frame.neighbours = |_| false;
        let (verdict, after) = pair.host(Hook::XdpNodeport, &frame);
        assert_eq!((verdict, &after.bytes), (Ok(Verdict::Pass), &frame.bytes));
        let answer = pair.host(Hook::FromNetdev, &frame).0;
        assert_eq!(answer, towards(v6));
    });
}
