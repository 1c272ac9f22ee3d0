//! Connections that begin, end and begin again, and the translated ports that go with them.

use cni_ebpf::abi::{Addr, Alias, Config, Flow, FlowKey, Port, Racy, Reason, Tuple, flow_flags, tcp_state};
use cni_ebpf::datapath::{Verdict, conntrack};
use cni_tests::frames::{self, Ends};
use cni_tests::world::{self, Hook, ifindex, ip, pod};

use crate::Pair;
use crate::fixtures::{
    ACK, FIN_ACK, RST, SYN, SYN_ACK, TO_A, TO_B, WHOLE_LIFE, drop_of, families, far, from_a, from_b, gateway,
    outside,
};

fn node(v6: bool) -> std::net::IpAddr {
    ip(if v6 { "2001:db8::1" } else { "192.0.2.1" })
}

/// The far side of a pod's masqueraded connection: the world has one port.
fn answer(ends: Ends, v6: bool) -> Ends {
    Ends {
        src: node(v6),
        src_port: 40000,
        ..ends
    }
    .reversed()
}

/// Opens and ends a connection by its packets, each (flags, from the originator).
fn whole_life(pair: &mut Pair, mut send: impl FnMut(&mut Pair, u8, bool)) {
    for (flags, forward) in WHOLE_LIFE {
        send(pair, flags, forward);
    }
}

#[test]
fn a_masqueraded_connection_begins_again_from_the_same_port() {
    families(|pair, v6| {
        let ends = from_a(far(v6));
        let send = |pair: &mut Pair, flags, forward| {
            let (hook, bytes, device, expected) = if forward {
                (Hook::FromPod, ends.tcp(flags, b""), ifindex::POD_A, gateway(v6))
            } else {
                (
                    Hook::FromNetdev,
                    answer(ends, v6).tcp(flags, b""),
                    ifindex::NETDEV,
                    TO_A,
                )
            };
            assert_eq!(pair.run(hook, &bytes, device).0, expected, "flags {flags}");
        };
        whole_life(pair, send);
        whole_life(pair, send);
    });
}

#[test]
fn a_connection_to_a_service_begins_again_from_the_same_port() {
    families(|pair, v6| {
        let ends = Ends {
            dst_port: 80,
            ..from_a(ip(if v6 { "fd00:96::1" } else { "10.96.0.1" }))
        };
        let direct = Ends {
            dst: pod(3, v6),
            dst_port: 8080,
            ..ends
        };
        let send = |pair: &mut Pair, flags, forward| {
            let (bytes, device, expected) = if forward {
                (ends.tcp(flags, b""), ifindex::POD_A, TO_B)
            } else {
                (from_b(direct).tcp(flags, b""), ifindex::POD_B, TO_A)
            };
            assert_eq!(
                pair.run(Hook::FromPod, &bytes, device).0,
                expected,
                "flags {flags}"
            );
        };
        whole_life(pair, send);
        whole_life(pair, send);
    });
}

#[test]
fn the_hosts_own_connection_keeps_its_port_when_it_begins_again() {
    families(|pair, v6| {
        let ends = Ends {
            src: node(v6),
            src_port: 40000,
            ..from_a(far(v6))
        };
        let send = |pair: &mut Pair, flags, forward| {
            let (hook, bytes) = if forward {
                (Hook::ToNetdev, ends.tcp(flags, b""))
            } else {
                (Hook::FromNetdev, outside(ends).tcp(flags, b""))
            };
            let mut frame = world::frame(bytes.clone(), ifindex::NETDEV);
            frame.ingress_ifindex = 0;
            assert_eq!(
                pair.run_frame(hook, &frame),
                (Ok(Verdict::Pass), bytes),
                "flags {flags}"
            );
        };
        whole_life(pair, send);
        whole_life(pair, send);
    });
}

#[test]
fn the_end_of_a_forgotten_connection_does_not_spoil_the_next() {
    families(|pair, v6| {
        let ends = from_a(pod(3, v6));
        for (bytes, from, expected) in [
            (ends.tcp(FIN_ACK, b""), ifindex::POD_A, TO_B),
            (ends.tcp(SYN, b""), ifindex::POD_A, TO_B),
            (from_b(ends).tcp(SYN_ACK, b""), ifindex::POD_B, TO_A),
            (ends.tcp(ACK, b""), ifindex::POD_A, TO_B),
        ] {
            assert_eq!(pair.run(Hook::FromPod, &bytes, from).0, expected);
        }
        let flows = pair.memory.flows[0].entries();
        assert_eq!(flows.len(), 1, "an established connection");
        assert_eq!(flows[0].1.state.get(), tcp_state::ESTABLISHED);
        assert_eq!(pair.kernel.flows("conntrack").unwrap(), 1);
    });
}

