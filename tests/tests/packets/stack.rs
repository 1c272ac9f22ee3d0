//! What is left to the host's stack, and what comes back from it.

use cni_ebpf::abi::{Addr, Config, Prefix, Route, flow_flags, route_action};
use cni_ebpf::datapath::conntrack::SECOND;
use cni_ebpf::datapath::{Verdict, Work};
use cni_tests::frames::{self, Ends};
use cni_tests::memory::Memory;
use cni_tests::world::{self, Hook, backend, ifindex, ip, mac, pod, port, service_id};

use crate::direct::into_the_tunnel;
use crate::external::{answer_to, tunnelled};
use crate::fixtures::{
    ACK, FIN_ACK, SYN, SYN_ACK, TO_A, TO_B, families, far, from_a, from_b, from_pod, gateway, outside,
};
use crate::services::{dial, vip};
use crate::{Pair, privileged, with_pair};

fn node(v6: bool) -> std::net::IpAddr {
    ip(if v6 { "2001:db8::1" } else { "192.0.2.1" })
}

/// Source address and port of a packet without options.
fn source(bytes: &[u8], v6: bool) -> (std::net::IpAddr, u16) {
    let (ip, l4): (std::net::IpAddr, _) = if v6 {
        (<[u8; 16]>::try_from(&bytes[22..38]).unwrap().into(), 54)
    } else {
        (<[u8; 4]>::try_from(&bytes[26..30]).unwrap().into(), 34)
    };
    (ip, u16::from_be_bytes([bytes[l4], bytes[l4 + 1]]))
}

#[test]
fn where_plugins_act_in_the_stack_both_directions_pass_it() {
    families(|pair, v6| {
        let to_pod = Ends {
            dst: pod(4, v6),
            ..outside(from_a(far(v6)))
        };
        let (verdict, _) = pair.run(Hook::FromNetdev, &to_pod.tcp(SYN, b""), ifindex::NETDEV);
        assert_eq!(verdict, Ok(Verdict::Handled));
        let back = Ends {
            src_mac: mac(ifindex::POD_STACK),
            dst_mac: world::NODE_MAC,
            ..to_pod.reversed()
        };
        let bytes = back.tcp(SYN_ACK, b"");
        let (verdict, out) = pair.run(Hook::FromPod, &bytes, ifindex::POD_STACK);
        assert_eq!((verdict, out), (Ok(Verdict::Pass), bytes.clone()));
        let (verdict, out) = pair.run(Hook::ToNetdev, &bytes, ifindex::NETDEV);
        assert_eq!(
            (verdict, out),
            (Ok(Verdict::Pass), bytes),
            "it is no connection of the pod's own"
        );
        // From a neighbour on this node.
        let near = Ends {
            src_port: 1,
            ..from_a(pod(4, v6))
        };
        let (verdict, _) = pair.run(Hook::FromPod, &near.tcp(SYN, b""), ifindex::POD_A);
        assert_eq!(verdict, Ok(Verdict::Handled));
        let back = Ends {
            src_mac: mac(ifindex::POD_STACK),
            ..from_b(near)
        };
        let (verdict, _) = pair.run(Hook::FromPod, &back.tcp(SYN_ACK, b""), ifindex::POD_STACK);
        assert_eq!(verdict, Ok(Verdict::Handled));
    });
}

