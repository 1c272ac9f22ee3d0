//! Packets made on purpose, each with the outcome it must have.

use std::net::IpAddr;

use cni_ebpf::abi::{Addr, Config, Reason};
use cni_ebpf::datapath::Verdict;
use cni_tests::frames::{self, Ends};
use cni_tests::world::{self, Hook, ifindex, ip, mac, pod};

use crate::{Pair, privileged, with_pair};

pub(crate) const SYN: u8 = 2;
pub(crate) const ACK: u8 = 16;
pub(crate) const SYN_ACK: u8 = SYN | ACK;
pub(crate) const FIN_ACK: u8 = 1 | ACK;
pub(crate) const RST: u8 = 4;

/// A connection from its first packet to its last: flags, and whether the originator sends it.
pub(crate) const WHOLE_LIFE: [(u8, bool); 5] = [
    (SYN, true),
    (SYN_ACK, false),
    (ACK, true),
    (FIN_ACK, true),
    (FIN_ACK, false),
];

pub(crate) fn from_a(dst: IpAddr) -> Ends {
    from_pod(2, dst)
}

/// From the pod of this number; A is number 2.
pub(crate) fn from_pod(number: u8, dst: IpAddr) -> Ends {
    Ends {
        src_mac: mac(ifindex::POD_A + u32::from(number) - 2),
        dst_mac: world::NODE_MAC,
        src: pod(number, dst.is_ipv6()),
        dst,
        src_port: 33000,
        dst_port: 8080,
        ttl: 64,
    }
}

/// An address outside of the cluster.
pub(crate) fn far(v6: bool) -> IpAddr {
    ip(if v6 { "2620:fe::9" } else { "9.9.9.9" })
}

pub(crate) fn from_b(ends: Ends) -> Ends {
    Ends {
        src_mac: mac(ifindex::POD_B),
        dst_mac: world::NODE_MAC,
        ..ends.reversed()
    }
}

pub(crate) fn outside(ends: Ends) -> Ends {
    Ends {
        src_mac: [2, 9, 9, 9, 9, 9],
        dst_mac: mac(ifindex::NETDEV),
        ..ends.reversed()
    }
}

pub(crate) const TO_B: Result<Verdict, Reason> = Ok(Verdict::Peer {
    ifindex: ifindex::POD_B,
});
pub(crate) const TO_A: Result<Verdict, Reason> = Ok(Verdict::Peer {
    ifindex: ifindex::POD_A,
});

pub(crate) fn gateway(v6: bool) -> Result<Verdict, Reason> {
    let gateway = Addr::from(ip(if v6 { "2001:db8::fe" } else { "192.0.2.254" }));
    Ok(Verdict::Neighbour {
        ifindex: ifindex::NETDEV,
        gateway,
    })
}

pub(crate) fn families(test: impl Fn(&mut Pair, bool) + Send + 'static) {
    cni_tests::require!(privileged(), "running programs needs root");
    with_pair(world::CONFIG, move |pair| {
        for v6 in [false, true] {
            test(pair, v6);
            pair.forget();
        }
    });
}

pub(crate) fn drop_of(pair: &mut Pair, bytes: &[u8]) -> Reason {
    pair.run(Hook::FromPod, bytes, ifindex::POD_A)
        .0
        .expect_err("must be dropped")
}

