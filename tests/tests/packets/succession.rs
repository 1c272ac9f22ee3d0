//! What outlives whom: flows and their pods, translations and their flows, datagrams and their fragments.

use std::net::IpAddr;

use cni_ebpf::abi::{Addr, Config, Endpoint, Port, Reason, flow_flags};
use cni_ebpf::datapath::Verdict;
use cni_tests::frames::{self, Ends};
use cni_tests::world::{self, Hook, ifindex, ip, mac, pod, port};

use crate::departure::{come, go};
use crate::external::from_pod_b;
use crate::fixtures::{
    ACK, FIN_ACK, SYN, SYN_ACK, TO_A, TO_B, drop_of, families, far, from_a, from_b, from_pod, gateway,
    outside,
};
use crate::services::{dial, ends, vip};
use crate::{Pair, fixtures};

const MARK_OF_ARRIVAL: u32 = Config::DEFAULT.arrived_mark;

fn node(v6: bool) -> IpAddr {
    ip(if v6 { "2001:db8::1" } else { "192.0.2.1" })
}

/// The answer to a masqueraded connection of pod A, by the port that it was given.
fn answer(ends: Ends, v6: bool, port: u16) -> Ends {
    Ends {
        src: node(v6),
        src_port: port,
        ..ends
    }
    .reversed()
}

/// Another pod has the address now.
fn succeed(pair: &mut Pair, number: u8, v6: bool, id: u32) {
    let endpoint = go(pair, number, v6);
    come(pair, number, v6, Endpoint { id, ..endpoint });
}

#[test]
fn rel_38_what_the_former_owner_of_an_address_was_allowed_is_not_the_new_ones() {
    families(|pair, v6| {
        // The pod with rules opens a connection to B, and answers may come back.
        let ends = from_pod(5, pod(3, v6));
        let reply = from_b(ends).tcp(SYN_ACK, b"");
        let run = |pair: &mut Pair, bytes: &[u8], device| pair.run(Hook::FromPod, bytes, device).0;
        assert_eq!(run(pair, &ends.tcp(SYN, b""), ifindex::POD_RULES), TO_B);
        assert!(run(pair, &reply, ifindex::POD_B).is_ok());
        succeed(pair, 5, v6, 99);
        // It is a connection of B's own to the new pod, which takes none from B.
        assert_eq!(run(pair, &reply, ifindex::POD_B), Err(Reason::PolicyIngress));
        // Nor does the new pod's packet go on with it as if B had been asked already.
        succeed(pair, 3, v6, 98);
        assert_eq!(run(pair, &ends.tcp(ACK, b""), ifindex::POD_RULES), TO_B);
        let flows = pair.memory.flows[1].entries();
        assert_eq!(
            (flows[0].1.source_endpoint, flows[0].1.destination_endpoint),
            (99, 98)
        );
        assert_eq!(flows[0].1.packets_forward.get(), 1, "it begins anew");
        succeed(pair, 5, v6, ifindex::POD_RULES);
        succeed(pair, 3, v6, ifindex::POD_B);
    });
}

#[test]
fn rel_38_answers_to_a_pod_that_is_gone_do_not_reach_the_next_one() {
    families(|pair, v6| {
        let ends = from_a(far(v6));
        let query = ends.udp(b"query");
        assert_eq!(pair.run(Hook::FromPod, &query, ifindex::POD_A).0, gateway(v6));
        let back = answer(ends, v6, 40000).udp(b"answer");
        assert_eq!(pair.run(Hook::FromNetdev, &back, ifindex::NETDEV).0, TO_A);
        succeed(pair, 2, v6, 97);
        let refused = (Ok(Verdict::Pass), back.clone());
        assert_eq!(pair.run(Hook::FromNetdev, &back, ifindex::NETDEV), refused);
        // An error about it is the stack's too, as it came.
        let sent = Ends {
            src: node(v6),
            src_port: 40000,
            ..ends
        };
        let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
        let error = outside(sent).icmp_error(kind, code, &sent.udp(b"query"));
        assert_eq!(
            pair.run(Hook::FromNetdev, &error, ifindex::NETDEV),
            (Ok(Verdict::Pass), error)
        );
        // And when nothing is left but the translation.
        for table in &mut pair.memory.flows {
            table.clear();
        }
        let frame = world::frame(back.clone(), ifindex::NETDEV);
        assert_eq!(pair.host(Hook::FromNetdev, &frame).0, Ok(Verdict::Pass));
        assert!(pair.memory.flows[1].is_empty(), "nothing was built again");
        succeed(pair, 2, v6, ifindex::POD_A);
        assert_eq!(
            pair.host(Hook::FromNetdev, &frame).0,
            TO_A,
            "the same pod's, it would be"
        );
    });
}