/// It dials a Service of the stack's, and the answer bears that address behind the stack only, where it was judged already.
#[test]
fn svc_53_datagrams_that_the_stack_serves_stay_its_until_it_forgets_them() {
    cni_tests::require!(privileged(), "running programs needs root");
    let stacks = Config {
        services: 0,
        ..world::CONFIG
    };
    with_pair(stacks, move |pair| {
        for v6 in [false, true] {
            let dialled = Ends {
                src_mac: mac(ifindex::POD_STACK),
                src: pod(4, v6),
                ..dial(v6, port::TO_B)
            };
            let sent = dialled.udp(b"x");
            let by_stack = pair.run(Hook::FromPod, &sent, ifindex::POD_STACK);
            assert_eq!(by_stack, (Ok(Verdict::Pass), sent.clone()));
            let answer = Ends {
                dst_mac: mac(ifindex::POD_STACK),
                ..dialled.reversed()
            };
            let mut judged = world::frame(answer.udp(b"y"), ifindex::POD_STACK);
            judged.mark = stacks.mark;
            assert_eq!(pair.run_frame(Hook::ToPod, &judged).0, Ok(Verdict::Pass));
            assert_eq!(pair.kernel.flows("conntrack").unwrap(), 1);
            assert_eq!(pair.memory.flows.each_ref().map(|table| table.len()), [1, 0]);
            // Again, and nothing is counted twice.
            assert_eq!(pair.run_frame(Hook::ToPod, &judged).0, Ok(Verdict::Pass));
            assert_eq!(pair.memory.flows[0].entries()[0].1.packets_reply.get(), 1);
            // Services are ours from here on, and the programs do not change on that: the host build's turn.
            pair.memory.config.services = 1;
            let frame = world::frame(sent, ifindex::POD_STACK);
            assert_eq!(pair.host(Hook::FromPod, &frame).0, Ok(Verdict::Pass));
            let later = pair.memory.clock.get() + 120 * SECOND;
            pair.memory.clock.set(later);
            assert_eq!(pair.host(Hook::FromPod, &frame).0, TO_B);
            pair.memory.clock.set(later + SECOND);
            assert_eq!(pair.host(Hook::FromPod, &frame).0, TO_B, "and stays ours");
            pair.memory.config.services = 0;
            pair.forget();
        }
    });
}

/// Others than we drop what the stack's connection tracking has seen half of.
#[test]
fn a_connection_of_a_pod_behind_the_stack_passes_it_in_both_directions_or_in_none() {
    families(|pair, v6| {
        let sent = |to| Ends {
            src_mac: mac(ifindex::POD_STACK),
            src: pod(4, v6),
            ..from_a(to)
        };
        let mut send = |hook, bytes: &[u8], device| pair.run(hook, bytes, device).0;
        // Another node's pods, and beyond: what leaves the cluster is translated behind the stack.
        for to in [
            ["10.2.0.9", "fd00:2::9"],
            ["10.3.0.9", "fd00:3::9"],
            ["9.9.9.9", "2620:fe::9"],
        ] {
            let ends = sent(ip(to[usize::from(v6)]));
            for flags in [SYN, ACK] {
                let verdict = send(Hook::FromPod, &ends.tcp(flags, b""), ifindex::POD_STACK);
                assert_eq!(verdict, Ok(Verdict::Pass), "{to:?}");
            }
        }
        let answer = outside(sent(ip(if v6 { "fd00:2::9" } else { "10.2.0.9" }))).tcp(SYN_ACK, b"");
        let verdict = send(Hook::FromNetdev, &answer, ifindex::NETDEV);
        assert_eq!(verdict, Ok(Verdict::Handled));
        // Between the two sides of a Service the stack would see other addresses on the way back.
        let dialled = Ends {
            dst_port: port::TO_B,
            ..sent(vip(v6))
        };
        let verdict = send(Hook::FromPod, &dialled.tcp(SYN, b""), ifindex::POD_STACK);
        assert_eq!(verdict, TO_B);
        let answer = from_b(Ends {
            dst: pod(3, v6),
            dst_port: 8080,
            ..dialled
        });
        let verdict = send(Hook::FromPod, &answer.tcp(SYN_ACK, b""), ifindex::POD_B);
        let ifindex = ifindex::POD_STACK;
        assert_eq!(verdict, Ok(Verdict::Peer { ifindex }));
    });
}

