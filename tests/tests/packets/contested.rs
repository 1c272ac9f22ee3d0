//! One client's port that two frontends lead to one backend: both connections go on, the second one from another port.

use std::{net::IpAddr, ops::RangeInclusive};

use cni_ebpf::abi::{Addr, Port, Reason, ServiceKey, service_scope};
use cni_ebpf::datapath::{Verdict, conntrack};
use cni_tests::frames::{self, Ends};
use cni_tests::world::{self, Hook, ifindex, mac, pod, port};

use crate::dispute::with_ports;
use crate::external::{answer_to, arrive, client, from_pod_b, outside};
use crate::fixtures::{ACK, FIN_ACK, SYN, SYN_ACK, TO_A, TO_B, gateway};
use crate::rival::rivals;
use crate::services::{dial, ends, node, sealed, vip};
use crate::{Pair, privileged, with_pair};

const PORTS: RangeInclusive<u16> = 40_000..=40_003;
/// Where the second frontends are.
pub(crate) const SECOND: u16 = 30_999;

type Side = (IpAddr, u16);

fn few_ports(test: impl Fn(&mut Pair, bool) + Send + 'static) {
    with_ports(PORTS, test);
}

/// A frontend beside `first`, with its endpoints.
pub(crate) fn second(pair: &mut Pair, addr: IpAddr, first: u16, scope: u8) {
    for proto in [6, 17, 132] {
        let key = |addr, port| ServiceKey {
            addr: Addr::from(addr),
            port: Port::new(port),
            proto,
            scope,
            pad: 0,
        };
        let v6 = addr.is_ipv6();
        let there = if scope == service_scope::CLUSTER {
            vip(v6)
        } else {
            node(v6)
        };
        let service = *pair.memory.services.get(&key(there, first)).unwrap();
        pair.put_service(key(addr, SECOND), service);
    }
}

/// The packets of a connection, there and back, of each protocol.
const PROTOCOLS: [&[(Packet, Packet)]; 3] = [
    &[
        (|ends, _| ends.tcp(SYN, b""), |ends, _| ends.tcp(SYN_ACK, b"")),
        (|ends, _| ends.tcp(ACK, b"q"), |ends, _| ends.tcp(ACK, b"a")),
    ],
    &[
        (|ends, _| ends.udp(b"q"), |ends, _| ends.udp(b"a")),
        (|ends, _| ends.udp(b"q"), |ends, _| ends.udp(b"a")),
    ],
    &[
        (
            |ends, v6| sealed(ends.sctp(b"q"), v6),
            |ends, v6| sealed(ends.sctp(b"a"), v6),
        ),
        (
            |ends, v6| sealed(ends.sctp(b"q"), v6),
            |ends, v6| sealed(ends.sctp(b"a"), v6),
        ),
    ],
];

type Packet = fn(Ends, bool) -> Vec<u8>;

fn intact(bytes: &[u8], v6: bool) {
    if bytes[if v6 { 20 } else { 23 }] == 132 {
        assert_eq!(bytes, sealed(bytes.to_vec(), v6));
    } else {
        assert!(frames::checksums_hold(bytes));
    }
}

/// Two connections at once, packet by packet: both are answered as what was dialled, and `seen` by their backend as the
/// same two clients throughout.
fn both(
    pair: &mut Pair,
    v6: bool,
    dialled: [Ends; 2],
    there: (Hook, u32),
    back: (Hook, u32),
    answer: impl Fn(&[u8]) -> Ends,
) -> Vec<[Side; 2]> {
    let mut seen = Vec::new();
    for packets in PROTOCOLS {
        let mut of_each = Vec::new();
        for (ask, reply) in packets {
            let outs = dialled.map(|ends| {
                let (verdict, out) = pair.run(there.0, &ask(ends, v6), there.1);
                assert!(verdict.is_ok(), "{verdict:?} {ends:?}");
                intact(&out, v6);
                out
            });
            for (ends, out) in dialled.iter().zip(&outs) {
                let (verdict, out) = pair.run(back.0, &reply(answer(out), v6), back.1);
                assert!(verdict.is_ok(), "{verdict:?}");
                intact(&out, v6);
                assert_eq!(
                    self::ends(&out),
                    ((ends.dst, ends.dst_port), (ends.src, ends.src_port))
                );
            }
            let [first, second] = outs.map(|out| ends(&out));
            assert_eq!(first.1, second.1, "one backend");
            of_each.push([first.0, second.0]);
        }
        assert!(of_each.iter().all(|now| *now == of_each[0]), "{of_each:?}");
        assert_ne!(of_each[0][0], of_each[0][1]);
        seen.push(of_each[0]);
    }
    seen
}

