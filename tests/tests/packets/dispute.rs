//! The host's own connections and those that the node hides have one address: towards one place none may have another's port.

use std::ops::RangeInclusive;

use cni_ebpf::abi::{Config, Reason};
use cni_ebpf::datapath::{Verdict, conntrack::SECOND};
use cni_tests::frames::{self, Ends};
use cni_tests::memory::Frame;
use cni_tests::world::{self, Hook, ifindex, ip, mac, port};

use crate::external::{answer_to, arrive, client, from_pod_b, outside};
use crate::fixtures::{ACK, FIN_ACK, SYN, SYN_ACK, TO_B, gateway};
use crate::services::{ends, node};
use crate::{Pair, privileged, with_pair};

/// Of each two there is one for either.
const PORTS: [u16; 2] = [40_000, 40_001];

fn two_ports(test: impl Fn(&mut Pair, bool) + Send + 'static) {
    with_ports(PORTS[0]..=PORTS[1], test);
}

/// Both families, where no other ports can be given out.
pub(crate) fn with_ports(ports: RangeInclusive<u16>, test: impl Fn(&mut Pair, bool) + Send + 'static) {
    cni_tests::require!(privileged(), "running programs needs root");
    let config = Config {
        snat_first: (*ports.start()).into(),
        snat_last: (*ports.end()).into(),
        ..world::CONFIG
    };
    with_pair(config, move |pair| {
        // Both builds choose in the same order.
        pair.memory.secrets.port_seed.set(7);
        pair.kernel.share(&pair.memory.secrets).unwrap();
        for v6 in [false, true] {
            test(pair, v6);
            pair.forget();
        }
    });
}

/// The port beside this one.
fn other(port: u16) -> u16 {
    PORTS[usize::from(port == PORTS[0])]
}

/// A process of the host sends to the backend that a client is behind the node for.
fn of_host(v6: bool, hidden: &[u8], src_port: u16) -> Ends {
    let (_, (dst, dst_port)) = ends(hidden);
    Ends {
        src_mac: world::NODE_MAC,
        dst_mac: mac(ifindex::POD_B),
        src: node(v6),
        dst,
        src_port,
        dst_port,
        ttl: 64,
    }
}

/// Into the pod on this node, by the host's stack.
fn to_pod_b(pair: &mut Pair, bytes: Vec<u8>) -> (Result<Verdict, Reason>, Vec<u8>) {
    let mut frame: Frame = world::frame(bytes, ifindex::POD_B);
    frame.ingress_ifindex = 0;
    pair.run_frame(Hook::ToPod, &frame)
}

#[test]
fn svc_59_the_host_gives_way_to_who_hides_behind_its_port_before_a_pod_of_its_own() {
    two_ports(|pair, v6| {
        let dialled = outside(v6, port::NODE_CLUSTER);
        let (_, hidden) = arrive(pair, &dialled.udp(b"q"));
        let taken = ends(&hidden).0.1;
        let host = of_host(v6, &hidden, taken);
        for _ in 0..2 {
            let (verdict, out) = to_pod_b(pair, host.udp(b"host"));
            assert_eq!(verdict, Ok(Verdict::Pass));
            assert_eq!(ends(&out).0, (node(v6), other(taken)));
            assert!(frames::checksums_hold(&out));
            let (verdict, back) = pair.run(Hook::FromPod, &from_pod_b(&out).udp(b"a"), ifindex::POD_B);
            assert_eq!(verdict, Ok(Verdict::Pass), "it is the stack's");
            assert_eq!(ends(&back).1, (node(v6), taken));
            assert!(frames::checksums_hold(&back));
        }
        // The client is answered as before.
        let (verdict, back) = pair.run(Hook::FromPod, &from_pod_b(&hidden).udp(b"a"), ifindex::POD_B);
        assert_eq!(verdict, gateway(v6));
        assert_eq!(ends(&back), ((node(v6), port::NODE_CLUSTER), (client(v6), 50123)));
        // Where nobody is in the way the host's packets stay as they are.
        let alone = Ends {
            src_port: 50_000,
            ..host
        };
        let (_, out) = to_pod_b(pair, alone.udp(b"host"));
        assert_eq!(out, alone.udp(b"host"));
    });
}

