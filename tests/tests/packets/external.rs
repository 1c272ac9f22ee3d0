//! Services as they are used from outside: node ports, and what comes back from their backends.

use std::net::IpAddr;

use cni_ebpf::abi::{Addr, Config, Reason, service_scope};
use cni_ebpf::datapath::Verdict;
use cni_tests::frames::{self, Ends};
use cni_tests::memory::Frame;
use cni_tests::world::{self, Hook, backend, ifindex, ip, mac, pod, port, service_id};

use crate::Pair;
use crate::fixtures::{ACK, SYN, SYN_ACK, TO_B, families, from_a, gateway};
use crate::services::{dial, ends, node, vip};

pub(crate) fn client(v6: bool) -> IpAddr {
    ip(if v6 { "2620:fe::9" } else { "9.9.9.9" })
}

/// From the client to a port of the node.
pub(crate) fn outside(v6: bool, dst_port: u16) -> Ends {
    Ends {
        src_mac: [2, 9, 9, 9, 9, 9],
        dst_mac: mac(ifindex::NETDEV),
        src: client(v6),
        dst: node(v6),
        src_port: 50123,
        dst_port,
        ttl: 60,
    }
}

pub(crate) fn arrive(pair: &mut Pair, bytes: &[u8]) -> (Result<Verdict, Reason>, Vec<u8>) {
    pair.run(Hook::FromNetdev, bytes, ifindex::NETDEV)
}

/// The answer of whoever sees a connection so: the backend's packet, as it arrives from `device`.
pub(crate) fn answer_to(out: &[u8], src_mac: [u8; 6], dst_mac: [u8; 6]) -> Ends {
    let (src, dst) = ends(out);
    Ends {
        src_mac,
        dst_mac,
        src: dst.0,
        dst: src.0,
        src_port: dst.1,
        dst_port: src.1,
        ttl: 64,
    }
}

pub(crate) fn from_pod_b(out: &[u8]) -> Ends {
    answer_to(out, mac(ifindex::POD_B), world::NODE_MAC)
}

/// Out of the tunnel, from the node 192.0.2.3.
pub(crate) fn tunnelled(bytes: Vec<u8>) -> Frame {
    let mut frame = world::frame(bytes, ifindex::TUNNEL);
    frame.tunnel = Some((Addr::from(ip("192.0.2.3")), Config::DEFAULT.vni));
    frame
}

#[test]
fn what_carries_the_tunnel_is_the_stacks_and_what_is_in_it_is_asked_about_behind() {
    families(|pair, v6| {
        // A source that nothing else may have that comes by a device.
        let carrier = |dst_port| Ends {
            src: pod(2, v6),
            ..outside(v6, dst_port)
        };
        let there = carrier(4789).udp(b"outer");
        assert_eq!(arrive(pair, &there), (Ok(Verdict::Pass), there));
        let beside = carrier(4790).udp(b"outer");
        assert_eq!(arrive(pair, &beside).0, Err(Reason::Martian));
        let stream = carrier(4789).tcp(SYN, b"");
        assert_eq!(arrive(pair, &stream).0, Err(Reason::Martian));
    });
}

#[test]
fn svc_33_cluster_policy_hides_the_client_behind_the_node() {
    families(|pair, v6| {
        let dialled = outside(v6, port::NODE_CLUSTER);
        for (there, back) in [
            (
                dialled.tcp(SYN, b""),
                (|ends: Ends| ends.tcp(SYN_ACK, b"")) as fn(Ends) -> Vec<u8>,
            ),
            (dialled.udp(b"q"), |ends| ends.udp(b"a")),
        ] {
            let (verdict, out) = arrive(pair, &there);
            assert_eq!(verdict, TO_B);
            assert_eq!(ends(&out), ((node(v6), 40000), (pod(3, v6), 8080)));
            assert!(frames::checksums_hold(&out));
            let (verdict, out) = pair.run(Hook::FromPod, &back(from_pod_b(&out)), ifindex::POD_B);
            assert_eq!(verdict, gateway(v6));
            assert_eq!(ends(&out), ((node(v6), port::NODE_CLUSTER), (client(v6), 50123)));
            assert!(frames::checksums_hold(&out));
        }
        let (verdict, out) = arrive(pair, &dialled.tcp(ACK, b"data"));
        assert_eq!((verdict, ends(&out).0), (TO_B, (node(v6), 40000)));
    });
}

