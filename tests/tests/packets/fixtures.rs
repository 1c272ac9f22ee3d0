//! Packets made on purpose, each with the outcome it must have.

use std::net::IpAddr;

use cni_ebpf::abi::{Addr, Config, Reason};
use cni_ebpf::datapath::Verdict;
use cni_tests::frames::{self, Ends};
use cni_tests::world::{self, Hook, ifindex, ip, mac, pod};

use crate::{Pair, privileged, with_pair};

const SYN: u8 = 2;
const ACK: u8 = 16;
const SYN_ACK: u8 = SYN | ACK;
const FIN_ACK: u8 = 1 | ACK;
const RST: u8 = 4;

fn from_a(dst: IpAddr) -> Ends {
    Ends {
        src_mac: mac(ifindex::POD_A),
        dst_mac: world::NODE_MAC,
        src: pod(2, dst.is_ipv6()),
        dst,
        src_port: 33000,
        dst_port: 8080,
        ttl: 64,
    }
}

fn from_b(ends: Ends) -> Ends {
    Ends {
        src_mac: mac(ifindex::POD_B),
        dst_mac: world::NODE_MAC,
        ..ends.reversed()
    }
}

fn outside(ends: Ends) -> Ends {
    Ends {
        src_mac: [2, 9, 9, 9, 9, 9],
        dst_mac: mac(ifindex::NETDEV),
        ..ends.reversed()
    }
}

const TO_B: Result<Verdict, Reason> = Ok(Verdict::Peer {
    ifindex: ifindex::POD_B,
});
const TO_A: Result<Verdict, Reason> = Ok(Verdict::Peer {
    ifindex: ifindex::POD_A,
});

fn gateway(v6: bool) -> Result<Verdict, Reason> {
    let gateway = Addr::from(ip(if v6 { "2001:db8::fe" } else { "192.0.2.254" }));
    Ok(Verdict::Neighbour {
        ifindex: ifindex::NETDEV,
        gateway,
    })
}

fn families(test: impl Fn(&mut Pair, bool) + Send + 'static) {
    cni_tests::require!(privileged(), "running programs needs root");
    with_pair(move |pair| {
        for v6 in [false, true] {
            test(pair, v6);
            pair.forget();
        }
    });
}

fn drop_of(pair: &mut Pair, bytes: &[u8]) -> Reason {
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
        // Both sides were heard: the connection stands where a flood does not reach it. A ping does not.
        assert_eq!(pair.kernel.flows("conntrack").unwrap(), 2);
        assert_eq!(pair.memory.flows[0].len(), 2);
    });
}

#[test]
fn rel_49_a_pod_sends_only_as_itself() {
    families(|pair, v6| {
        let ends = from_a(pod(3, v6));
        let other = Ends {
            src: pod(3, v6),
            dst: pod(2, v6),
            ..ends
        };
        assert_eq!(drop_of(pair, &other.udp(b"x")), Reason::SourceAddress);
        let foreign = Ends {
            src: ip(if v6 { "2001:db8::77" } else { "203.0.113.7" }),
            ..ends
        };
        assert_eq!(drop_of(pair, &foreign.udp(b"x")), Reason::SourceAddress);
        let mac = Ends {
            src_mac: [2, 6, 6, 6, 6, 6],
            ..ends
        };
        assert_eq!(drop_of(pair, &mac.udp(b"x")), Reason::SourceMac);
        let dhcp = Ends {
            src_port: if v6 { 547 } else { 67 },
            ..ends
        };
        assert_eq!(drop_of(pair, &dhcp.udp(b"x")), Reason::DhcpServer);
        for dst in if v6 {
            ["ff02::1", "fe80::1"]
        } else {
            ["224.0.0.251", "255.255.255.255"]
        } {
            assert_eq!(drop_of(pair, &from_a(ip(dst)).udp(b"x")), Reason::LinkLocal);
        }
        assert_eq!(
            pair.kernel.flows("conntrack_new").unwrap(),
            0,
            "what is refused leaves no entry"
        );
    });
}

#[test]
fn rel_19_no_neighbour_or_router_discovery_and_no_arp() {
    families(|pair, v6| {
        if v6 {
            for kind in 133..=137 {
                let message = from_a(pod(3, true)).icmp(&[kind, 0, 0, 0, 0, 0, 0, 0]);
                assert_eq!(drop_of(pair, &message), Reason::NeighbourDiscovery);
            }
        } else {
            let mut arp = vec![0xff; 12];
            arp.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            arp.resize(60, 0);
            assert_eq!(drop_of(pair, &arp), Reason::Arp);
        }
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
        assert_eq!(arrive(pair, "10.3.3.4"), Err(Reason::PolicyIngress));
    });
}

