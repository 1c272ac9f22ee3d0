//! Pods that are gone, and who still talks to them.

use cni_ebpf::abi::{Addr, Endpoint, Reason};
use cni_ebpf::datapath::{Tables, Verdict};
use cni_tests::frames::{self, Ends};
use cni_tests::world::{Hook, ifindex, pod};

use crate::Pair;
use crate::fixtures::{ACK, RST, SYN, SYN_ACK, TO_A, TO_B, families, far, from_a, from_b, outside};

/// The pod is gone.
pub(crate) fn go(pair: &mut Pair, number: u8, v6: bool) -> Endpoint {
    let endpoint = pair.memory.endpoint(&Addr::from(pod(number, v6)));
    let endpoint = endpoint.unwrap().clone();
    pair.kernel.remove_endpoint(endpoint.id).unwrap();
    pair.memory
        .endpoints
        .put(Endpoint::slot(endpoint.id), Endpoint::default());
    endpoint
}

/// The pod is there again, or another in its place.
pub(crate) fn come(pair: &mut Pair, number: u8, v6: bool, endpoint: Endpoint) {
    let addr = Addr::from(pod(number, v6));
    pair.kernel.endpoint(addr, &endpoint).unwrap();
    pair.memory.put_endpoint(addr, endpoint);
}

#[test]
fn rel_38_who_talks_to_a_pod_that_is_gone_is_told_at_once() {
    families(|pair, v6| {
        let l4 = if v6 { 54 } else { 34 };
        let near = from_a(pod(3, v6));
        let far = Ends {
            dst: pod(3, v6),
            ..outside(from_a(far(v6)))
        };
        for flags in [SYN, ACK] {
            assert_eq!(
                pair.run(Hook::FromPod, &near.tcp(flags, b""), ifindex::POD_A).0,
                TO_B
            );
            let back = from_b(near).tcp(SYN_ACK, b"");
            assert_eq!(pair.run(Hook::FromPod, &back, ifindex::POD_B).0, TO_A);
        }
        let pod_b = go(pair, 3, v6);
        let (by_pod, by_wire) = (
            (Hook::FromPod, ifindex::POD_A),
            (Hook::FromNetdev, ifindex::NETDEV),
        );
        // The connection that was there and a new one, a datagram, and what a peer outside still has to say.
        for (sent, ends, (hook, device), says) in [
            (near.tcp(ACK, b"data"), near, by_pod, [0x50, RST]),
            (near.tcp(SYN, b""), near, by_pod, [0x50, RST | ACK]),
            (near.udp(b"x"), near, by_pod, if v6 { [1, 4] } else { [3, 3] }),
            (far.tcp(ACK, b"data"), far, by_wire, [0x50, RST]),
        ] {
            let (verdict, out) = pair.run(hook, &sent, device);
            assert_eq!((verdict, pair.work.answered), (Err(Reason::NoEndpoint), 1));
            assert_eq!(out[..12], [ends.src_mac, ends.dst_mac].concat());
            assert!(frames::checksums_hold(&out), "{}", crate::hex(&out));
            let at = if says[0] == 0x50 { l4 + 12 } else { l4 };
            assert_eq!(out[at..at + 2], says);
        }
        // Nobody answers a reset; to who begins a connection from outside the stack says that there is nobody.
        for (sent, (hook, device), expected) in [
            (near.tcp(RST, b""), by_pod, Err(Reason::NoEndpoint)),
            (far.tcp(RST, b""), by_wire, Err(Reason::NoEndpoint)),
            (far.tcp(SYN, b""), by_wire, Ok(Verdict::Pass)),
        ] {
            assert_eq!(pair.run(hook, &sent, device), (expected, sent));
            assert_eq!(pair.work.answered, 0);
        }
        come(pair, 3, v6, pod_b);
    });
}