#[test]
fn rel_09_an_established_connection_is_no_door_for_another_device() {
    families(|pair, v6| {
        // A pod behind the tunnel answers; the same packet by the fabric did not come from it.
        let remote = from_a(ip(if v6 { "fd00:3::9" } else { "10.3.0.9" }));
        let direct = from_a(ip(if v6 { "fd00:2::9" } else { "10.2.0.9" }));
        for (ends, expected) in [(remote, Err(Reason::Martian)), (direct, TO_A)] {
            let sent = pair.run(Hook::FromPod, &ends.tcp(SYN, b""), ifindex::POD_A).0;
            assert!(sent.is_ok());
            let reply = outside(ends).tcp(SYN_ACK, b"");
            for _ in 0..2 {
                assert_eq!(pair.run(Hook::FromNetdev, &reply, ifindex::NETDEV).0, expected);
            }
        }
        // A probe of the host itself, and its answer forged the other way round.
        let probe = Ends {
            src_mac: world::NODE_MAC,
            dst_mac: mac(ifindex::POD_B),
            src: node(v6),
            dst: pod(3, v6),
            ..from_a(pod(3, v6))
        };
        let mut frame = world::frame(probe.tcp(SYN, b""), ifindex::POD_B);
        frame.ingress_ifindex = 0;
        assert_eq!(pair.run_frame(Hook::ToPod, &frame).0, Ok(Verdict::Pass));
        let forged = probe.tcp(ACK, b"");
        assert_eq!(
            pair.run(Hook::FromNetdev, &forged, ifindex::NETDEV).0,
            Err(Reason::Martian)
        );
        let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
        let error = Ends {
            src: node(v6),
            ..outside(direct)
        }
        .icmp_error(kind, code, &direct.tcp(SYN, b""));
        assert_eq!(
            pair.run(Hook::FromNetdev, &error, ifindex::NETDEV).0,
            Err(Reason::Martian)
        );
    });
}

#[test]
fn rel_46_fragments_that_the_stack_cuts_again_are_not_the_hosts_own() {
    families(|pair, v6| {
        // What arrives for the node: another proxy may lead it to a pod.
        let to_node = Ends {
            dst: node(v6),
            ..outside(from_a(far(v6)))
        };
        let expected = if v6 { Verdict::Arrived } else { Verdict::Pass };
        for bytes in frames::fragments(&to_node.udp(&[7; 200]), 96, 5) {
            let (verdict, out) = pair.run(Hook::FromNetdev, &bytes, ifindex::NETDEV);
            assert_eq!((verdict, out), (Ok(expected), bytes));
        }
        let whole = to_node.udp(b"x");
        assert_eq!(
            pair.run(Hook::FromNetdev, &whole, ifindex::NETDEV).0,
            Ok(Verdict::Pass)
        );
        // The same from a pod.
        let mut own = from_a(node(v6));
        own.src_port = 1;
        let [first, _] = frames::fragments(&own.udp(&[7; 200]), 96, 6);
        assert_eq!(pair.run(Hook::FromPod, &first, ifindex::POD_A).0, Ok(expected));
        // Cut again they name no device; the mark says whose they are.
        let to_rules = Ends {
            src_mac: world::NODE_MAC,
            dst_mac: mac(ifindex::POD_RULES),
            dst: pod(5, v6),
            ..to_node
        };
        let [first, _] = frames::fragments(&to_rules.udp(&[7; 200]), 96, 7);
        let mut frame = world::frame(first, ifindex::POD_RULES);
        frame.ingress_ifindex = 0;
        frame.mark = MARK_OF_ARRIVAL;
        assert_eq!(pair.run_frame(Hook::ToPod, &frame).0, Err(Reason::PolicyIngress));
        frame.mark = 0;
        assert_eq!(pair.run_frame(Hook::ToPod, &frame).0, Ok(Verdict::Pass));
    });
}