/// The first client as it is, the second one with its address.
fn keep(seen: &[[Side; 2]], ends: &Ends) {
    for [first, second] in seen {
        assert_eq!(*first, (ends.src, ends.src_port));
        assert_eq!(second.0, ends.src);
        assert!(PORTS.contains(&second.1));
    }
}

#[test]
fn svc_22_two_services_give_one_pods_port_to_one_backend() {
    few_ports(|pair, v6| {
        second(pair, vip(v6), port::TO_B, service_scope::CLUSTER);
        let first = dial(v6, port::TO_B);
        let dialled = [first, dial(v6, SECOND)];
        let there = (Hook::FromPod, ifindex::POD_A);
        let back = (Hook::FromPod, ifindex::POD_B);
        let seen = both(pair, v6, dialled, there, back, from_pod_b);
        keep(&seen, &first);
        // Nor does one that dials the backend itself lose its connection to one that dials a Service.
        pair.forget();
        let direct = Ends {
            dst: pod(3, v6),
            dst_port: 8080,
            ..first
        };
        // And one that dials the backend behind another that dialled a Service is answered by the backend.
        for dialled in [[direct, first], [first, direct]] {
            let seen = both(pair, v6, dialled, there, back, from_pod_b);
            keep(&seen, &first);
            pair.forget();
        }
    });
}

#[test]
fn svc_22_what_was_given_to_a_port_is_not_lost_to_who_dials_from_there() {
    few_ports(|pair, v6| {
        second(pair, vip(v6), port::TO_B, service_scope::CLUSTER);
        let run = |pair: &mut Pair, ends: Ends, flags| {
            pair.run(Hook::FromPod, &ends.tcp(flags, b""), ifindex::POD_A)
        };
        run(pair, dial(v6, port::TO_B), SYN).0.unwrap();
        let moved = dial(v6, SECOND);
        let (_, seen) = run(pair, moved, SYN);
        let given = ends(&seen).0.1;
        // To the backend itself, and to a Service of it.
        let direct = Ends {
            src_port: given,
            dst: pod(3, v6),
            dst_port: 8080,
            ..moved
        };
        let served = Ends {
            src_port: given,
            ..dial(v6, port::TO_B)
        };
        let mut others = vec![given];
        for ends in [direct, served] {
            let (verdict, out) = run(pair, ends, SYN);
            assert_eq!((verdict, self::ends(&out).0.0), (TO_B, ends.src));
            assert!(!others.contains(&self::ends(&out).0.1), "{others:?}");
            others.push(self::ends(&out).0.1);
            for (flags, reply) in [(SYN, SYN_ACK), (ACK, ACK)] {
                for (ends, port) in [(ends, *others.last().unwrap()), (moved, given)] {
                    let (_, out) = run(pair, ends, flags);
                    assert_eq!(self::ends(&out), ((ends.src, port), (pod(3, v6), 8080)));
                    let back = from_pod_b(&out).tcp(reply, b"");
                    let (verdict, back) = pair.run(Hook::FromPod, &back, ifindex::POD_B);
                    assert_eq!(verdict, TO_A);
                    assert_eq!(
                        self::ends(&back),
                        ((ends.dst, ends.dst_port), (ends.src, ends.src_port))
                    );
                }
            }
        }
        // Nor to one of them that has ended.
        let (_, out) = run(pair, direct, FIN_ACK);
        let end = from_pod_b(&out).tcp(FIN_ACK, b"");
        assert_eq!(pair.run(Hook::FromPod, &end, ifindex::POD_B).0, TO_A);
        let (_, out) = run(pair, moved, ACK);
        let (_, back) = pair.run(Hook::FromPod, &from_pod_b(&out).tcp(ACK, b""), ifindex::POD_B);
        assert_eq!(
            ends(&back),
            ((moved.dst, moved.dst_port), (moved.src, moved.src_port))
        );
    });
}

