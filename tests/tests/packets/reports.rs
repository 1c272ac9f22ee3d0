//! What is told and counted about a packet.

use cni_ebpf::abi::{Config, Reason, direction, event_kind};
use cni_ebpf::datapath::Verdict;
use cni_tests::frames::Ends;
use cni_tests::world::{self, Hook, ifindex, ip, pod};

use crate::fixtures::{SYN, TO_B, families, from_a, gateway};

#[test]
fn a_packet_that_was_judged_is_told_once() {
    families(|pair, v6| {
        let far = from_a(ip(if v6 { "2620:fe::9" } else { "9.9.9.9" }));
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
