//! Fragments go where their first one went, and nowhere before it.

use cni_ebpf::abi::{Addr, Config, Reason, direction};
use cni_ebpf::datapath::{Verdict, Work};
use cni_tests::frames::{self, Ends};
use cni_tests::memory::{Memory, Room};
use cni_tests::world::{self, Hook, ifindex, ip, pod};

use crate::fixtures::{SYN, TO_B, drop_of, families, from_a, outside};

#[test]
fn rel_45_fragments_follow_their_first() {
    families(|pair, v6| {
        let whole = from_a(pod(3, v6)).udp(&[7; 100]);
        let [first, second] = frames::fragments(&whole, 48, 77);
        let early = pair.run(Hook::FromPod, &second, ifindex::POD_A).0;
        assert_eq!(early, Err(Reason::FragmentOrphan));
        assert_eq!(pair.run(Hook::FromPod, &first, ifindex::POD_A).0, TO_B);
        assert_eq!(pair.run(Hook::FromPod, &second, ifindex::POD_A).0, TO_B);
        let [_, other] = frames::fragments(&whole, 48, 78);
        assert_eq!(drop_of(pair, &other), Reason::FragmentOrphan);
        // RFC 3128: the second fragment may not rewrite the first one's TCP flags.
        let [_, tiny] = frames::fragments(&from_a(pod(3, v6)).tcp(SYN, &[0; 40]), 8, 79);
        assert_eq!(drop_of(pair, &tiny), Reason::Malformed);
        let [short, _] = frames::fragments(&from_a(pod(3, v6)).tcp(SYN, &[0; 40]), 16, 80);
        assert_eq!(drop_of(pair, &short), Reason::Truncated);
    });
}

fn orphans(memory: &Memory) -> [u64; 2] {
    let counts = memory.counts.borrow();
    [direction::INGRESS, direction::EGRESS].map(|direction| {
        let count = counts.get(&(Reason::FragmentOrphan as u8, direction));
        count.copied().unwrap_or(0)
    })
}

/// By a device it is the stack's, which may have more to say of it; before the pod it is judged.
#[test]
fn rel_45_from_the_network_no_later_fragment_reaches_a_pod_before_its_first() {
    families(|pair, v6| {
        let far = Ends {
            src: ip(if v6 { "2620:fe::9" } else { "9.9.9.9" }),
            dst: pod(3, v6),
            ..outside(from_a(pod(3, v6)))
        };
        let [first, later] = frames::fragments(&far.udp(&[7; 100]), 48, 77);
        let before = orphans(&pair.memory);
        let (verdict, out) = pair.run(Hook::FromNetdev, &later, ifindex::NETDEV);
        // Of IPv6 the stack is told that it came from outside.
        let passes = if v6 { Verdict::Arrived } else { Verdict::Pass };
        assert_eq!((verdict, &out), (Ok(passes), &later));
        let mut forwarded = world::frame(later.clone(), ifindex::POD_B);
        forwarded.ingress_ifindex = ifindex::NETDEV;
        assert_eq!(pair.host(Hook::ToPod, &forwarded).0, Err(Reason::FragmentOrphan));
        assert_eq!(orphans(&pair.memory), [before[0] + 1, before[1]]);
        for bytes in [first, later] {
            assert_eq!(pair.run(Hook::FromNetdev, &bytes, ifindex::NETDEV).0, TO_B);
        }
    });
}

/// Nobody but a pod is meant by what comes out of the tunnel: it is judged at once.
#[test]
fn rel_45_out_of_the_tunnel_no_later_fragment_passes_before_its_first() {
    const TUNNEL: u32 = 99;
    for v6 in [false, true] {
        let mut memory = world::memory();
        (memory.config.tunnel, memory.config.tunnel_ifindex) = (1, TUNNEL);
        let remote = Ends {
            src: ip(if v6 { "fd00:3::9" } else { "10.3.0.9" }),
            dst: pod(3, v6),
            ..outside(from_a(pod(3, v6)))
        };
        let mut arrive = |bytes: &[u8]| {
            let mut frame = world::frame(bytes.to_vec(), TUNNEL);
            frame.tunnel = Some((Addr::from(ip("192.0.2.3")), Config::DEFAULT.vni));
            let outcome = world::run(&memory, Hook::FromNetdev, &mut frame, &mut Work::default());
            memory.settle();
            outcome
        };
        let [first, later] = frames::fragments(&remote.udp(&[7; 100]), 48, 77);
        assert_eq!(arrive(&later), Err(Reason::FragmentOrphan));
        assert_eq!(arrive(&first), TO_B);
        assert_eq!(arrive(&later), TO_B);
        assert_eq!(orphans(&memory), [1, 0]);
    }
}

#[test]
fn rel_45_fragments_that_overlap_are_judged_by_their_own_ports_and_never_by_others() {
    families(|pair, v6| {
        let to = |dst_port| Ends {
            dst_port,
            ..from_a(pod(5, v6))
        };
        let allowed = Ok(Verdict::Peer {
            ifindex: ifindex::POD_RULES,
        });
        let tcp = |dst_port| to(dst_port).tcp(SYN, &[7; 80]);
        let [first, later] = frames::fragments(&tcp(80), 40, 5);
        let [other_first, _] = frames::fragments(&tcp(81), 40, 5);
        assert_eq!(pair.run(Hook::FromPod, &first, ifindex::POD_A).0, allowed);
        // The beginning once more, with a port that nobody may reach: refused, so the receiver never has it.
        assert_eq!(drop_of(pair, &other_first), Reason::PolicyIngress);
        // A later one that overlaps the first belongs to the datagram that was judged.
        let [_, overlapping] = frames::fragments(&tcp(80), 32, 5);
        for later in [later, overlapping] {
            let verdict = pair.run(Hook::FromPod, &later, ifindex::POD_A).0;
            // The first that was refused is the one that is remembered.
            assert_eq!(verdict, Err(Reason::PolicyIngress));
        }
        // And the other way round: what a refused beginning left does not keep one that is allowed from going on.
        let [refused, _] = frames::fragments(&tcp(81), 40, 6);
        let [first, later] = frames::fragments(&tcp(80), 40, 6);
        assert_eq!(drop_of(pair, &refused), Reason::PolicyIngress);
        for bytes in [first, later] {
            assert_eq!(pair.run(Hook::FromPod, &bytes, ifindex::POD_A).0, allowed);
        }
    });
}

#[test]
fn rel_45_where_a_fragment_cannot_be_remembered_it_does_not_pass() {
    families(|pair, v6| {
        let [first, later] = frames::fragments(&from_a(pod(3, v6)).udp(&[7; 100]), 48, 77);
        pair.memory.fragments.room = Room::None;
        for (bytes, reason) in [
            (first, Reason::FragmentTableFull),
            (later, Reason::FragmentOrphan),
        ] {
            let frame = world::frame(bytes, ifindex::POD_A);
            assert_eq!(pair.host(Hook::FromPod, &frame).0, Err(reason));
        }
        pair.memory.fragments.room = Room::Endless;
    });
}
