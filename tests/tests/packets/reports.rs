//! What is told and counted about a packet.

use cni_ebpf::abi::{Config, Reason, direction, event_kind};
use cni_ebpf::datapath::Verdict;
use cni_tests::frames::Ends;
use cni_tests::world::{self, Hook, ifindex, pod};

use crate::fixtures::{ACK, FIN_ACK, RST, SYN, SYN_ACK, TO_B, families, far, from_a, from_b, gateway};

#[test]
fn a_packet_that_was_judged_is_told_once() {
    families(|pair, v6| {
        let far = from_a(far(v6));
        let (verdict, out) = pair.run(Hook::FromPod, &far.tcp(SYN, b""), ifindex::POD_A);
        assert_eq!(verdict, gateway(v6));
        assert_eq!(pair.events.len(), 1);
        assert_eq!(pair.events[0].kind, event_kind::NEW);
        // It leaves by a device whose program knows the mark.
        let mut marked = world::frame(out, ifindex::NETDEV);
        marked.mark = Config::DEFAULT.mark;
        for hook in [Hook::ToNetdev, Hook::ToPod] {
            assert_eq!(pair.run_frame(hook, &marked).0, Ok(Verdict::Pass));
            assert_eq!(pair.events, [], "{}", hook.name());
        }
        let passed = |towards| pair.memory.counts.borrow().get(&(0, towards)).copied();
        assert_eq!(passed(direction::EGRESS), Some(2));
        assert_eq!(passed(direction::INGRESS), Some(1));
        // Nor is anything told about what is no packet of ours.
        assert_eq!(
            pair.run(Hook::FromPod, &from_a(pod(3, v6)).udp(b"x"), ifindex::POD_A)
                .0,
            TO_B
        );
        let mut arp = vec![0xff; 12];
        arp.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        arp.resize(60, 0);
        assert_eq!(
            pair.run(Hook::FromNetdev, &arp, ifindex::NETDEV).0,
            Ok(Verdict::Pass)
        );
        assert_eq!(pair.events, []);
    });
}

#[test]
fn a_connections_beginning_flags_and_end_are_told() {
    families(|pair, v6| {
        let ends = from_a(pod(3, v6));
        for (flags, forward, told) in [
            (SYN, true, Some(event_kind::NEW)),
            (SYN_ACK, false, Some(event_kind::FLAGS)),
            (ACK, true, Some(event_kind::FLAGS)),
            (ACK, true, None),
            (ACK, false, None),
            (FIN_ACK, true, Some(event_kind::FLAGS)),
            (FIN_ACK, false, Some(event_kind::CLOSE)),
            (ACK, true, None),
        ] {
            let (ends, device) = if forward {
                (ends, ifindex::POD_A)
            } else {
                (from_b(ends), ifindex::POD_B)
            };
            assert!(pair.run(Hook::FromPod, &ends.tcp(flags, b""), device).0.is_ok());
            let events = std::mem::take(&mut pair.events);
            let kinds: Vec<u8> = events.iter().map(|event| event.kind).collect();
            assert_eq!(kinds, Vec::from_iter(told), "flags {flags}, forward {forward}");
            if let Some(event) = events.first() {
                assert_eq!((event.reply == 0, event.tcp_flags), (forward, flags));
            }
        }
        // A reset ends it at once.
        let ends = Ends { src_port: 7, ..ends };
        assert_eq!(
            pair.run(Hook::FromPod, &ends.tcp(SYN, b""), ifindex::POD_A).0,
            TO_B
        );
        let reset = from_b(ends).tcp(RST, b"");
        assert!(pair.run(Hook::FromPod, &reset, ifindex::POD_B).0.is_ok());
        assert_eq!(pair.events[0].kind, event_kind::CLOSE);
    });
}

#[test]
fn a_receivers_refusal_is_told_as_the_receivers() {
    families(|pair, v6| {
        let ends = Ends {
            dst_port: 81,
            ..from_a(pod(5, v6))
        };
        let (verdict, _) = pair.run(Hook::FromPod, &ends.tcp(SYN, b""), ifindex::POD_A);
        assert_eq!(verdict, Err(Reason::PolicyIngress));
        let event = pair.events[0];
        assert_eq!(
            (event.endpoint, event.direction),
            (ifindex::POD_RULES, direction::INGRESS)
        );
        let count = pair
            .memory
            .counts
            .borrow()
            .get(&(Reason::PolicyIngress as u8, direction::INGRESS))
            .copied();
        assert_eq!(count, Some(1));
    });
}