/// The stack would see another port on the way there than on the way back, or send the packet out as it came.
#[test]
fn svc_22_who_dials_a_backend_from_a_port_that_its_service_had_is_translated_past_the_stack() {
    families(|pair, v6| {
        let to_stack = Ok(Verdict::Peer {
            ifindex: ifindex::POD_STACK,
        });
        let dial_both = |pair: &mut Pair, number: u8, frontend: u16, backend| {
            let device = ifindex::POD_A + u32::from(number) - 2;
            let served = Ends {
                dst_port: frontend,
                ..from_pod(number, vip(v6))
            };
            for flags in [SYN, FIN_ACK] {
                let (verdict, _) = pair.run(Hook::FromPod, &served.tcp(flags, b""), device);
                verdict.unwrap();
            }
            let dialled = from_pod(number, backend).tcp(SYN, b"");
            let (verdict, out) = pair.run(Hook::FromPod, &dialled, device);
            assert_ne!(source(&out, v6).1, source(&dialled, v6).1);
            (verdict, out)
        };
        // To a pod behind the stack.
        let offset = if v6 { backend::V6 } else { 0 };
        let id = service_id(port::TO_B, v6, 0);
        pair.put_backend(99, Some((pod(4, v6), 8080)));
        pair.put_slot(id, 0, 99);
        let (verdict, out) = dial_both(pair, 2, port::TO_B, pod(4, v6));
        assert_eq!(verdict, to_stack);
        let answer = answer_to(&out, mac(ifindex::POD_STACK), world::NODE_MAC).tcp(SYN_ACK, b"");
        let (verdict, out) = pair.run(Hook::FromPod, &answer, ifindex::POD_STACK);
        assert_eq!((verdict, source(&out, v6)), (TO_A, (pod(4, v6), 8080)));
        pair.put_slot(id, 0, backend::POD_B + offset);
        pair.put_backend(99, None);
        // From one, to another node.
        let remote = ip(if v6 { "fd00:3::9" } else { "10.3.0.9" });
        let (verdict, out) = dial_both(pair, 4, port::TUNNELLED, remote);
        assert_eq!(verdict, into_the_tunnel());
        let answer = answer_to(&out, [2, 9, 9, 9, 9, 9], mac(ifindex::NETDEV));
        let (verdict, out) = pair.run_tunnelled(&tunnelled(answer.tcp(SYN_ACK, b"")));
        assert_eq!((verdict, source(&out, v6)), (to_stack, (remote, 8080)));
    });
}

#[test]
fn a_connection_that_another_proxy_translated_goes_on_through_the_stack() {
    for v6 in [false, true] {
        let mut memory = world::memory();
        let range = Prefix::host(Addr::from(vip(v6)));
        let ends = dial(v6, 9997);
        let route = |memory: &mut Memory, action| {
            memory.routes.put(
                range,
                Route {
                    action,
                    ..Route::default()
                },
            );
        };
        let send = |memory: &mut Memory, ends: Ends, flags| {
            let mut frame = world::frame(ends.tcp(flags, b""), ifindex::POD_A);
            world::run(memory, Hook::FromPod, &mut frame, &mut Work::default())
        };
        route(&mut memory, route_action::STACK);
        assert_eq!(send(&mut memory, ends, SYN), Ok(Verdict::Pass));
        route(&mut memory, route_action::SERVICE);
        assert_eq!(send(&mut memory, ends, ACK), Ok(Verdict::Pass));
        let new = Ends { src_port: 1, ..ends };
        assert!(send(&mut memory, new, SYN).is_err());
        // What nobody has answered is sent again, or begins from the same port, and finds that the Service is ours.
        route(&mut memory, route_action::STACK);
        let unanswered = dial(v6, port::TO_B);
        let ours = std::mem::take(&mut memory.services);
        assert_eq!(send(&mut memory, unanswered, SYN), Ok(Verdict::Pass));
        memory.services = ours;
        route(&mut memory, route_action::SERVICE);
        for flags in [SYN, SYN, ACK] {
            assert_eq!(send(&mut memory, unanswered, flags), TO_B);
        }
        let flows = memory.flows[1].entries();
        let flow = flows
            .iter()
            .find(|(_, flow)| flow.flags.get() & flow_flags::DNAT != 0);
        assert_eq!(flow.unwrap().1.packets_forward.get(), 3, "one connection");
    }
}