#[test]
fn a_forged_reset_ends_nothing_for_long() {
    families(|pair, v6| {
        let ends = from_a(pod(3, v6));
        let state = |pair: &Pair| pair.memory.flows[0].entries()[0].1.state.get();
        for (bytes, from) in [
            (ends.tcp(SYN, b""), ifindex::POD_A),
            (from_b(ends).tcp(SYN_ACK, b""), ifindex::POD_B),
            (ends.tcp(ACK, b""), ifindex::POD_A),
            (from_b(ends).tcp(RST, b""), ifindex::POD_B),
        ] {
            assert!(pair.run(Hook::FromPod, &bytes, from).0.is_ok());
        }
        assert_eq!(state(pair), tcp_state::CLOSED);
        // What the one it was aimed at still sends proves nothing; who goes on after a reset of its own did not send it.
        assert_eq!(
            pair.run(Hook::FromPod, &ends.tcp(ACK, b""), ifindex::POD_A).0,
            TO_B
        );
        assert_eq!(state(pair), tcp_state::CLOSED);
        let more = from_b(ends).tcp(ACK, b"more");
        assert_eq!(pair.run(Hook::FromPod, &more, ifindex::POD_B).0, TO_A);
        assert_eq!(state(pair), tcp_state::ESTABLISHED);
        // A genuine one still ends it.
        assert!(
            pair.run(Hook::FromPod, &from_b(ends).tcp(RST, b""), ifindex::POD_B)
                .0
                .is_ok()
        );
        assert_eq!(state(pair), tcp_state::CLOSED);
    });
}

fn tuple(ends: Ends) -> Tuple {
    Tuple {
        src: Addr::from(ends.src),
        dst: Addr::from(ends.dst),
        src_port: Port::new(ends.src_port),
        dst_port: Port::new(ends.dst_port),
        proto: 17,
        ..Tuple::default()
    }
}

/// A masqueraded flow of `ends` on the world's one port: key, entry, and the alias that leads to it.
fn masqueraded(ends: Ends, v6: bool, now: u64) -> (FlowKey, Flow, Tuple, Alias) {
    let mut key = FlowKey::default();
    let from_a = conntrack::key_of(&tuple(ends), &mut key);
    let flow = Flow {
        created: now,
        snat: Addr::from(node(v6)),
        snat_port: Port::new(40000),
        ..Flow::default()
    };
    flow.seen.set(now);
    flow.state.set(tcp_state::ESTABLISHED);
    let origin = if from_a { flow_flags::ORIGIN_A } else { 0 };
    flow.flags.set(flow_flags::SNAT | flow_flags::REPLIED | origin);
    let alias = Alias {
        flow: key,
        created: (now / conntrack::SECOND) as u32,
        seen: Racy::new((now / conntrack::SECOND) as u32),
        reply: 1,
        endpoint: 0,
    };
    (key, flow, tuple(answer(ends, v6)), alias)
}

#[test]
fn a_port_that_was_just_taken_is_not_taken_again() {
    families(|pair, v6| {
        // Another CPU has entered its alias and is about to enter its flow.
        let now = world::monotonic();
        let (_, _, wire, alias) = masqueraded(
            Ends {
                src_port: 1,
                ..from_a(far(v6))
            },
            v6,
            now,
        );
        pair.memory.clock.set(now);
        pair.memory.aliases[1].put(wire, alias);
        let frame = world::frame(from_a(far(v6)).udp(b"x"), ifindex::POD_A);
        assert_eq!(pair.host(Hook::FromPod, &frame).0, Err(Reason::NatExhausted));
        // An alias whose flow is gone for longer is free.
        pair.memory.clock.set(now + 2_000_000_000);
        assert_eq!(pair.host(Hook::FromPod, &frame).0, gateway(v6));
    });
}