#[test]
fn a_service_leads_to_its_backend_and_back() {
    families(|pair, v6| {
        let vip = ip(if v6 { "fd00:96::1" } else { "10.96.0.1" });
        let ends = Ends {
            dst_port: 80,
            ..from_a(vip)
        };
        let (verdict, out) = pair.run(Hook::FromPod, &ends.tcp(SYN, b""), ifindex::POD_A);
        assert_eq!(verdict, TO_B);
        assert!(frames::checksums_hold(&out), "{}", crate::hex(&out));
        let direct = Ends {
            dst: pod(3, v6),
            dst_port: 8080,
            ..ends
        };
        let (verdict, out) = pair.run(Hook::FromPod, &from_b(direct).tcp(SYN_ACK, b""), ifindex::POD_B);
        assert_eq!(verdict, TO_A);
        assert!(frames::checksums_hold(&out));
        let source = if v6 { &out[22..38] } else { &out[26..30] };
        let expected = match vip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        assert_eq!(
            source, expected,
            "the answer comes from the address that was dialled"
        );
        assert_eq!(
            pair.run(Hook::FromPod, &ends.tcp(ACK, b"data"), ifindex::POD_A).0,
            TO_B
        );
        if !v6 {
            let none = Ends { dst_port: 81, ..ends };
            assert_eq!(drop_of(pair, &none.tcp(SYN, b"")), Reason::ServiceNoBackend);
        }
    });
}

#[test]
fn what_leaves_the_cluster_is_masqueraded_and_its_answer_comes_back() {
    families(|pair, v6| {
        let node = ip(if v6 { "2001:db8::1" } else { "192.0.2.1" });
        let far = ip(if v6 { "2620:fe::9" } else { "9.9.9.9" });
        let ends = from_a(far);
        for (bytes, answer) in [
            (
                ends.tcp(SYN, b""),
                Ends {
                    src: node,
                    src_port: 40000,
                    ..ends
                }
                .reversed()
                .tcp(SYN_ACK, b""),
            ),
            (
                ends.udp(b"q"),
                Ends {
                    src: node,
                    src_port: 40000,
                    ..ends
                }
                .reversed()
                .udp(b"a"),
            ),
            (
                ends.echo(false, b"q"),
                Ends {
                    src_port: 40000,
                    ..Ends { src: node, ..ends }.reversed()
                }
                .echo(true, b"q"),
            ),
        ] {
            let (verdict, out) = pair.run(Hook::FromPod, &bytes, ifindex::POD_A);
            assert_eq!(verdict, gateway(v6));
            assert!(frames::checksums_hold(&out), "{}", crate::hex(&out));
            // The range has one port: a second connection to the same place finds none.
            let second = Ends {
                src_port: 33001,
                ..ends
            };
            if bytes[if v6 { 20 } else { 23 }] == 6 {
                assert_eq!(drop_of(pair, &second.tcp(SYN, b"")), Reason::NatExhausted);
            }
            let (verdict, out) = pair.run(Hook::FromNetdev, &answer, ifindex::NETDEV);
            assert_eq!(verdict, TO_A, "{}", crate::hex(&answer));
            assert!(frames::checksums_hold(&out));
            let (verdict, _) = pair.run(Hook::FromPod, &bytes, ifindex::POD_A);
            assert_eq!(verdict, gateway(v6));
        }
    });
}