#[test]
fn svc_33_a_backend_of_another_node_answers_through_this_one() {
    families(|pair, v6| {
        for (dst_port, way, remote) in [
            (
                port::NODE_REMOTE,
                Ok(Verdict::Neighbour {
                    ifindex: ifindex::NETDEV,
                    gateway: Addr::from(ip(if v6 { "2001:db8::2" } else { "192.0.2.2" })),
                }),
                ip(if v6 { "fd00:2::9" } else { "10.2.0.9" }),
            ),
            (
                port::NODE_TUNNELLED,
                Ok(Verdict::Tunnel {
                    remote: Addr::from(ip("192.0.2.3")),
                }),
                ip(if v6 { "fd00:3::9" } else { "10.3.0.9" }),
            ),
        ] {
            let dialled = outside(v6, dst_port);
            for (flags, reply) in [(SYN, SYN_ACK), (ACK, ACK)] {
                let (verdict, out) = arrive(pair, &dialled.tcp(flags, b""));
                assert_eq!(verdict, way);
                assert_eq!(ends(&out), ((node(v6), 40000), (remote, 8080)));
                assert!(frames::checksums_hold(&out));
                assert_eq!(out[if v6 { 21 } else { 22 }], 59, "one hop");
                let back = answer_to(&out, [2, 9, 9, 9, 9, 9], mac(ifindex::NETDEV)).tcp(reply, b"");
                let (verdict, out) = if dst_port == port::NODE_TUNNELLED {
                    pair.run_tunnelled(&tunnelled(back))
                } else {
                    arrive(pair, &back)
                };
                assert_eq!(verdict, gateway(v6));
                assert_eq!(ends(&out), ((node(v6), dst_port), (client(v6), 50123)));
                assert!(frames::checksums_hold(&out));
            }
            pair.forget();
        }
    });
}

impl Pair {
    /// In the host build alone: a test run has no tunnel key.
    pub(crate) fn run_tunnelled(&mut self, frame: &Frame) -> (Result<Verdict, Reason>, Vec<u8>) {
        let (verdict, frame) = self.host(Hook::FromNetdev, frame);
        (verdict, frame.bytes)
    }
}

#[test]
fn svc_34_local_policy_keeps_the_client_and_chooses_from_this_node() {
    families(|pair, v6| {
        let dialled = outside(v6, port::NODE_LOCAL);
        let (verdict, out) = arrive(pair, &dialled.tcp(SYN, b""));
        assert_eq!(verdict, TO_B);
        assert_eq!(ends(&out), ((client(v6), 50123), (pod(3, v6), 8080)));
        let (verdict, out) = pair.run(Hook::FromPod, &from_pod_b(&out).tcp(SYN_ACK, b""), ifindex::POD_B);
        assert_eq!(verdict, gateway(v6));
        assert_eq!(ends(&out), ((node(v6), port::NODE_LOCAL), (client(v6), 50123)));
    });
}

#[test]
fn svc_35_endpoints_elsewhere_only_drop_what_comes_from_outside() {
    families(|pair, v6| {
        let bytes = outside(v6, port::NODE_ELSEWHERE).tcp(SYN, b"");
        let (verdict, out) = arrive(pair, &bytes);
        assert_eq!((verdict, out), (Err(Reason::ServiceNotLocal), bytes));
        assert_eq!(pair.work.answered, 0);
    });
}

#[test]
fn svc_36_a_pod_of_the_cluster_is_not_bound_by_the_external_policy() {
    families(|pair, v6| {
        let own = Ends {
            dst_port: port::NODE_LOCAL,
            src: pod(3, v6),
            src_mac: mac(ifindex::POD_B),
            ..from_a(node(v6))
        };
        let (verdict, out) = pair.run(Hook::FromPod, &own.tcp(SYN, b""), ifindex::POD_B);
        assert_eq!(verdict, crate::fixtures::TO_A);
        assert_eq!(
            ends(&out),
            ((pod(3, v6), 33000), (pod(2, v6), 8080)),
            "unmasqueraded"
        );
    });
}