#[test]
fn svc_59_the_host_gives_way_to_who_hides_behind_its_port_before_a_pod_elsewhere() {
    two_ports(|pair, v6| {
        let dialled = outside(v6, port::NODE_REMOTE);
        let (_, hidden) = arrive(pair, &dialled.udp(b"q"));
        let taken = ends(&hidden).0.1;
        let host = of_host(v6, &hidden, taken);
        let answer = |out: &[u8]| answer_to(out, [2, 9, 9, 9, 9, 9], mac(ifindex::NETDEV)).udp(b"a");
        for _ in 0..2 {
            let (verdict, out) = pair.run(Hook::ToNetdev, &host.udp(b"host"), ifindex::NETDEV);
            assert_eq!(verdict, Ok(Verdict::Pass));
            assert_eq!(ends(&out).0, (node(v6), other(taken)));
            assert!(frames::checksums_hold(&out));
            let (verdict, back) = arrive(pair, &answer(&out));
            assert_eq!(verdict, Ok(Verdict::Pass));
            assert_eq!(ends(&back).1, (node(v6), taken));
            assert!(frames::checksums_hold(&back));
        }
        let (_, back) = arrive(pair, &answer(&hidden));
        assert_eq!(ends(&back), ((node(v6), port::NODE_REMOTE), (client(v6), 50123)));
        let alone = Ends {
            src_port: 50_000,
            ..host
        };
        let (_, out) = pair.run(Hook::ToNetdev, &alone.udp(b"host"), ifindex::NETDEV);
        assert_eq!(out, alone.udp(b"host"));
    });
}

#[test]
fn svc_59_who_hides_is_given_no_port_that_the_host_has_used_towards_the_pod() {
    two_ports(|pair, v6| {
        let dialled = outside(v6, port::NODE_CLUSTER);
        let (_, hidden) = arrive(pair, &dialled.udp(b"q"));
        let favourite = ends(&hidden).0.1;
        pair.forget();
        // Its socket is closed: what is left is the connection. An answer may still come.
        let host = of_host(v6, &hidden, favourite);
        let (_, out) = to_pod_b(pair, host.udp(b"host"));
        let (verdict, _) = pair.run(Hook::FromPod, &from_pod_b(&out).udp(b"a"), ifindex::POD_B);
        assert_eq!(verdict, Ok(Verdict::Pass));
        let (verdict, hidden) = arrive(pair, &dialled.udp(b"q"));
        assert_eq!((verdict, ends(&hidden).0.1), (TO_B, other(favourite)));
        let (_, back) = pair.run(Hook::FromPod, &from_pod_b(&hidden).udp(b"a"), ifindex::POD_B);
        assert_eq!(ends(&back), ((node(v6), port::NODE_CLUSTER), (client(v6), 50123)));
    });
}

#[test]
fn svc_59_who_hides_is_given_no_port_by_which_a_pod_still_speaks_to_who_has_said_all() {
    two_ports(|pair, v6| {
        let dialled = outside(v6, port::NODE_CLUSTER);
        let (_, hidden) = arrive(pair, &dialled.tcp(SYN, b""));
        let favourite = ends(&hidden).0.1;
        pair.forget();
        // The stack's: of a socket of the host that is closed, or of somebody whom another proxy hides.
        let host = of_host(v6, &hidden, favourite);
        let exchange = |pair: &mut Pair, ours, theirs| {
            let (_, out) = to_pod_b(pair, host.tcp(ours, b""));
            let (verdict, _) = pair.run(Hook::FromPod, &from_pod_b(&out).tcp(theirs, b""), ifindex::POD_B);
            assert_eq!(verdict, Ok(Verdict::Pass));
        };
        exchange(pair, SYN, SYN_ACK);
        exchange(pair, ACK, ACK);
        exchange(pair, FIN_ACK, ACK);
        let (verdict, hidden) = arrive(pair, &dialled.tcp(SYN, b""));
        assert_eq!((verdict, ends(&hidden).0.1), (TO_B, other(favourite)));
        exchange(pair, ACK, FIN_ACK);
        // Both have ended it now.
        let next = Ends {
            dst_port: port::NODE_CLUSTER,
            src_port: dialled.src_port + 1,
            ..dialled
        };
        let (verdict, hidden) = arrive(pair, &next.tcp(SYN, b""));
        assert_eq!((verdict, ends(&hidden).0.1), (TO_B, favourite));
        let answer = from_pod_b(&hidden).tcp(SYN_ACK, b"");
        let (verdict, back) = pair.run(Hook::FromPod, &answer, ifindex::POD_B);
        assert_eq!(
            (verdict, ends(&back).1),
            (gateway(v6), (client(v6), next.src_port))
        );
    });
}