#[test]
fn svc_59_rel_39_a_connection_whose_entry_was_evicted_keeps_its_translated_port() {
    families(|pair, v6| {
        let config = std::mem::replace(&mut pair.memory.config, Config::DEFAULT);
        let port_of = |pair: &mut Pair, source: u16| {
            let ends = Ends {
                src_port: source,
                ..from_a(far(v6))
            };
            let frame = world::frame(ends.tcp(ACK, b""), ifindex::POD_A);
            assert_eq!(pair.host(Hook::FromPod, &frame).0, gateway(v6));
            let flows = pair.memory.flows[1].entries();
            let (_, flow) = flows
                .iter()
                .find(|(key, _)| key.a_port.get() == source || key.b_port.get() == source)
                .unwrap();
            flow.snat_port.get()
        };
        let ports: Vec<u16> = (1..=8).map(|source| port_of(pair, source)).collect();
        let different: std::collections::BTreeSet<&u16> = ports.iter().collect();
        assert!(different.len() > 4, "{ports:?}");
        pair.memory.flows[1].clear();
        let again: Vec<u16> = (1..=8).map(|source| port_of(pair, source)).collect();
        assert_eq!(ports, again);
        // Unguessable: another seed, another port.
        pair.forget();
        pair.memory.secrets.port_seed.set(12345);
        let other: Vec<u16> = (1..=8).map(|source| port_of(pair, source)).collect();
        assert_ne!(ports, other);
        pair.memory.secrets.port_seed.set(0);
        pair.memory.config = config;
    });
}

#[test]
fn a_translation_that_a_connection_left_behind_leads_nowhere() {
    families(|pair, v6| {
        let ends = from_a(far(v6));
        let sent = pair.run(Hook::FromPod, &ends.tcp(SYN, b""), ifindex::POD_A).0;
        assert_eq!(sent, gateway(v6));
        // The connection began again and was given another port; the old alias still stands.
        let (key, mut flow) = pair.memory.flows[1].entries()[0].clone();
        flow.snat_port = Port::new(40001);
        pair.memory.flows[1].put(key, flow);
        let late = world::frame(answer(ends, v6, 40000).tcp(SYN_ACK, b""), ifindex::NETDEV);
        assert_eq!(pair.host(Hook::FromNetdev, &late).0, Ok(Verdict::Pass));
        let (_, flow) = pair.memory.flows[1].entries()[0].clone();
        assert_eq!(flow.flags.get() & flow_flags::REPLIED, 0);
    });
}

#[test]
fn a_connection_that_is_over_does_not_take_the_answers_of_one_behind_a_service() {
    families(|pair, v6| {
        let send = |pair: &mut Pair, ends: Ends, flags, device| {
            let (verdict, out) = pair.run(Hook::FromPod, &ends.tcp(flags, b""), device);
            assert!(verdict.is_ok(), "{verdict:?}");
            out
        };
        let straight = Ends {
            dst_port: 8080,
            ..from_a(pod(3, v6))
        };
        for (there, back) in [(SYN, SYN_ACK), (ACK, ACK), (FIN_ACK, FIN_ACK)] {
            send(pair, straight, there, ifindex::POD_A);
            send(pair, from_b(straight), back, ifindex::POD_B);
        }
        // From the same port to the same place, by its Service: to the server it is somebody else.
        let served = send(pair, dial(v6, port::TO_B), SYN, ifindex::POD_A);
        assert_ne!(ends(&served).0, ends(&straight.tcp(SYN, b"")).0);
        let back = from_pod_b(&served);
        for flags in [SYN_ACK, ACK] {
            let out = send(pair, back, flags, ifindex::POD_B);
            assert_eq!(ends(&out).0, (vip(v6), port::TO_B));
            // Who has heard no answer to its last word says it again.
            let out = send(pair, from_b(straight), FIN_ACK, ifindex::POD_B);
            assert_eq!(ends(&out).0, (straight.dst, straight.dst_port));
        }
    });
}