#[test]
fn one_tuple_leads_to_one_flow_in_both_tables() {
    families(|pair, v6| {
        let now = world::monotonic();
        pair.memory.clock.set(now + 2_000_000_000);
        // An established flow has lost its alias, and a new one has taken the port meanwhile.
        let old = from_a(far(v6));
        let (old_key, old_flow, ..) = masqueraded(old, v6, now);
        pair.memory.flows[0].put(old_key, old_flow);
        let (new_key, new_flow, wire, alias) = masqueraded(Ends { src_port: 1, ..old }, v6, now);
        pair.memory.flows[1].put(new_key, new_flow);
        pair.memory.aliases[1].put(wire, alias);
        let frame = world::frame(old.udp(b"x"), ifindex::POD_A);
        assert_eq!(
            pair.host(Hook::FromPod, &frame).0,
            Err(Reason::NatExhausted),
            "the old one is over, and there is no other port"
        );
        assert!(pair.memory.aliases[0].is_empty());
        assert_eq!(pair.memory.aliases[1].entries()[0].1.flow, new_key);
        assert!(pair.memory.flows[0].is_empty());
    });
}

/// How the connection is built again whose alias alone is there, by an answer with these flags: its state.
fn rebuilt(pair: &mut Pair, v6: bool, reserved: u16, flags: u8) -> (Result<Verdict, Reason>, Option<u8>) {
    let ends = from_a(far(v6));
    let (_, _, mut wire, mut alias) = masqueraded(ends, v6, pair.memory.clock.get());
    (wire.proto, alias.flow.proto, alias.flow.reserved) = (6, 6, reserved);
    pair.memory.aliases[0].put(wire, alias);
    let frame = world::frame(answer(ends, v6).tcp(flags, b""), ifindex::NETDEV);
    let (verdict, _) = pair.host(Hook::FromNetdev, &frame);
    let state = pair.memory.flows[1]
        .entries()
        .first()
        .map(|(_, flow)| flow.state.get());
    pair.memory.forget();
    (verdict, state)
}

#[test]
fn rel_39_a_connection_that_is_built_again_by_its_last_words_does_not_live_for_a_day() {
    families(|pair, v6| {
        for (flags, state) in [
            (ACK, tcp_state::ESTABLISHED),
            (FIN_ACK, tcp_state::FIN_WAIT),
            (RST, tcp_state::CLOSED),
        ] {
            assert_eq!(rebuilt(pair, v6, 0, flags), (TO_A, Some(state)));
        }
    });
}

/// It dialled a Service, and is answered in that one's name or not at all.
#[test]
fn a_connection_that_had_a_rival_is_not_built_again_without_what_it_dialled() {
    families(|pair, v6| assert_eq!(rebuilt(pair, v6, 1, ACK), (Ok(Verdict::Pass), None)));
}

#[test]
fn an_icmp_message_without_an_id_keeps_its_bytes_in_translation() {
    families(|pair, v6| {
        if v6 {
            return;
        }
        let mut message = vec![13, 0, 0, 0, 0x12, 0x34, 0, 1];
        message.resize(20, 0);
        let (verdict, out) = pair.run(Hook::FromPod, &from_a(far(false)).icmp(&message), ifindex::POD_A);
        assert_eq!(verdict, gateway(false));
        assert!(frames::checksums_hold(&out), "{}", crate::hex(&out));
        assert_eq!(out[38..40], [0x12, 0x34]);
        assert_eq!(
            drop_of(pair, &from_a(far(false)).echo(true, b"x")),
            Reason::InvalidState
        );
    });
}

#[test]
fn neighbour_discovery_of_the_host_is_no_connection() {
    families(|pair, v6| {
        if !v6 {
            return;
        }
        let ends = Ends {
            src: node(true),
            dst: ip("ff02::1:ff00:fe"),
            ttl: 255,
            ..from_a(far(true))
        };
        let bytes = ends.icmp(&[
            135, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8,
        ]);
        let mut frame = world::frame(bytes.clone(), ifindex::NETDEV);
        frame.ingress_ifindex = 0;
        // With the usual range of ports, in which its type would lie.
        let config = std::mem::replace(&mut pair.memory.config, Config::DEFAULT);
        let (verdict, out) = pair.host(Hook::ToNetdev, &frame);
        pair.memory.config = config;
        assert_eq!((verdict, out.bytes), (Ok(Verdict::Pass), bytes));
        assert!(pair.memory.flows[1].is_empty() && pair.memory.aliases[1].is_empty());
    });
}