/// A backend that the stack has, on the node itself.
#[test]
fn svc_22_two_services_give_one_clients_port_to_a_process_of_the_node() {
    few_ports(|pair, v6| {
        second(pair, vip(v6), port::TO_HOST, service_scope::CLUSTER);
        let first = dial(v6, port::TO_HOST);
        let dialled = [first, dial(v6, SECOND)];
        let to_a = |out: &[u8]| answer_to(out, world::NODE_MAC, mac(ifindex::POD_A));
        let seen = both(
            pair,
            v6,
            dialled,
            (Hook::FromPod, ifindex::POD_A),
            (Hook::ToPod, ifindex::POD_A),
            to_a,
        );
        keep(&seen, &first);
        pair.forget();
        second(pair, node(v6), port::NODE_HOST, service_scope::EXTERNAL);
        let first = outside(v6, port::NODE_HOST);
        let dialled = [first, outside(v6, SECOND)];
        let outwards = |out: &[u8]| answer_to(out, mac(ifindex::NETDEV), [2, 9, 9, 9, 9, 9]);
        let seen = both(
            pair,
            v6,
            dialled,
            (Hook::FromNetdev, ifindex::NETDEV),
            (Hook::ToNetdev, ifindex::NETDEV),
            outwards,
        );
        keep(&seen, &first);
    });
}

#[test]
fn svc_33_who_is_hidden_is_given_a_port_for_each_frontend() {
    few_ports(|pair, v6| {
        let there = (Hook::FromNetdev, ifindex::NETDEV);
        let routed = |out: &[u8]| answer_to(out, [2, 9, 9, 9, 9, 9], mac(ifindex::NETDEV));
        for first in [port::NODE_CLUSTER, port::NODE_REMOTE] {
            second(pair, node(v6), first, service_scope::EXTERNAL);
            let dialled = [outside(v6, first), outside(v6, SECOND)];
            let seen = if first == port::NODE_CLUSTER {
                both(
                    pair,
                    v6,
                    dialled,
                    there,
                    (Hook::FromPod, ifindex::POD_B),
                    from_pod_b,
                )
            } else {
                both(pair, v6, dialled, there, there, routed)
            };
            for (addr, port) in seen.into_iter().flatten() {
                // SCTP keeps its own where it can.
                assert!(addr == node(v6) && (PORTS.contains(&port) || port == 50123));
            }
            pair.forget();
        }
        // The same before the stack.
        second(pair, node(v6), port::NODE_REMOTE, service_scope::EXTERNAL);
        let mut ports = [port::NODE_REMOTE, SECOND].map(|to| {
            let (verdict, out) = pair.run(Hook::XdpNodeport, &outside(v6, to).udp(b"q"), ifindex::NETDEV);
            assert!(matches!(verdict, Ok(Verdict::Neighbour { .. })), "{verdict:?}");
            let (_, back) = pair.run(Hook::XdpNodeport, &routed(&out).udp(b"a"), ifindex::NETDEV);
            assert_eq!(ends(&back), ((node(v6), to), (client(v6), 50123)));
            ends(&out).0.1
        });
        ports.sort();
        assert_ne!(ports[0], ports[1]);
    });
}

#[test]
fn svc_34_who_is_seen_keeps_the_address_for_each_frontend() {
    few_ports(|pair, v6| {
        second(pair, node(v6), port::NODE_LOCAL, service_scope::EXTERNAL);
        let first = outside(v6, port::NODE_LOCAL);
        let dialled = [first, outside(v6, SECOND)];
        let there = (Hook::FromNetdev, ifindex::NETDEV);
        let seen = both(
            pair,
            v6,
            dialled,
            there,
            (Hook::FromPod, ifindex::POD_B),
            from_pod_b,
        );
        keep(&seen, &first);
        // Whoever dials the backend itself from the port that was given.
        let direct = Ends {
            src_port: seen[1][1].1,
            dst: pod(3, v6),
            dst_port: 8080,
            ..first
        };
        let (verdict, out) = arrive(pair, &direct.udp(b"q"));
        assert_eq!((verdict, ends(&out).0.0), (TO_B, client(v6)));
        assert_ne!(ends(&out).0.1, direct.src_port);
        let back = from_pod_b(&out).udp(b"a");
        let (verdict, back) = pair.run(Hook::FromPod, &back, ifindex::POD_B);
        assert_eq!(verdict, gateway(v6));
        assert_eq!(ends(&back), ((pod(3, v6), 8080), (client(v6), direct.src_port)));
    });
}