#[test]
fn svc_35_svc_36_a_pod_of_another_node_is_bound_by_it_behind_the_tunnel_too() {
    families(|pair, v6| {
        let elsewhere = ip(if v6 { "fd00:3::9" } else { "10.3.0.9" });
        let mut dial = |dst_port| {
            let ends = Ends {
                src: elsewhere,
                ..outside(v6, dst_port)
            };
            pair.run_tunnelled(&tunnelled(ends.tcp(SYN, b"")))
        };
        let (verdict, out) = dial(port::NODE_LOCAL);
        assert_eq!(verdict, TO_B);
        assert_eq!(ends(&out), ((elsewhere, 50123), (pod(3, v6), 8080)));
        assert_eq!(dial(port::NODE_ELSEWHERE).0, Err(Reason::ServiceNotLocal));
    });
}

#[test]
fn svc_38_a_node_port_without_endpoints_refuses() {
    families(|pair, v6| {
        let l4 = if v6 { 54 } else { 34 };
        let dialled = outside(v6, port::NODE_REFUSED);
        let (verdict, out) = arrive(pair, &dialled.tcp(SYN, b""));
        assert_eq!(verdict, Err(Reason::ServiceNoBackend));
        assert_eq!(ends(&out), ((node(v6), port::NODE_REFUSED), (client(v6), 50123)));
        assert_eq!(out[l4 + 13], 0x14);
        assert_eq!(out[..12], [[2, 9, 9, 9, 9, 9], mac(ifindex::NETDEV)].concat());
        let (verdict, out) = arrive(pair, &dialled.udp(b"x"));
        assert_eq!(verdict, Err(Reason::ServiceNoBackend));
        assert_eq!(out[l4..l4 + 2], if v6 { [1, 4] } else { [3, 3] });
        assert!(frames::checksums_hold(&out));
    });
}

#[test]
fn svc_31_what_is_for_another_address_is_left_alone() {
    families(|pair, v6| {
        let other = Ends {
            dst: ip(if v6 { "2001:db8::77" } else { "192.0.2.77" }),
            ..outside(v6, port::NODE_CLUSTER)
        };
        let bytes = other.tcp(SYN, b"");
        let (verdict, out) = arrive(pair, &bytes);
        assert_eq!((verdict, out), (Ok(Verdict::Pass), bytes));
    });
}

#[test]
fn svc_40_who_is_outside_of_the_source_ranges_is_dropped() {
    families(|pair, v6| {
        let near = Ends {
            src: ip(if v6 { "2620:fe::1" } else { "198.51.100.4" }),
            ..outside(v6, port::NODE_RANGES)
        };
        assert_eq!(arrive(pair, &near.tcp(SYN, b"")).0, TO_B);
        let far = Ends {
            src: ip(if v6 { "2a00::1" } else { "198.51.101.4" }),
            ..near
        };
        assert_eq!(arrive(pair, &far.tcp(SYN, b"")).0, Err(Reason::ServiceSource));
        let open = Ends {
            dst_port: port::NODE_LOCAL,
            ..far
        };
        assert_eq!(arrive(pair, &open.tcp(SYN, b"")).0, TO_B, "other ports stay open");
    });
}

#[test]
fn svc_24_a_cluster_ip_dialled_from_outside_is_masqueraded() {
    families(|pair, v6| {
        let dialled = Ends {
            dst: vip(v6),
            ..outside(v6, port::TO_B)
        };
        let (verdict, out) = arrive(pair, &dialled.tcp(SYN, b""));
        assert_eq!(verdict, TO_B);
        assert_eq!(ends(&out).0, (node(v6), 40000));
        let nobody = Ends {
            dst: ip(if v6 { "fd00:96::77" } else { "10.96.0.77" }),
            ..dialled
        };
        assert_eq!(arrive(pair, &nobody.tcp(SYN, b"")).0, Err(Reason::ServiceUnknown));
    });
}

#[test]
fn a_backend_that_is_the_node_itself_answers_as_the_frontend() {
    families(|pair, v6| {
        let dialled = outside(v6, port::NODE_HOST);
        let (verdict, out) = arrive(pair, &dialled.tcp(SYN, b""));
        assert_eq!(verdict, Ok(Verdict::Pass));
        assert_eq!(ends(&out), ((client(v6), 50123), (node(v6), 6443)));
        let back = answer_to(&out, mac(ifindex::NETDEV), [2, 9, 9, 9, 9, 9]);
        let mut frame = world::frame(back.tcp(SYN_ACK, b""), ifindex::NETDEV);
        frame.ingress_ifindex = 0;
        let (verdict, out) = pair.run_frame(Hook::ToNetdev, &frame);
        assert_eq!(verdict, Ok(Verdict::Pass));
        assert_eq!(ends(&out), ((node(v6), port::NODE_HOST), (client(v6), 50123)));
        assert!(frames::checksums_hold(&out));
    });
}