#[test]
fn pods_of_one_node_reach_each_other_one_hop_further() {
    families(|pair, v6| {
        let ends = from_a(pod(3, v6));
        for (bytes, reply) in [
            (ends.tcp(SYN, b""), from_b(ends).tcp(SYN_ACK, b"")),
            (ends.udp(b"hello"), from_b(ends).udp(b"hello yourself")),
            (
                ends.echo(false, b"ping"),
                from_b(Ends {
                    dst_port: ends.src_port,
                    ..ends
                })
                .echo(true, b"ping"),
            ),
        ] {
            let (verdict, out) = pair.run(Hook::FromPod, &bytes, ifindex::POD_A);
            assert_eq!(verdict, TO_B);
            assert_eq!(out[..12], [mac(ifindex::POD_B), world::NODE_MAC].concat());
            assert_eq!(out[if v6 { 21 } else { 22 }], 63, "one hop");
            assert!(frames::checksums_hold(&out));
            assert_eq!(pair.run(Hook::FromPod, &reply, ifindex::POD_B).0, TO_A);
        }
        // Who only claims to have sent a SYN hears no answer, and would fill the table with what does not exist.
        assert_eq!(pair.kernel.flows("conntrack").unwrap(), 1);
        assert_eq!(pair.memory.flows[0].len(), 1);
        assert_eq!(
            pair.run(Hook::FromPod, &ends.tcp(ACK, b""), ifindex::POD_A).0,
            TO_B
        );
        // Both sides have heard each other: the connection stands where a flood does not reach it. A ping does not.
        assert_eq!(pair.kernel.flows("conntrack").unwrap(), 2);
        assert_eq!(pair.memory.flows[0].len(), 2);
    });
}

#[test]
fn rel_10_a_ping_back_with_the_same_id_is_not_an_answer() {
    families(|pair, v6| {
        // The pod with rules may not be pinged; that it pinged somebody must not change this.
        let ends = Ends {
            src_mac: mac(ifindex::POD_A),
            ..from_a(pod(5, v6))
        };
        assert_eq!(drop_of(pair, &ends.echo(false, b"x")), Reason::PolicyIngress);
        let open = from_a(pod(3, v6));
        assert_eq!(
            pair.run(Hook::FromPod, &open.echo(false, b"x"), ifindex::POD_A).0,
            TO_B
        );
        // A query with the same id in the other direction is a connection of its own.
        let back = Ends {
            src_port: open.src_port,
            ..from_b(open)
        };
        assert_eq!(
            pair.run(Hook::FromPod, &back.echo(false, b"x"), ifindex::POD_B).0,
            TO_A
        );
        assert_eq!(pair.kernel.flows("conntrack_new").unwrap(), 2);
    });
}

#[test]
fn policy_decides_by_port_peer_and_class() {
    families(|pair, v6| {
        // Class 7 (pod A) may reach port 80, nothing else, and nobody of no class.
        let to = |dst_port| Ends {
            dst_port,
            ..from_a(pod(5, v6))
        };
        let verdict = pair.run(Hook::FromPod, &to(80).tcp(SYN, b""), ifindex::POD_A).0;
        assert_eq!(
            verdict,
            Ok(Verdict::Peer {
                ifindex: ifindex::POD_RULES
            })
        );
        assert_eq!(drop_of(pair, &to(81).tcp(SYN, b"")), Reason::PolicyIngress);
        let b = Ends {
            src_mac: mac(ifindex::POD_B),
            src: pod(3, v6),
            ..to(80)
        };
        let (verdict, _) = pair.run(Hook::FromPod, &b.tcp(SYN, b""), ifindex::POD_B);
        assert_eq!(verdict, Err(Reason::PolicyIngress));
        // Its own egress: a port prefix.
        let own = |dst_port| Ends {
            src_mac: mac(ifindex::POD_RULES),
            src: pod(5, v6),
            dst_port,
            ..from_a(pod(3, v6))
        };
        let send = |pair: &mut Pair, port| {
            pair.run(Hook::FromPod, &own(port).tcp(SYN, b""), ifindex::POD_RULES)
                .0
        };
        assert_eq!(send(pair, 8087), TO_B);
        assert_eq!(send(pair, 8088), Err(Reason::PolicyEgress));
        assert_eq!(send(pair, 8079), Err(Reason::PolicyEgress));
        // The answer to what was let in needs no rule.
        let reply = Ends {
            src_mac: mac(ifindex::POD_RULES),
            dst_mac: world::NODE_MAC,
            ..to(80).reversed()
        };
        assert_eq!(
            pair.run(Hook::FromPod, &reply.tcp(SYN_ACK, b""), ifindex::POD_RULES)
                .0,
            TO_A
        );
    });
}