#[test]
fn svc_57_errors_about_the_second_connection_show_each_side_what_it_sent() {
    few_ports(|pair, v6| {
        second(pair, vip(v6), port::TO_B, service_scope::CLUSTER);
        let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
        let inner = if v6 { 14 + 40 + 8 } else { 14 + 20 + 8 };
        let shown = |sent: &[u8], out: &[u8]| ends(&[&sent[..14], &out[inner..]].concat());
        pair.run(Hook::FromPod, &dial(v6, port::TO_B).udp(b"first"), ifindex::POD_A)
            .0
            .unwrap();
        let sent = dial(v6, SECOND).udp(b"hello there");
        let (_, seen) = pair.run(Hook::FromPod, &sent, ifindex::POD_A);
        let error = from_pod_b(&seen).icmp_error(kind, code, &seen);
        let (verdict, out) = pair.run(Hook::FromPod, &error, ifindex::POD_B);
        assert_eq!(verdict, TO_A);
        assert!(frames::checksums_hold(&out));
        assert_eq!(shown(&sent, &out), ends(&sent));
        // About the answer, from its receiver.
        let answer = from_pod_b(&seen).udp(b"and hello to you");
        let (_, back) = pair.run(Hook::FromPod, &answer, ifindex::POD_B);
        let error = Ends {
            dst_port: 0,
            ..dial(v6, SECOND)
        };
        let (verdict, out) = pair.run(
            Hook::FromPod,
            &error.icmp_error(kind, code, &back),
            ifindex::POD_A,
        );
        assert_eq!(verdict, TO_B);
        assert!(frames::checksums_hold(&out));
        assert_eq!(shown(&answer, &out), ends(&answer));
        assert_eq!(ends(&out).0.0, pod(2, v6));
        // And from the stack, which was to carry it on and could not.
        let late = Ends {
            src_mac: world::NODE_MAC,
            dst_mac: mac(ifindex::POD_B),
            src: node(v6),
            dst: pod(3, v6),
            ..error
        };
        let (verdict, out) = pair.run(Hook::ToPod, &late.icmp_error(kind, code, &answer), ifindex::POD_B);
        assert_eq!(verdict, Ok(Verdict::Pass));
        assert_eq!(shown(&answer, &out), ends(&answer));
    });
}

#[test]
fn a_port_that_was_given_is_kept_until_its_connection_is_over() {
    few_ports(|pair, v6| {
        second(pair, vip(v6), port::TO_B, service_scope::CLUSTER);
        let run = |pair: &mut Pair, ends: Ends, flags| {
            pair.run(Hook::FromPod, &ends.tcp(flags, b""), ifindex::POD_A)
        };
        let (first, moved) = (dial(v6, port::TO_B), dial(v6, SECOND));
        run(pair, first, SYN).0.unwrap();
        let (_, seen) = run(pair, moved, SYN);
        let given = ends(&seen).0;
        assert_ne!(given.1, moved.src_port);
        let answer = from_pod_b(&seen).tcp(SYN_ACK, b"");
        let (verdict, _) = pair.run(Hook::FromPod, &answer, ifindex::POD_B);
        verdict.unwrap();
        // It is moved to the other table with all that leads to it.
        run(pair, moved, ACK).0.unwrap();
        assert_eq!(pair.memory.flows[0].len(), 1);
        assert_eq!(pair.kernel.flows("conntrack").unwrap(), 1);
        let (verdict, out) = run(pair, moved, ACK);
        assert_eq!((verdict, ends(&out).0), (TO_B, given));
        let (verdict, _) = pair.run(Hook::FromPod, &from_pod_b(&seen).tcp(ACK, b""), ifindex::POD_B);
        assert_eq!(verdict, TO_A);
        // Both ends close it, and it begins anew.
        run(pair, moved, FIN_ACK).0.unwrap();
        let end = from_pod_b(&seen).tcp(FIN_ACK, b"");
        pair.run(Hook::FromPod, &end, ifindex::POD_B).0.unwrap();
        let (verdict, out) = run(pair, moved, SYN);
        assert_eq!((verdict, ends(&out).1), (TO_B, (pod(3, v6), 8080)));
        let (verdict, back) = pair.run(Hook::FromPod, &from_pod_b(&out).tcp(SYN_ACK, b""), ifindex::POD_B);
        assert_eq!(verdict, TO_A);
        assert_eq!(ends(&back), ((moved.dst, SECOND), (moved.src, moved.src_port)));
    });
}

