//! Bandwidth limits: what is above them is dropped, or waits where it can.

use cni_ebpf::abi::Reason;
use cni_tests::frames::Ends;
use cni_tests::world::{self, Hook, ifindex, ip, pod};

use crate::fixtures::{TO_B, families, from_a, from_pod, gateway};

#[test]
fn a_bandwidth_limit_drops_what_is_above_it() {
    families(|pair, v6| {
        // Pod number 6 may send 1000 bytes at once and gets none back in the time of this test.
        let packet = from_pod(6, pod(3, v6)).udp(&[0; 400]);
        pair.refill(ifindex::POD_LIMIT, 1000);
        let mut send = || pair.run(Hook::FromPod, &packet, ifindex::POD_LIMIT).0;
        assert_eq!(send(), TO_B);
        assert_eq!(send(), TO_B);
        assert_eq!(send(), Err(Reason::RateLimit));
        let unlimited = from_a(pod(3, v6)).udp(&[0; 400]);
        assert_eq!(pair.run(Hook::FromPod, &unlimited, ifindex::POD_A).0, TO_B);
    });
}

#[test]
fn what_leaves_by_a_device_that_paces_waits_and_what_stays_on_the_node_does_not() {
    families(|pair, v6| {
        let near = from_pod(7, pod(3, v6));
        let far = Ends {
            dst: ip(if v6 { "2001:db8:ffff::9" } else { "198.51.100.9" }),
            ..near
        };
        let packet = far.udp(&[0; 400]);
        // No bytes left: the packet leaves when they are there, at a megabyte a second.
        let now = world::monotonic();
        pair.memory.clock.set(now);
        pair.memory
            .buckets
            .put(world::bucket_key(ifindex::POD_PACED), world::bucket_at(0, now));
        let frame = world::frame(packet.clone(), ifindex::POD_PACED);
        assert_eq!(pair.host(Hook::FromPod, &frame).0, gateway(v6));
        assert_eq!(pair.work.departure, now + 1000 * packet.len() as u64);
        pair.forget();
        // Whoever would wait for longer than two seconds does not.
        for (tokens, outcome) in [
            (0, gateway(v6)),
            (-500_000, gateway(v6)),
            (-10_000_000, Err(Reason::RateLimit)),
        ] {
            pair.refill(ifindex::POD_PACED, tokens);
            assert_eq!(
                pair.run(Hook::FromPod, &packet, ifindex::POD_PACED).0,
                outcome,
                "{tokens}"
            );
        }
        pair.forget();
        pair.refill(ifindex::POD_PACED, -10_000_000);
        for packet in [near.udp(&[0; 400]), packet] {
            let refused = pair.run(Hook::FromPod, &packet, ifindex::POD_PACED).0;
            assert_eq!(refused, Err(Reason::RateLimit));
        }
        assert_eq!(
            pair.kernel.flows("conntrack_new").unwrap(),
            0,
            "what is refused leaves no entry"
        );
        // A debt that could be waited for, if there were anything to wait in.
        pair.refill(ifindex::POD_PACED, -1_000_000);
        let refused = pair
            .run(Hook::FromPod, &near.udp(&[0; 400]), ifindex::POD_PACED)
            .0;
        assert_eq!(
            refused,
            Err(Reason::RateLimit),
            "nothing waits on the way into another pod"
        );
    });
}