#[test]
fn a_translation_without_its_flow_is_over_when_the_flow_would_be() {
    families(|pair, v6| {
        let ends = from_a(far(v6));
        let now = world::monotonic();
        pair.memory.clock.set(now);
        let open = world::frame(ends.tcp(SYN, b""), ifindex::POD_A);
        assert_eq!(pair.host(Hook::FromPod, &open).0, gateway(v6));
        let back = world::frame(answer(ends, v6, 40000).tcp(ACK, b""), ifindex::NETDEV);
        for (hours, expected) in [(23, TO_A), (25, Ok(Verdict::Pass))] {
            pair.memory.flows[0].clear();
            pair.memory.flows[1].clear();
            pair.memory.clock.set(now + hours * 3600 * 1_000_000_000);
            assert_eq!(
                pair.host(Hook::FromNetdev, &back).0,
                expected,
                "after {hours} hours"
            );
        }
    });
}

#[test]
fn a_flow_whose_translation_was_lost_enters_it_again() {
    families(|pair, v6| {
        let ends = from_a(far(v6));
        let now = world::monotonic();
        pair.memory.clock.set(now);
        let from_pod = |pair: &mut Pair, flags| {
            let frame = world::frame(ends.tcp(flags, b""), ifindex::POD_A);
            pair.host(Hook::FromPod, &frame)
        };
        let (verdict, sent) = from_pod(pair, SYN);
        assert_eq!(verdict, gateway(v6));
        let l4 = if v6 { 54 } else { 34 };
        let port = u16::from_be_bytes([sent.bytes[l4], sent.bytes[l4 + 1]]);
        let back = |flags| world::frame(answer(ends, v6, port).tcp(flags, b""), ifindex::NETDEV);
        assert_eq!(pair.host(Hook::FromNetdev, &back(SYN_ACK)).0, TO_A);
        assert_eq!(from_pod(pair, ACK).0, gateway(v6));
        for table in &mut pair.memory.aliases {
            table.clear();
        }
        // It is looked after once a second, and by then stands where its flow does.
        pair.memory.clock.set(now + 1_000_000_000);
        assert_eq!(from_pod(pair, ACK).0, gateway(v6));
        let aliases = [0, 1].map(|table: usize| pair.memory.aliases[table].len());
        let flows = [0, 1].map(|table: usize| pair.memory.flows[table].len());
        assert_eq!((aliases, flows), ([1, 0], [1, 0]));
        assert_eq!(pair.host(Hook::FromNetdev, &back(ACK)).0, TO_A);
    });
}

#[test]
fn a_refused_packet_leaves_its_flow_as_it_was() {
    families(|pair, v6| {
        let ends = Ends {
            dst_port: 80,
            ..from_a(pod(5, v6))
        };
        let send = |pair: &mut Pair, flags| {
            let frame = world::frame(ends.tcp(flags, b""), ifindex::POD_A);
            pair.host(Hook::FromPod, &frame).0
        };
        assert!(send(pair, SYN).is_ok());
        let before = pair.memory.flows[1].entries()[0].1.clone();
        let peer = Addr::from(pod(2, v6));
        let known = pair.memory.peers.get(&peer).unwrap().clone();
        pair.memory.peers.put(
            peer,
            cni_ebpf::abi::Peer {
                class: 9,
                ..known.clone()
            },
        );
        pair.memory.settings.class_epoch += 1;
        pair.memory.clock.set(pair.memory.clock.get() + 1_000_000);
        assert_eq!(send(pair, fixtures::RST), Err(Reason::PolicyIngress));
        assert_eq!(pair.memory.flows[1].entries()[0].1, before);
        pair.memory.peers.put(peer, known);
        pair.memory.settings.class_epoch += 1;
    });
}

/// The tunnel's device in the world of memory.
const TUNNEL: u32 = 30;

fn tunnelled(pair: &mut Pair, test: impl FnOnce(&mut Pair)) {
    let config = Config {
        tunnel: 1,
        tunnel_ifindex: TUNNEL,
        ..pair.memory.config
    };
    let before = std::mem::replace(&mut pair.memory.config, config);
    test(pair);
    pair.memory.config = before;
}

/// Another address of the node behind 10.3.0.0/16.
fn second_address(v6: bool) -> IpAddr {
    ip(if v6 { "2001:db8::33" } else { "192.0.2.33" })
}