#[test]
fn what_the_stack_routes_is_masqueraded_behind_it() {
    families(|pair, v6| {
        // The kernel's answer is an error that only the stack can send: it gets the packet as it was.
        let ends = from_a(ip(if v6 { "2001:db8:dead::9" } else { "203.0.113.9" }));
        for round in 0..2 {
            let bytes = ends.udp(b"hello");
            let (verdict, out) = pair.run(Hook::FromPod, &bytes, ifindex::POD_A);
            assert_eq!((verdict, &out), (Ok(Verdict::Pass), &bytes));
            let (kind, code) = if v6 { (1, 0) } else { (3, 0) };
            let error = Ends {
                src: node(v6),
                dst_mac: mac(ifindex::POD_A),
                ..outside(ends)
            }
            .icmp_error(kind, code, &bytes);
            let (verdict, shown) = pair.run(Hook::ToPod, &error, ifindex::POD_A);
            assert_eq!(
                (verdict, shown),
                (Ok(Verdict::Pass), error),
                "it is about the pod's own packet"
            );
            if round == 0 {
                // The route was there after all.
                let (verdict, out) = pair.run(Hook::ToNetdev, &bytes, ifindex::NETDEV);
                assert_eq!(verdict, Ok(Verdict::Pass));
                assert_eq!(source(&out, v6), (node(v6), 40000));
                assert!(frames::checksums_hold(&out));
            }
        }
        let (_, out) = pair.run(Hook::ToNetdev, &ends.udp(b"hello"), ifindex::NETDEV);
        assert_eq!(source(&out, v6), (node(v6), 40000));
    });
}

#[test]
fn a_service_may_lead_to_the_node_itself() {
    families(|pair, v6| {
        let vip = ip(if v6 { "fd00:96::1" } else { "10.96.0.1" });
        for ttl in [64, 1] {
            let ends = Ends {
                dst_port: 82,
                ttl,
                ..from_a(vip)
            };
            let (verdict, out) = pair.run(Hook::FromPod, &ends.tcp(SYN, b""), ifindex::POD_A);
            assert_eq!(verdict, Ok(Verdict::Pass));
            assert!(frames::checksums_hold(&out));
            let direct = Ends {
                dst: node(v6),
                dst_port: 6443,
                ..ends
            };
            assert_eq!(crate::hex(&out), crate::hex(&direct.tcp(SYN, b"")));
            let back = Ends {
                dst_mac: mac(ifindex::POD_A),
                ..direct.reversed()
            };
            let mut frame = world::frame(back.tcp(SYN_ACK, b""), ifindex::POD_A);
            frame.ingress_ifindex = 0;
            let (verdict, out) = pair.run_frame(Hook::ToPod, &frame);
            assert_eq!(verdict, Ok(Verdict::Pass));
            assert_eq!(source(&out, v6), (vip, 82));
            pair.forget();
        }
    });
}