/// A side that has said its last word may hear for long, and says that it has heard.
#[test]
fn svc_22_svc_33_a_connection_that_a_side_has_ended_is_not_given_to_who_dials_elsewhere() {
    few_ports(|pair, v6| {
        for rivals in rivals(pair, v6) {
            let (first, other) = (rivals.first, rivals.other);
            let seen = rivals.said(pair, first, SYN);
            rivals.answered(pair, &seen, first, SYN_ACK);
            rivals.said(pair, first, ACK);
            rivals.said(pair, first, FIN_ACK);
            let begun = rivals.said(pair, other, SYN);
            assert_ne!(ends(&begun).0, ends(&seen).0);
            rivals.answered(pair, &seen, first, ACK);
            rivals.answered(pair, &seen, first, FIN_ACK);
            let begun_again = rivals.said(pair, other, SYN);
            assert_eq!(ends(&begun_again).0, ends(&begun).0);
            assert_eq!(ends(&rivals.said(pair, first, ACK)), ends(&seen));
            pair.forget();
        }
    });
}

/// In the host build alone, whose clock can be set.
#[test]
fn a_connection_that_is_silent_for_long_is_not_taken_for_dead() {
    few_ports(|pair, v6| {
        second(pair, vip(v6), port::TO_B, service_scope::CLUSTER);
        let now = pair.memory.clock.get();
        let mut run = |seconds, ends: Ends, flags, device| {
            pair.memory.clock.set(now + seconds * conntrack::SECOND);
            let (verdict, out) = pair.host(Hook::FromPod, &world::frame(ends.tcp(flags, b""), device));
            (verdict, out.bytes)
        };
        let first = dial(v6, port::TO_B);
        let (_, seen) = run(0, first, SYN, ifindex::POD_A);
        run(0, from_pod_b(&seen), SYN_ACK, ifindex::POD_B).0.unwrap();
        run(0, first, ACK, ifindex::POD_A).0.unwrap();
        let (verdict, out) = run(3600, dial(v6, SECOND), SYN, ifindex::POD_A);
        assert_eq!(verdict, TO_B);
        assert_ne!(ends(&out).0.1, first.src_port);
        let (verdict, back) = run(3600, from_pod_b(&seen), ACK, ifindex::POD_B);
        assert_eq!((verdict, ends(&back).0), (TO_A, (vip(v6), port::TO_B)));
    });
}

#[test]
fn where_no_port_is_left_the_connection_that_is_there_stays_and_the_second_is_dropped() {
    cni_tests::require!(privileged(), "running programs needs root");
    with_pair(world::CONFIG, |pair| {
        for v6 in [false, true] {
            second(pair, vip(v6), port::TO_B, service_scope::CLUSTER);
            // The only port that there is.
            let src_port = world::CONFIG.snat_first as u16;
            let own = |to| Ends {
                src_port,
                ..dial(v6, to)
            };
            let (verdict, seen) = pair.run(Hook::FromPod, &own(port::TO_B).tcp(SYN, b""), ifindex::POD_A);
            assert_eq!(verdict, TO_B);
            let refused = own(SECOND).tcp(SYN, b"");
            let (verdict, out) = pair.run(Hook::FromPod, &refused, ifindex::POD_A);
            assert_eq!((verdict, out), (Err(Reason::ServiceTuple), refused));
            assert_eq!(pair.memory.flows[1].len(), 1, "nothing of it remains");
            let answer = from_pod_b(&seen).tcp(SYN_ACK, b"");
            let (verdict, back) = pair.run(Hook::FromPod, &answer, ifindex::POD_B);
            assert_eq!((verdict, ends(&back).0), (TO_A, (vip(v6), port::TO_B)));
            pair.forget();
        }
    });
}