#[test]
fn a_node_may_send_by_the_tunnel_from_any_of_its_addresses() {
    families(|pair, v6| {
        tunnelled(pair, |pair| {
            let second = Addr::from(second_address(false));
            let remote = from_a(ip(if v6 { "fd00:3::9" } else { "10.3.0.9" }));
            let arrives = |pair: &mut Pair, outer: Addr| {
                let mut frame = world::frame(outside(remote).udp(b"x"), TUNNEL);
                frame.tunnel = Some((outer, Config::DEFAULT.vni));
                pair.host(Hook::FromNetdev, &frame).0
            };
            assert_eq!(arrives(pair, Addr::from(ip("192.0.2.3"))), TO_A);
            assert_eq!(arrives(pair, second), TO_A);
            for other in ["192.0.2.2", "10.3.0.1", "9.9.9.9"] {
                assert_eq!(
                    arrives(pair, Addr::from(ip(other))),
                    Err(Reason::TunnelSource),
                    "{other}"
                );
            }
        });
    });
}

#[test]
fn nothing_but_packets_comes_out_of_the_tunnel() {
    families(|pair, v6| {
        tunnelled(pair, |pair| {
            let mut arp = outside(from_a(far(v6))).udp(&[0; 40]);
            arp[12..14].copy_from_slice(&[0x08, 0x06]);
            let mut frame = world::frame(arp, TUNNEL);
            frame.tunnel = Some((Addr::from(ip("192.0.2.3")), Config::DEFAULT.vni));
            assert_eq!(pair.host(Hook::FromNetdev, &frame).0, Err(Reason::Arp));
        });
    });
}

#[test]
fn what_is_too_big_for_the_tunnel_and_must_not_go_past_it_is_answered() {
    families(|pair, v6| {
        let ends = from_a(second_address(v6));
        let fits = if v6 { 1402 } else { 1422 };
        for (bytes, segment) in [
            (ends.udp(&vec![7; fits]), 0),
            (ends.tcp(SYN, &[7; 2000]), if v6 { 1390 } else { 1410 }),
        ] {
            let mut frame = world::frame(bytes, ifindex::POD_A);
            frame.segment_size = segment;
            let verdict = pair.run_frame(Hook::FromPod, &frame).0;
            assert!(matches!(verdict, Ok(Verdict::Tunnel { .. })), "{verdict:?}");
            pair.forget();
        }
        for (bytes, segment) in [
            (ends.udp(&vec![7; fits + 1]), 0),
            (ends.tcp(SYN, &[7; 2000]), if v6 { 1391 } else { 1411 }),
        ] {
            let mut frame = world::frame(bytes.clone(), ifindex::POD_A);
            frame.segment_size = segment;
            for known in [false, true] {
                let (verdict, error) = pair.run_frame(Hook::FromPod, &frame);
                assert_eq!(verdict, TO_A, "known {known}");
                let quoted = &bytes[14..14 + 96];
                let kind = if v6 { [2, 0] } else { [3, 4] };
                let message = [&kind[..], &[0, 0], &1450u32.to_be_bytes(), quoted].concat();
                assert_eq!(error, ends.reversed().icmp(&message));
            }
            pair.forget();
        }
        // Nobody answers an error, or the rest of a datagram.
        let [first, later] = frames::fragments(&ends.udp(&vec![7; 3000]), 1456, 77);
        assert_eq!(pair.run(Hook::FromPod, &first, ifindex::POD_A).0, TO_A);
        let drop = drop_of(pair, &later);
        assert_eq!(drop, Reason::TooBig);
    });
}

#[test]
fn segments_follow_the_mtu_of_the_kernels_route() {
    families(|pair, v6| {
        // The route is for packets of 1400 bytes; the stack says so to the sender.
        let ends = from_a(ip(if v6 { "2001:db8:5::9" } else { "198.51.100.77" }));
        let bytes = ends.tcp(ACK, &[0; 2000]);
        let headers = if v6 { 60 } else { 40 };
        for (segment, expected) in [(1400 - headers, gateway(v6)), (1401 - headers, Ok(Verdict::Pass))] {
            let mut frame = world::frame(bytes.clone(), ifindex::POD_A);
            frame.segment_size = segment;
            assert_eq!(pair.run_frame(Hook::FromPod, &frame).0, expected, "{segment}");
            pair.forget();
        }
    });
}