#[test]
fn an_answer_to_a_translated_connection_is_never_taken_for_the_nodes() {
    families(|pair, v6| {
        let ends = from_a(far(v6));
        let back = Ends {
            src: node(v6),
            src_port: 40000,
            ..ends
        }
        .reversed();
        assert_eq!(
            pair.run(Hook::FromPod, &ends.udp(b"q"), ifindex::POD_A).0,
            gateway(v6)
        );
        // Larger than the pod's link says: it fits all the same, and the stack would refuse it as its own.
        let (verdict, out) = pair.run(Hook::FromNetdev, &back.udp(&[7; 1600]), ifindex::NETDEV);
        assert_eq!(verdict, TO_A);
        assert!(frames::checksums_hold(&out));
        // At its last hop: translated, so that the stack forwards it, which it cannot.
        let last = Ends { ttl: 1, ..back };
        let (verdict, out) = pair.run(Hook::FromNetdev, &last.udp(b"a"), ifindex::NETDEV);
        assert_eq!(verdict, Ok(Verdict::Handled));
        assert_eq!(source(&out, v6), (far(v6), 8080));
        // What it says about that goes to the far side, in the far side's terms.
        let (kind, code) = if v6 { (3, 0) } else { (11, 0) };
        let error = Ends {
            src: node(v6),
            dst: far(v6),
            ..ends
        }
        .icmp_error(kind, code, &out);
        let mut frame = world::frame(error, ifindex::NETDEV);
        frame.ingress_ifindex = 0;
        let (verdict, out) = pair.run_frame(Hook::ToNetdev, &frame);
        assert_eq!(verdict, Ok(Verdict::Pass));
        assert!(frames::checksums_hold(&out));
        let inner = if v6 { 14 + 40 + 8 } else { 14 + 20 + 8 };
        let seen = [&[0; 14][..], &out[inner..]].concat();
        let expected = [&[0; 14][..], &last.udp(b"a")[14..]].concat();
        assert_eq!(source(&seen, v6), source(&expected, v6));
        let (at, len) = if v6 { (14 + 24, 16) } else { (14 + 16, 4) };
        assert_eq!(
            seen[at..at + len],
            expected[at..at + len],
            "the address that it sent to"
        );
    });
}

#[test]
fn one_connection_leaves_one_way() {
    families(|pair, v6| {
        // The kernel's rules would send what bears the node's address another way: the stack asks with the pod's.
        let ends = from_a(ip(if v6 { "2001:db8:beef::9" } else { "198.51.100.9" }));
        for _ in 0..2 {
            let (verdict, out) = pair.run(Hook::FromPod, &ends.udp(b"x"), ifindex::POD_A);
            assert_eq!(verdict, gateway(v6));
            assert_eq!(source(&out, v6), (node(v6), 40000));
        }
    });
}

#[test]
fn the_devices_checksum_over_a_packet_stays_right() {
    families(|pair, v6| {
        let far = far(v6);
        let ends = from_a(far);
        let back = Ends {
            src: node(v6),
            src_port: 40000,
            ..ends
        }
        .reversed();
        for (query, answers) in [
            (ends.udp(b"q"), vec![back.udp(b"answer")]),
            (ends.tcp(SYN, b""), vec![back.tcp(SYN_ACK, b"")]),
            (
                ends.udp(b"q"),
                frames::fragments(&back.udp(&[7; 100]), 48, 5).to_vec(),
            ),
        ] {
            let mut sent = world::frame(query, ifindex::POD_A);
            sent.complete = Some(sent.sum());
            let (verdict, sent) = pair.host(Hook::FromPod, &sent);
            assert_eq!(verdict, gateway(v6));
            assert!(sent.complete_holds());
            for answer in answers {
                let mut answer = world::frame(answer, ifindex::NETDEV);
                answer.complete = Some(answer.sum());
                let (verdict, answer) = pair.host(Hook::FromNetdev, &answer);
                assert_eq!(verdict, TO_A);
                assert!(answer.complete_holds());
            }
        }
        let (_, sent) = pair.host(
            Hook::FromPod,
            &world::frame(ends.udp(b"hello there"), ifindex::POD_A),
        );
        let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
        let error = Ends {
            dst: node(v6),
            ..outside(ends)
        }
        .icmp_error(kind, code, &sent.bytes);
        let mut error = world::frame(error, ifindex::NETDEV);
        error.complete = Some(error.sum());
        let (verdict, error) = pair.host(Hook::FromNetdev, &error);
        assert_eq!(verdict, TO_A);
        assert!(error.complete_holds());
    });
}