#[test]
fn a_backend_that_is_the_node_itself_answers_behind_the_tunnel_as_the_frontend() {
    families(|pair, v6| {
        let ends_of_pod = Ends {
            src: ip(if v6 { "fd00:3::9" } else { "10.3.0.9" }),
            ..outside(v6, port::NODE_HOST)
        };
        let (verdict, out) = pair.run_tunnelled(&tunnelled(ends_of_pod.tcp(SYN, b"")));
        assert_eq!(verdict, Ok(Verdict::Pass));
        assert_eq!(ends(&out), ((ends_of_pod.src, 50123), (node(v6), 6443)));
        let back = answer_to(&out, mac(ifindex::NETDEV), [2, 9, 9, 9, 9, 9]);
        let mut frame = world::frame(back.tcp(SYN_ACK, b""), ifindex::TUNNEL);
        frame.ingress_ifindex = 0;
        let (verdict, frame) = pair.host(Hook::ToNetdev, &frame);
        let remote = Addr::from(ip("192.0.2.3"));
        assert_eq!(verdict, Ok(Verdict::TunnelKey { remote }));
        assert_eq!(
            ends(&frame.bytes),
            ((node(v6), port::NODE_HOST), (ends_of_pod.src, 50123))
        );
        assert!(frames::checksums_hold(&frame.bytes));
    });
}

#[test]
fn svc_57_errors_show_each_side_the_packet_that_it_sent() {
    families(|pair, v6| {
        let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
        let dialled = outside(v6, port::NODE_TUNNELLED);
        let sent = dialled.udp(b"hello there");
        let (_, seen) = arrive(pair, &sent);
        // From the backend's side, about the client's datagram.
        let error = answer_to(&seen, [2, 9, 9, 9, 9, 9], mac(ifindex::NETDEV));
        let (verdict, out) = pair.run_tunnelled(&tunnelled(error.icmp_error(kind, code, &seen)));
        assert_eq!(verdict, gateway(v6));
        assert!(frames::checksums_hold(&out));
        let inner = if v6 { 14 + 40 + 8 } else { 14 + 20 + 8 };
        let shown = |out: &[u8]| ends(&[&sent[..14], &out[inner..]].concat());
        assert_eq!(shown(&out), ends(&sent));
        assert_eq!(ends(&out).0.0, node(v6), "from what was dialled");
        assert_eq!(ends(&out).1.0, client(v6));
        // From a router before the client, about the backend's datagram.
        let (_, back) = pair.run_tunnelled(&tunnelled(error.udp(b"and hello to you")));
        let router = Ends {
            src: ip(if v6 { "2620:fe::1" } else { "9.9.9.1" }),
            ..outside(v6, 0)
        };
        let (verdict, out) = arrive(pair, &router.icmp_error(kind, code, &back));
        assert_eq!(
            verdict,
            Ok(Verdict::Tunnel {
                remote: Addr::from(ip("192.0.2.3"))
            })
        );
        assert!(frames::checksums_hold(&out));
        assert_eq!(shown(&out), ends(&error.udp(b"")));
        assert_eq!(ends(&out).0.0, node(v6), "the tunnel takes nobody else's");
    });
}

#[test]
fn svc_58_parts_from_outside_go_to_one_backend() {
    families(|pair, v6| {
        let whole = outside(v6, port::NODE_CLUSTER).udp(&[7; 200]);
        for part in frames::fragments(&whole, 96, 77) {
            let (verdict, out) = arrive(pair, &part);
            assert_eq!((verdict, ends(&out).1.0), (TO_B, pod(3, v6)));
        }
    });
}

#[test]
fn what_the_way_to_a_backend_does_not_carry_is_told_to_the_client() {
    families(|pair, v6| {
        if v6 {
            return;
        }
        // The tunnel carries 1450 bytes.
        let dialled = outside(v6, port::NODE_TUNNELLED);
        let (verdict, out) = arrive(pair, &dialled.udp(&[7; 1450]));
        assert_eq!(verdict, Err(Reason::TooBig));
        assert_eq!(pair.work.answered, 1);
        assert_eq!(out[34..36], [3, 4]);
        assert_eq!(out[40..42], 1450u16.to_be_bytes());
        assert!(frames::checksums_hold(&out));
        let last = Ends { ttl: 1, ..dialled };
        let (verdict, out) = arrive(pair, &last.udp(b"x"));
        assert_eq!(verdict, Err(Reason::TtlExceeded));
        assert_eq!(out[34..36], [11, 0]);
    });
}