/// In memory alone, whose clock can be set.
#[test]
fn svc_59_a_stream_of_the_host_that_gave_way_may_be_silent_for_as_long_as_any_other() {
    two_ports(|pair, v6| {
        let (_, hidden) = arrive(pair, &outside(v6, port::NODE_REMOTE).tcp(SYN, b""));
        let host = of_host(v6, &hidden, ends(&hidden).0.1);
        let leaves = |pair: &mut Pair, flags| {
            let frame = world::frame(host.tcp(flags, b""), ifindex::NETDEV);
            let (verdict, out) = pair.host(Hook::ToNetdev, &frame);
            assert_eq!(verdict, Ok(Verdict::Pass));
            out.bytes
        };
        let out = leaves(pair, SYN);
        let answer = answer_to(&out, [2, 9, 9, 9, 9, 9], mac(ifindex::NETDEV));
        let answered = |pair: &mut Pair, flags| {
            let frame = world::frame(answer.tcp(flags, b""), ifindex::NETDEV);
            let (verdict, back) = pair.host(Hook::FromNetdev, &frame);
            assert_eq!(verdict, Ok(Verdict::Pass));
            ends(&back.bytes).1
        };
        assert_eq!(answered(pair, SYN_ACK), (node(v6), host.src_port));
        leaves(pair, ACK);
        // Both end it, and it begins again.
        leaves(pair, FIN_ACK);
        answered(pair, FIN_ACK);
        leaves(pair, SYN);
        assert_eq!(answered(pair, SYN_ACK), (node(v6), host.src_port));
        leaves(pair, ACK);
        pair.memory.clock.set(pair.memory.clock.get() + 3600 * SECOND);
        assert_eq!(answered(pair, ACK), (node(v6), host.src_port));
        // What both have ended does not stand in anybody's way for long.
        leaves(pair, FIN_ACK);
        answered(pair, FIN_ACK);
        leaves(pair, ACK);
        pair.memory.clock.set(pair.memory.clock.get() + 31 * SECOND);
        assert_ne!(answered(pair, ACK), (node(v6), host.src_port));
    });
}

#[test]
fn svc_56_sctp_keeps_its_port_where_it_can_and_is_given_another_one_where_it_cannot() {
    two_ports(|pair, v6| {
        let own = |src| Ends {
            src,
            src_port: PORTS[0],
            ..outside(v6, port::NODE_CLUSTER)
        };
        let second = ip(if v6 { "2620:fe::10" } else { "9.9.9.10" });
        for (src, given) in [(client(v6), PORTS[0]), (second, PORTS[1])] {
            let sent = crate::services::sealed(own(src).sctp(b"chunk"), v6);
            let (verdict, out) = arrive(pair, &sent);
            assert_eq!((verdict, ends(&out).0), (TO_B, (node(v6), given)));
            assert_eq!(
                out,
                crate::services::sealed(out.clone(), v6),
                "its checksum holds"
            );
            let answer = crate::services::sealed(from_pod_b(&out).sctp(b"answer"), v6);
            let (verdict, back) = pair.run(Hook::FromPod, &answer, ifindex::POD_B);
            assert_eq!(verdict, gateway(v6));
            assert_eq!(ends(&back), ((node(v6), port::NODE_CLUSTER), (src, PORTS[0])));
            assert_eq!(back, crate::services::sealed(back.clone(), v6));
        }
    });
}