#[test]
fn a_cidr_class_admits_by_address() {
    families(|pair, v6| {
        if v6 {
            return;
        }
        let to = |src| Ends {
            src: ip(src),
            dst_port: 80,
            ..outside(from_a(pod(5, false)).reversed())
        };
        let arrive = |pair: &mut Pair, src| {
            let ends = Ends {
                dst: pod(5, false),
                ..to(src)
            };
            pair.run(Hook::FromNetdev, &ends.tcp(SYN, b""), ifindex::NETDEV).0
        };
        assert_eq!(
            arrive(pair, "10.2.3.4"),
            Ok(Verdict::Peer {
                ifindex: ifindex::POD_RULES
            })
        );
        assert_eq!(arrive(pair, "10.5.3.4"), Err(Reason::PolicyIngress));
    });
}

#[test]
fn routes_lead_where_they_say() {
    families(|pair, v6| {
        let direct = from_a(ip(if v6 { "fd00:2::9" } else { "10.2.0.9" }));
        let via = Addr::from(ip(if v6 { "2001:db8::2" } else { "192.0.2.2" }));
        let verdict = pair.run(Hook::FromPod, &direct.udp(b"x"), ifindex::POD_A).0;
        assert_eq!(
            verdict,
            Ok(Verdict::Neighbour {
                ifindex: ifindex::NETDEV,
                gateway: via
            })
        );
        let tunnel = from_a(ip(if v6 { "fd00:3::9" } else { "10.3.0.9" }));
        let (verdict, out) = pair.run(Hook::FromPod, &tunnel.udp(b"x"), ifindex::POD_A);
        assert_eq!(
            verdict,
            Ok(Verdict::Tunnel {
                remote: Addr::from(ip("192.0.2.3"))
            })
        );
        assert_eq!(out[..6], Config::TUNNEL_MAC);
        let host = from_a(ip(if v6 { "2001:db8::1" } else { "192.0.2.1" }));
        assert_eq!(
            pair.run(Hook::FromPod, &host.udp(b"x"), ifindex::POD_A).0,
            Ok(Verdict::Pass)
        );
        let nobody = from_a(pod(200, v6));
        assert_eq!(drop_of(pair, &nobody.udp(b"x")), Reason::NoEndpoint);
        let stack = from_a(pod(4, v6));
        let verdict = pair.run(Hook::FromPod, &stack.udp(b"x"), ifindex::POD_A).0;
        assert_eq!(
            verdict,
            Ok(Verdict::Handled),
            "plugins behind ours act in the stack"
        );
        if !v6 {
            assert_eq!(drop_of(pair, &from_a(ip("10.9.0.1")).udp(b"x")), Reason::NoRoute);
            let verdict = pair
                .run(Hook::FromPod, &from_a(ip("10.4.0.1")).udp(b"x"), ifindex::POD_A)
                .0;
            assert_eq!(verdict, gateway(false), "a range that is not masqueraded");
        }
    });
}

#[test]
fn rel_09_what_comes_from_outside_is_never_taken_for_a_pod_or_the_host() {
    families(|pair, v6| {
        let target = pod(3, v6);
        let arrive = |pair: &mut Pair, src| {
            let ends = Ends {
                src,
                dst: target,
                ..outside(from_a(target))
            };
            pair.run(Hook::FromNetdev, &ends.tcp(SYN, b""), ifindex::NETDEV).0
        };
        assert_eq!(arrive(pair, pod(2, v6)), Err(Reason::Martian));
        assert_eq!(
            arrive(pair, ip(if v6 { "2001:db8::1" } else { "192.0.2.1" })),
            Err(Reason::Martian)
        );
        assert_eq!(arrive(pair, ip(if v6 { "2620:fe::9" } else { "9.9.9.9" })), TO_B);
        // What is not for a pod is the stack's.
        let node = ip(if v6 { "2001:db8::1" } else { "192.0.2.1" });
        let ends = Ends {
            src: ip(if v6 { "2620:fe::9" } else { "9.9.9.9" }),
            dst: node,
            ..outside(from_a(target))
        };
        assert_eq!(
            pair.run(Hook::FromNetdev, &ends.tcp(SYN, b""), ifindex::NETDEV).0,
            Ok(Verdict::Pass)
        );
    });
}