#[test]
fn rel_47_icmp_errors_show_each_side_its_own_tuple() {
    families(|pair, v6| {
        let node = ip(if v6 { "2001:db8::1" } else { "192.0.2.1" });
        let far = ip(if v6 { "2620:fe::9" } else { "9.9.9.9" });
        let ends = from_a(far);
        let (verdict, sent) = pair.run(Hook::FromPod, &ends.udp(b"hello there"), ifindex::POD_A);
        assert_eq!(verdict, gateway(v6));
        let router = Ends {
            src: ip(if v6 { "2620:fe::1" } else { "9.9.9.1" }),
            dst: node,
            ..outside(ends)
        };
        let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
        let error = router.icmp_error(kind, code, &sent);
        let (verdict, out) = pair.run(Hook::FromNetdev, &error, ifindex::NETDEV);
        assert_eq!(verdict, TO_A);
        assert!(frames::checksums_hold(&out), "{}", crate::hex(&out));
        let inner = if v6 { 14 + 40 + 8 } else { 14 + 20 + 8 };
        let source = if v6 {
            &out[inner + 8..inner + 24]
        } else {
            &out[inner + 12..inner + 16]
        };
        let expected = match ends.src {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        assert_eq!(source, expected, "the pod finds its own address inside");
        // A forged one, about a connection that nobody has.
        let forged = Ends {
            src_port: 5,
            ..from_b(from_a(pod(3, v6)))
        };
        let about = Ends {
            src_port: 1,
            dst_port: 2,
            ..from_a(pod(3, v6))
        };
        let (verdict, _) = pair.run(
            Hook::FromPod,
            &forged.icmp_error(kind, code, &about.udp(b"x")),
            ifindex::POD_B,
        );
        assert_eq!(verdict, Err(Reason::RelatedUnknown));
    });
}

#[test]
fn fragments_follow_their_first() {
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

#[test]
fn rel_45_ipv4_headers_are_judged() {
    families(|pair, v6| {
        if v6 {
            return;
        }
        let good = from_a(pod(3, false)).udp(b"payload");
        let change = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        assert_eq!(drop_of(pair, &change(14, 0x44)), Reason::Malformed, "IHL 4");
        assert_eq!(drop_of(pair, &change(14, 0x55)), Reason::Malformed, "version 5");
        assert_eq!(
            drop_of(pair, &change(17, 19)),
            Reason::Malformed,
            "total length below the header"
        );
        assert_eq!(
            drop_of(pair, &change(16, 9)),
            Reason::Malformed,
            "total length beyond the frame"
        );
        assert_eq!(
            drop_of(pair, &change(17, 27)),
            Reason::Truncated,
            "no room for UDP"
        );
        for protocol in [2, 4, 41, 47, 50, 58, 255] {
            assert_eq!(drop_of(pair, &change(23, protocol)), Reason::UnknownProtocol);
        }
        for words in 1..=10 {
            let options = frames::with_options(&good, &vec![1; words * 4]);
            assert_eq!(
                pair.run(Hook::FromPod, &options, ifindex::POD_A).0,
                TO_B,
                "{words} words of options"
            );
        }
        let expiring = Ends {
            ttl: 1,
            ..from_a(pod(3, false))
        };
        let (verdict, out) = pair.run(Hook::FromPod, &expiring.udp(b"x"), ifindex::POD_A);
        assert_eq!(
            (verdict, out),
            (Ok(Verdict::Pass), expiring.udp(b"x")),
            "the stack answers, and shows it as sent"
        );
        assert_eq!(drop_of(pair, &good[..20]), Reason::Truncated);
    });
}

#[test]
fn rel_46_ipv6_extension_chains_are_walked() {
    families(|pair, v6| {
        if !v6 {
            return;
        }
        let good = from_a(pod(3, true)).udp(b"payload");
        let header = || vec![0u8; 8];
        let chain = |numbers: &[u8]| {
            let headers: Vec<_> = numbers.iter().map(|number| (*number, header())).collect();
            frames::with_extensions(&good, &headers)
        };
        assert_eq!(pair.run(Hook::FromPod, &chain(&[0, 60]), ifindex::POD_A).0, TO_B);
        assert_eq!(
            pair.run(Hook::FromPod, &chain(&[60; 8]), ifindex::POD_A).0,
            TO_B,
            "eight headers"
        );
        assert_eq!(
            drop_of(pair, &chain(&[60; 9])),
            Reason::ExtensionHeader,
            "nine are too many"
        );
        assert_eq!(
            drop_of(pair, &chain(&[43])),
            Reason::ExtensionHeader,
            "routing header type 0"
        );
        for unknown in [50, 59, 135, 139, 253] {
            let mut bytes = good.clone();
            bytes[20] = unknown;
            assert_eq!(drop_of(pair, &bytes), Reason::UnknownProtocol);
        }
        let mut long = chain(&[60]);
        long[14 + 40 + 1] = 200;
        assert_eq!(
            drop_of(pair, &long),
            Reason::Malformed,
            "a header longer than the packet"
        );
        let mapped = Ends {
            dst: ip("::ffff:10.1.0.3"),
            ..from_a(pod(3, true))
        };
        assert_eq!(drop_of(pair, &mapped.udp(b"x")), Reason::MappedAddress);
        let mut zero = good.clone();
        zero[14 + 40 + 6..14 + 40 + 8].fill(0);
        assert_eq!(
            drop_of(pair, &zero),
            Reason::Malformed,
            "UDP without checksum over IPv6"
        );
    });
}

#[test]
fn udp_without_checksum_stays_without() {
    families(|pair, v6| {
        if v6 {
            return;
        }
        let mut bytes = from_a(ip("9.9.9.9")).udp(b"x");
        bytes[14 + 20 + 6..14 + 20 + 8].fill(0);
        let (verdict, out) = pair.run(Hook::FromPod, &bytes, ifindex::POD_A);
        assert_eq!(verdict, gateway(false));
        assert_eq!(out[14 + 20 + 6..14 + 20 + 8], [0, 0]);
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
