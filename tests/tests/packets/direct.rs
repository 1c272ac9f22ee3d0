//! Direct server return: both nodes of a connection whose answers go past the one that was asked.

use std::net::IpAddr;

use cni_ebpf::abi::{Addr, Reason, flow_flags, service_scope, tcp_state};
use cni_ebpf::datapath::Verdict;
use cni_tests::frames::{self, Ends};
use cni_tests::memory::Frame;
use cni_tests::world::{self, Hook, backend, ifindex, ip, mac, pod, port, service_id};

use crate::Pair;
use crate::external::{answer_to, arrive, client, from_pod_b, outside, tunnelled};
use crate::fixtures::{ACK, FIN_ACK, RST, SYN, SYN_ACK, TO_B, families, from_a, gateway};
use crate::services::{ends, node};

pub(crate) fn into_the_tunnel() -> Result<Verdict, Reason> {
    let remote = Addr::from(ip("192.0.2.3"));
    Ok(Verdict::Tunnel { remote })
}

/// The backend behind the tunnel.
fn remote(v6: bool) -> IpAddr {
    ip(if v6 { "fd00:3::9" } else { "10.3.0.9" })
}

/// The link header that names a backend.
fn named(backend: IpAddr, port: u16) -> Vec<u8> {
    let whole = match backend {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let (a, b) = whole[8..].split_at(5);
    [&[6], a, &[6], b, &port.to_be_bytes()].concat()
}

/// The packet as another node sends it on, which named this backend.
fn sent_on(bytes: &[u8], backend: IpAddr, port: u16) -> Frame {
    let mut frame = tunnelled([&named(backend, port), &bytes[12..]].concat());
    frame.tunnel = frame.tunnel.map(|(_, vni)| (Addr::from(ip("192.0.2.33")), vni));
    frame
}

fn comes(pair: &mut Pair, frame: &Frame) -> (Result<Verdict, Reason>, Vec<u8>) {
    let (verdict, after) = pair.host(Hook::FromNetdev, frame);
    assert!(after.claimed || verdict == Err(Reason::Martian));
    (verdict, after.bytes)
}

/// What a pod of this node sends, in the host build alone.
fn pod_sends(pair: &mut Pair, bytes: Vec<u8>) -> (Result<Verdict, Reason>, Vec<u8>) {
    let (verdict, frame) = pair.host(Hook::FromPod, &world::frame(bytes, ifindex::POD_B));
    (verdict, frame.bytes)
}

/// The same packet one hop further, but for the link header.
fn one_hop(before: &[u8], after: &[u8], v6: bool) -> bool {
    let mut expected = before.to_vec();
    expected[if v6 { 21 } else { 22 }] -= 1;
    if !v6 {
        frames::fix_ipv4(&mut expected);
    }
    after[14..] == expected[14..]
}

#[test]
fn a_backend_behind_the_tunnel_is_given_the_packet_as_it_came() {
    families(|pair, v6| {
        let dialled = outside(v6, port::NODE_DIRECT);
        for bytes in [
            dialled.tcp(SYN, b""),
            dialled.tcp(ACK, b"more"),
            dialled.udp(b"x"),
            dialled.udp(b"y"),
            dialled.sctp(b"z"),
        ] {
            let (verdict, out) = arrive(pair, &bytes);
            assert_eq!(verdict, into_the_tunnel());
            assert_eq!(out[..12], named(remote(v6), 8080));
            assert!(one_hop(&bytes, &out, v6));
        }
        for part in frames::fragments(
            &Ends {
                src_port: 9,
                ..dialled
            }
            .udp(&[7; 200]),
            96,
            77,
        ) {
            let (verdict, out) = arrive(pair, &part);
            assert_eq!(verdict, into_the_tunnel());
            assert_eq!(out[..12], named(remote(v6), 8080));
            assert!(one_hop(&part, &out, v6));
        }
        // A stream, a flow of SCTP, and datagrams from two ports.
        let service = service_id(port::NODE_DIRECT, v6, service_scope::EXTERNAL);
        assert_eq!(pair.kernel.opened().unwrap().get(&service), Some(&4));
    });
}

#[test]
fn the_named_pod_sees_the_client_and_answers_it_as_the_service() {
    families(|pair, v6| {
        // Another node's address.
        let dialled = Ends {
            dst: ip(if v6 { "2001:db8::33" } else { "192.0.2.33" }),
            ..outside(v6, port::NODE_DIRECT)
        };
        let service = (dialled.dst, dialled.dst_port);
        // SCTP's is another one.
        let holds = |out: &[u8]| out[if v6 { 20 } else { 23 }] == 132 || frames::checksums_hold(out);
        for (there, back) in [
            (
                dialled.tcp(SYN, b""),
                (|ends: Ends| ends.tcp(SYN_ACK, b"")) as fn(Ends) -> Vec<u8>,
            ),
            (dialled.tcp(ACK, b"data"), |ends| ends.tcp(ACK, b"data")),
            (dialled.udp(b"q"), |ends| ends.udp(b"a")),
            (dialled.udp(b"q"), |ends| ends.udp(b"a")),
            (dialled.sctp(b"q"), |ends| ends.sctp(b"a")),
        ] {
            let (verdict, out) = comes(pair, &sent_on(&there, pod(3, v6), 8080));
            assert_eq!(verdict, TO_B);
            assert_eq!(ends(&out), ((client(v6), 50123), (pod(3, v6), 8080)));
            assert!(holds(&out));
            let (verdict, out) = pod_sends(pair, back(from_pod_b(&out)));
            assert_eq!(verdict, gateway(v6), "past the node that was asked");
            assert_eq!(ends(&out), (service, (client(v6), 50123)));
            assert!(holds(&out));
        }
        // The number under which this node knows the Service.
        let flows = pair.memory.flows[0].entries();
        let numbers: Vec<u32> = flows.iter().map(|(_, flow)| flow.service).collect();
        assert_eq!(numbers, [0, 0, 0], "no frontend of this node");
        // One client's port, two Services, one backend.
        let own = outside(v6, port::NODE_DIRECT_HERE);
        let (verdict, out) = comes(pair, &sent_on(&own.tcp(SYN, b""), pod(3, v6), 8080));
        assert_eq!(
            (verdict, ends(&out)),
            (TO_B, ((client(v6), 40000), (pod(3, v6), 8080)))
        );
        assert!(holds(&out));
        let (verdict, out) = pod_sends(pair, from_pod_b(&out).tcp(SYN_ACK, b""));
        assert_eq!(verdict, gateway(v6));
        assert_eq!(ends(&out), ((own.dst, own.dst_port), (client(v6), 50123)));
        assert!(holds(&out));
        // The node that was asked has counted it.
        let service = service_id(port::NODE_DIRECT_HERE, v6, service_scope::EXTERNAL);
        assert!(pair.memory.opened.get(&service).is_none());
        let own = Ends {
            src_port: 50124,
            ..own
        };
        assert_eq!(
            comes(pair, &sent_on(&own.tcp(SYN, b""), pod(3, v6), 8080)).0,
            TO_B
        );
        assert_eq!(pair.work.flow.service, service_id(port::NODE_DIRECT_HERE, v6, 1));
    });
}

#[test]
fn parts_of_a_datagram_reach_the_named_pod() {
    families(|pair, v6| {
        let whole = outside(v6, port::NODE_DIRECT).udp(&[7; 200]);
        for part in frames::fragments(&whole, 96, 77) {
            let (verdict, out) = comes(pair, &sent_on(&part, pod(3, v6), 8080));
            assert_eq!((verdict, ends(&out).1.0), (TO_B, pod(3, v6)));
        }
    });
}

#[test]
fn the_other_nodes_word_counts_for_every_packet() {
    families(|pair, v6| {
        let dialled = outside(v6, port::NODE_DIRECT);
        let datagram = dialled.udp(b"x");
        assert_eq!(comes(pair, &sent_on(&datagram, pod(3, v6), 8080)).0, TO_B);
        let (verdict, out) = comes(pair, &sent_on(&datagram, pod(2, v6), 8081));
        assert_eq!(verdict, crate::fixtures::TO_A);
        assert_eq!(ends(&out).1, (pod(2, v6), 8081));
        // A connection that nobody remembers goes on; a reset or an answer begins none.
        assert_eq!(
            comes(pair, &sent_on(&dialled.tcp(ACK, b"x"), pod(3, v6), 8080)).0,
            TO_B
        );
        let other = Ends {
            src_port: 7,
            ..dialled
        };
        let reset = comes(pair, &sent_on(&other.tcp(RST, b""), pod(3, v6), 8080));
        assert_eq!(reset.0, Err(Reason::InvalidState));
        // This node led the connection elsewhere before; now it is to end here.
        let moved = Ends {
            src_port: 8,
            ..dialled
        };
        assert_eq!(arrive(pair, &moved.udp(b"x")).0, into_the_tunnel());
        let (verdict, out) = comes(pair, &sent_on(&moved.udp(b"x"), pod(3, v6), 8080));
        assert_eq!((verdict, ends(&out).1), (TO_B, (pod(3, v6), 8080)));
        // And who asks this node itself stays where another one has led it.
        pair.forget();
        assert_eq!(comes(pair, &sent_on(&datagram, pod(3, v6), 8080)).0, TO_B);
        let frame = world::frame(datagram.clone(), ifindex::NETDEV);
        assert_eq!(pair.host(Hook::FromNetdev, &frame).0, TO_B);
    });
}

#[test]
fn who_is_no_node_names_nobody() {
    families(|pair, v6| {
        let dialled = outside(v6, port::NODE_DIRECT);
        let bytes = dialled.udp(b"x");
        let good = sent_on(&bytes, pod(3, v6), 8080);
        let (stranger, vni) = (Addr::from(ip("192.0.2.77")), good.tunnel.unwrap().1);
        let of_a_pod = Addr::from(ip("10.3.0.9"));
        let with = |tunnel| Frame {
            tunnel,
            ..good.clone()
        };
        let from = |src| sent_on(&Ends { src, ..dialled }.udp(b"x"), pod(3, v6), 8080);
        for (frame, reason) in [
            (with(Some((stranger, vni))), Reason::TunnelSource),
            (with(Some((of_a_pod, vni))), Reason::TunnelSource),
            (with(Some((stranger, vni + 1))), Reason::TunnelKey),
            (with(None), Reason::TunnelKey),
            // The nodes, their pods and this node's do not come from outside.
            (from(remote(v6)), Reason::TunnelSource),
            (from(node(v6)), Reason::TunnelSource),
            (
                from(ip(if v6 { "2001:db8::33" } else { "192.0.2.33" })),
                Reason::TunnelSource,
            ),
            (from(pod(99, v6)), Reason::TunnelSource),
            (from(pod(2, v6)), Reason::Martian),
            // Nobody's, another node's, the node itself.
            (sent_on(&bytes, pod(99, v6), 8080), Reason::NoEndpoint),
            (sent_on(&bytes, remote(v6), 8080), Reason::NoEndpoint),
            (sent_on(&bytes, node(v6), 22), Reason::NoEndpoint),
            // Without the first byte of either address it is a tunnelled packet like others.
            (tunnelled(bytes.clone()), Reason::TunnelSource),
        ] {
            let (verdict, after) = pair.host(Hook::FromNetdev, &frame);
            assert_eq!(verdict, Err(reason));
            assert_eq!(after.bytes, frame.bytes);
        }
        for half in [0, 6] {
            let mut frame = good.clone();
            frame.bytes[half] = 2;
            assert_eq!(pair.host(Hook::FromNetdev, &frame).0, Err(Reason::TunnelSource));
        }
        // By a device of the node, link addresses say nothing; by a pod's own, they are its own.
        let (verdict, out) = arrive(pair, &good.bytes);
        assert_eq!((verdict, ends(&out)), (into_the_tunnel(), ends(&bytes)));
        let forged = from_a(client(v6)).udp(b"x");
        let forged = [&named(pod(3, v6), 8080), &forged[12..]].concat();
        let (verdict, _) = pair.run(Hook::FromPod, &forged, ifindex::POD_A);
        assert_eq!(verdict, Err(Reason::SourceMac));
    });
}

#[test]
fn who_cannot_be_answered_past_this_node_is_answered_by_it() {
    families(|pair, v6| {
        // Another node: the tunnel takes nobody else's address.
        let ends_of = |port| Ends {
            src: ip(if v6 { "2001:db8::33" } else { "192.0.2.33" }),
            ..outside(v6, port)
        };
        let (verdict, out) = arrive(pair, &ends_of(port::NODE_DIRECT).tcp(SYN, b""));
        assert_eq!(verdict, into_the_tunnel());
        assert_eq!(ends(&out), ((node(v6), 40000), (remote(v6), 8080)));
        pair.forget();
        let (verdict, out) = arrive(pair, &ends_of(port::NODE_DIRECT_HERE).tcp(SYN, b""));
        assert_eq!((verdict, ends(&out).0), (TO_B, (node(v6), 40000)));
        pair.forget();
        // A client of a pod of this node is answered by this node, and keeps its address.
        let (verdict, out) = arrive(pair, &outside(v6, port::NODE_DIRECT_HERE).tcp(SYN, b""));
        assert_eq!((verdict, ends(&out).0), (TO_B, (client(v6), 50123)));
        let (verdict, out) = pair.run(Hook::FromPod, &from_pod_b(&out).tcp(SYN_ACK, b""), ifindex::POD_B);
        assert_eq!(verdict, gateway(v6));
        assert_eq!(ends(&out).0, (node(v6), port::NODE_DIRECT_HERE));
    });
}

#[test]
fn errors_about_answers_follow_the_connection_to_its_pod() {
    families(|pair, v6| {
        let (kind, code) = if v6 { (2, 0) } else { (3, 4) };
        let dialled = outside(v6, port::NODE_DIRECT);
        let sent = dialled.udp(b"hello there");
        assert_eq!(arrive(pair, &sent).0, into_the_tunnel());
        // A router before the client is asked to carry what the pod has answered in this node's name.
        let router = Ends {
            src: ip(if v6 { "2620:fe::1" } else { "9.9.9.1" }),
            ..outside(v6, 0)
        };
        let answer = dialled.reversed().udp(b"and hello to you");
        let error = router.icmp_error(kind, code, &answer);
        let (verdict, out) = arrive(pair, &error);
        assert_eq!(verdict, into_the_tunnel());
        assert_eq!(out[..12], named(remote(v6), 8080));
        assert!(one_hop(&error, &out, v6));
        // On the pod's node.
        pair.forget();
        assert_eq!(
            comes(pair, &sent_on(&error, pod(3, v6), 8080)).0,
            Err(Reason::RelatedUnknown)
        );
        let (_, seen) = comes(pair, &sent_on(&sent, pod(3, v6), 8080));
        let elsewhere = comes(pair, &sent_on(&error, pod(2, v6), 8080));
        assert_eq!(elsewhere.0, Err(Reason::RelatedUnknown));
        let (verdict, out) = comes(pair, &sent_on(&error, pod(3, v6), 8080));
        assert_eq!(verdict, TO_B);
        assert!(frames::checksums_hold(&out));
        assert_eq!((ends(&out).0.0, ends(&out).1.0), (router.src, pod(3, v6)));
        let inner = if v6 { 14 + 40 + 8 } else { 14 + 20 + 8 };
        let shown = ends(&[&sent[..14], &out[inner..]].concat());
        let own = answer_to(&seen, mac(ifindex::POD_B), world::NODE_MAC);
        assert_eq!(shown, ((own.src, own.src_port), (own.dst, own.dst_port)));
    });
}

#[test]
fn a_connection_that_is_heard_on_one_side_only_lives_by_that_side() {
    families(|pair, v6| {
        let dialled = outside(v6, port::NODE_DIRECT);
        let state = |pair: &mut Pair, table: usize| -> Vec<u8> {
            let flows = pair.memory.flows[table].entries();
            let direct = flows
                .iter()
                .filter(|(_, flow)| flow.flags.get() & flow_flags::DSR != 0);
            direct.map(|(_, flow)| flow.state.get()).collect()
        };
        let send = |pair: &mut Pair, bytes: Vec<u8>| {
            assert_eq!(arrive(pair, &bytes).0, into_the_tunnel());
        };
        // A flood does not come as far as the table of those that were answered.
        send(pair, dialled.tcp(SYN, b""));
        send(pair, dialled.tcp(SYN, b""));
        assert_eq!((state(pair, 0), state(pair, 1)), (vec![], vec![tcp_state::NEW]));
        send(pair, dialled.tcp(ACK, b""));
        assert_eq!(
            (state(pair, 0), state(pair, 1)),
            (vec![tcp_state::ESTABLISHED], vec![])
        );
        send(pair, dialled.tcp(FIN_ACK, b""));
        send(pair, dialled.tcp(ACK, b""));
        assert_eq!(state(pair, 0), [tcp_state::FIN_WAIT]);
        send(pair, dialled.tcp(RST, b""));
        assert_eq!(state(pair, 0), [tcp_state::CLOSED]);
        pair.forget();
        send(pair, dialled.udp(b"x"));
        assert_eq!((state(pair, 0), state(pair, 1)), (vec![], vec![tcp_state::NEW]));
        send(pair, dialled.udp(b"x"));
        assert_eq!(
            (state(pair, 0), state(pair, 1)),
            (vec![tcp_state::ESTABLISHED], vec![])
        );
    });
}

#[test]
fn a_backend_that_serves_no_longer_keeps_streams_and_gets_no_new_ones() {
    families(|pair, v6| {
        let offset = if v6 { backend::V6 } else { 0 };
        let id = service_id(port::NODE_DIRECT, v6, 1);
        let dialled = outside(v6, port::NODE_DIRECT);
        let (stream, datagram) = (dialled.tcp(ACK, b"x"), dialled.udp(b"x"));
        for bytes in [dialled.tcp(SYN, b""), stream.clone(), datagram.clone()] {
            assert_eq!(arrive(pair, &bytes).0, into_the_tunnel());
        }
        pair.put_slot(id, 0, backend::POD_B + offset);
        assert_eq!(
            arrive(pair, &dialled.tcp(SYN, b"")).0,
            into_the_tunnel(),
            "said twice"
        );
        pair.put_backend(backend::TUNNELLED + offset, None);
        assert_eq!(arrive(pair, &stream).0, into_the_tunnel());
        assert_eq!(arrive(pair, &datagram).0, TO_B);
        // Whether the stream has ended on its other side is not known here.
        assert_eq!(arrive(pair, &dialled.tcp(SYN, b"")).0, TO_B);
        pair.put_backend(backend::TUNNELLED + offset, Some((remote(v6), 8080)));
        pair.put_slot(id, 0, backend::TUNNELLED + offset);
    });
}

#[test]
fn a_stream_comes_in_its_middle_where_every_node_leads_it_to_the_same_backend() {
    families(|pair, v6| {
        for (dialled, leads) in [
            (outside(v6, port::NODE_DIRECT_ANY), true),
            (outside(v6, port::NODE_DIRECT), false),
            (outside(v6, port::NODE_TUNNELLED), false),
        ] {
            for (number, flags) in (0..).zip([ACK, FIN_ACK, RST]) {
                let ends = Ends {
                    src_port: 50200 + number,
                    ..dialled
                };
                let bytes = ends.tcp(flags, b"");
                let (verdict, out) = arrive(pair, &bytes);
                let expected = if leads {
                    into_the_tunnel()
                } else {
                    Ok(Verdict::Pass)
                };
                assert_eq!(verdict, expected);
                assert_eq!(out == bytes, !leads);
            }
        }
    });
}

#[test]
fn hops_count_on_both_nodes() {
    families(|pair, v6| {
        let last = Ends {
            ttl: 1,
            ..outside(v6, port::NODE_DIRECT)
        };
        let bytes = last.udp(b"x");
        assert_eq!(arrive(pair, &bytes).0, Err(Reason::TtlExceeded));
        assert_eq!(pair.work.answered, 1, "and its sender is told");
        let frame = sent_on(&bytes, pod(3, v6), 8080);
        assert_eq!(comes(pair, &frame).0, Err(Reason::TtlExceeded));
        assert_eq!(pair.work.answered, 0);
    });
}