#[test]
fn the_host_reaches_its_pods_whatever_their_policy_and_nobody_else_does() {
    families(|pair, v6| {
        let node = ip(if v6 { "2001:db8::1" } else { "192.0.2.1" });
        let ends = Ends {
            src_mac: world::NODE_MAC,
            dst_mac: mac(ifindex::POD_RULES),
            src: node,
            dst: pod(5, v6),
            src_port: 50000,
            dst_port: 9999,
            ttl: 64,
        };
        // Made by the host (no ingress device) it passes; forwarded with the same source it is judged.
        let bytes = ends.tcp(SYN, b"");
        let mut frame = world::frame(bytes.clone(), ifindex::POD_RULES);
        frame.ingress_ifindex = 0;
        let mut out = Vec::new();
        let before = frame.clone();
        let host = world::run(&pair.memory, Hook::ToPod, &mut frame, &mut pair.work);
        assert_eq!(host, Ok(Verdict::Pass));
        assert_eq!(pair.kernel.run(Hook::ToPod, &before, &mut out).unwrap(), host);
        pair.forget();
        let forwarded = world::frame(bytes, ifindex::POD_RULES);
        let mut frame = forwarded.clone();
        frame.ingress_ifindex = ifindex::NETDEV;
        let host = world::run(&pair.memory, Hook::ToPod, &mut frame, &mut pair.work);
        assert_eq!(host, Err(Reason::PolicyIngress));
    });
}

#[test]
fn a_connection_ends_and_may_begin_again() {
    families(|pair, v6| {
        let ends = from_a(pod(3, v6));
        let run =
            |pair: &mut Pair, ends: Ends, flags, from| pair.run(Hook::FromPod, &ends.tcp(flags, b""), from).0;
        assert_eq!(run(pair, ends, SYN, ifindex::POD_A), TO_B);
        assert_eq!(run(pair, from_b(ends), SYN_ACK, ifindex::POD_B), TO_A);
        assert_eq!(run(pair, ends, FIN_ACK, ifindex::POD_A), TO_B);
        assert_eq!(run(pair, from_b(ends), FIN_ACK, ifindex::POD_B), TO_A);
        assert_eq!(run(pair, ends, SYN, ifindex::POD_A), TO_B);
        assert_eq!(
            pair.kernel.flows("conntrack").unwrap(),
            0,
            "the old connection made room"
        );
        assert_eq!(pair.kernel.flows("conntrack_new").unwrap(), 1);
        assert_eq!(run(pair, from_b(ends), RST, ifindex::POD_B), TO_A);
        assert_eq!(
            pair.kernel.flows("conntrack").unwrap(),
            0,
            "a reset is no answer worth a place"
        );
    });
}

#[test]
fn rel_48_what_its_segments_make_too_big_goes_to_the_stack_as_it_was_sent() {
    families(|pair, v6| {
        if v6 {
            return;
        }
        // The tunnel carries 1450 bytes: 20 of IPv4, 20 of TCP, 1410 of data.
        let ends = from_a(ip("10.3.0.9"));
        let bytes = ends.tcp(ACK, &[0; 900]);
        let tunnel = Ok(Verdict::Tunnel {
            remote: Addr::from(ip("192.0.2.3")),
        });
        // What has sizes of its own (SCTP) was made for the path.
        let own_sizes = 0xffff;
        for (segment, expected) in [(1410, tunnel), (1411, Ok(Verdict::Pass)), (own_sizes, tunnel)] {
            let mut frame = world::frame(bytes.clone(), ifindex::POD_A);
            frame.segment_size = segment;
            let (verdict, out) = pair.run_frame(Hook::FromPod, &frame);
            assert_eq!(verdict, expected, "segments of {segment}");
            assert_eq!(out == bytes, verdict == Ok(Verdict::Pass));
        }
    });
}