/// A router on the way would say so, and this node is none to who dialled a Service.
#[test]
fn svc_57_what_the_kernels_route_to_a_backend_does_not_carry_is_told_too() {
    families(|pair, v6| {
        let id = service_id(port::TO_B, v6, service_scope::CLUSTER);
        let offset = if v6 { backend::V6 } else { 0 };
        let far = ip(if v6 { "2001:db8:5::9" } else { "198.51.100.77" });
        pair.put_backend(backend::POD_B + offset, Some((far, 8080)));
        pair.put_slot(id, 0, backend::POD_B + offset);
        let dialled = dial(v6, port::TO_B);
        let fits = 1400 - if v6 { 48 } else { 28 };
        let send = |pair: &mut Pair, length: usize| {
            pair.run(Hook::FromPod, &dialled.udp(&vec![7; length]), ifindex::POD_A)
        };
        assert_eq!(send(pair, fits).0, gateway(v6));
        let (verdict, out) = send(pair, fits + 1);
        assert_eq!((verdict, pair.work.answered), (Err(Reason::TooBig), 1));
        let l4 = if v6 { 54 } else { 34 };
        assert_eq!(out[l4..l4 + 2], if v6 { [2, 0] } else { [3, 4] });
        assert_eq!(out[l4 + 6..l4 + 8], 1400u16.to_be_bytes());
        assert!(frames::checksums_hold(&out));
        pair.put_backend(backend::POD_B + offset, Some((pod(3, v6), 8080)));
        pair.put_slot(id, 0, backend::POD_B + offset);
    });
}

#[test]
fn svc_53_datagrams_from_outside_leave_a_backend_that_serves_no_longer() {
    families(|pair, v6| {
        let offset = if v6 { backend::V6 } else { 0 };
        let id = service_id(port::NODE_CLUSTER, v6, 1);
        let bytes = outside(v6, port::NODE_CLUSTER).udp(b"x");
        assert_eq!(arrive(pair, &bytes).0, TO_B);
        pair.put_slot(id, 0, backend::POD_A + offset);
        assert_eq!(arrive(pair, &bytes).0, TO_B);
        pair.put_backend(backend::POD_B + offset, None);
        assert_eq!(arrive(pair, &bytes).0, crate::fixtures::TO_A);
        pair.put_backend(backend::POD_B + offset, Some((pod(3, v6), 8080)));
        pair.put_slot(id, 0, backend::POD_B + offset);
    });
}

#[test]
fn an_answer_of_a_pod_that_the_stack_sends_bears_the_frontend_too() {
    families(|pair, v6| {
        let dialled = outside(v6, port::NODE_LOCAL);
        let (_, out) = arrive(pair, &dialled.tcp(SYN, b""));
        let back = from_pod_b(&out).tcp(SYN_ACK, b"");
        let (verdict, out) = pair.run(Hook::ToNetdev, &back, ifindex::NETDEV);
        assert_eq!(verdict, Ok(Verdict::Pass));
        assert_eq!(ends(&out), ((node(v6), port::NODE_LOCAL), (client(v6), 50123)));
    });
}

#[test]
fn svc_59_the_port_behind_which_a_client_hides_is_nobody_elses() {
    families(|pair, v6| {
        let first = outside(v6, port::NODE_CLUSTER);
        assert_eq!(arrive(pair, &first.tcp(SYN, b"")).0, TO_B);
        // The range has one port, and the backend is the same.
        let second = Ends {
            src_port: 50124,
            ..first
        };
        assert_eq!(arrive(pair, &second.tcp(SYN, b"")).0, Err(Reason::NatExhausted));
        let pods = Ends {
            dst_port: port::HIDDEN,
            ..from_a(vip(v6))
        };
        let (verdict, _) = pair.run(Hook::FromPod, &pods.tcp(SYN, b""), ifindex::POD_A);
        assert_eq!(verdict, Err(Reason::NatExhausted));
    });
}
