//! What the programs answer in a Service's name.

use cni_ebpf::abi::{Reason, Service, ServiceKey, service_scope};
use cni_ebpf::datapath::Verdict;
use cni_tests::frames::{self, Ends};
use cni_tests::world::{self, Hook, ifindex, ip, mac, port};

use crate::Pair;
use crate::contested::{SECOND, second};
use crate::external::{arrive, outside};
use crate::fixtures::{ACK, SYN, TO_A, families, from_a};
use crate::services::{self, dial, ends, node, vip};

const FIN: u8 = 1;
/// To where it came from: into the host, if the host was to send it by this device.
const BACK: Verdict = Verdict::Back {
    ifindex: ifindex::NETDEV,
};

/// Sends it from pod A; gives the answer, which goes back to it.
fn answer(pair: &mut Pair, bytes: &[u8]) -> Vec<u8> {
    let (verdict, out) = pair.run(Hook::FromPod, bytes, ifindex::POD_A);
    assert_eq!(verdict, Err(Reason::ServiceNoBackend));
    assert_eq!(pair.work.answered, 1);
    assert_eq!(out[..12], [mac(ifindex::POD_A), world::NODE_MAC].concat());
    assert!(frames::checksums_hold(&out), "{}", crate::hex(&out));
    out
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn svc_25_a_service_without_endpoints_refuses_at_once() {
    families(|pair, v6| {
        let l4 = if v6 { 54 } else { 34 };
        for refused in [port::REFUSED, port::EMPTY] {
            let dialled = dial(v6, refused);
            // A stream: sequence number 1000 in the fixtures.
            for (flags, data, sequence, acknowledged, answers) in [
                (SYN, &b""[..], 0, 1001, 0x14),
                (SYN, &[7; 33], 0, 1034, 0x14),
                (SYN | FIN, b"x", 0, 1003, 0x14),
            ] {
                let out = answer(pair, &dialled.tcp(flags, data));
                let back = ends(&dialled.tcp(flags, data));
                assert_eq!(ends(&out), (back.1, back.0));
                assert_eq!(out.len(), l4 + 20);
                assert_eq!(out[l4 + 13], answers);
                assert_eq!(
                    (number(&out, l4 + 4), number(&out, l4 + 8)),
                    (sequence, acknowledged)
                );
            }
            // In the middle of a stream that nobody knows: it is told by its own numbers.
            let mut middle = dialled.tcp(ACK, b"data");
            middle[l4 + 8..l4 + 12].copy_from_slice(&77u32.to_be_bytes());
            let sum = !u32::from(u16::from_be_bytes([middle[l4 + 16], middle[l4 + 17]])) & 0xffff;
            let sum = sum + 77;
            let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
            middle[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
            let out = answer(pair, &middle);
            assert_eq!((number(&out, l4 + 4), out[l4 + 13]), (77, 4));
            // A datagram, and SCTP: port unreachable, about what was sent.
            for (sent, shown) in [
                (dialled.udp(b""), 8),
                (dialled.udp(&[7; 1000]), 8),
                (dialled.sctp(b"chunk"), 12),
            ] {
                let out = answer(pair, &sent);
                assert_eq!(out[l4..l4 + 2], if v6 { [1, 4] } else { [3, 3] });
                assert_eq!(out[l4 + 8..], sent[14..l4 + shown], "the packet itself");
                let (kind, at) = if v6 { (58, 20) } else { (1, 23) };
                assert_eq!(out[at], kind);
            }
        }
        assert_eq!(pair.kernel.flows("conntrack_new").unwrap(), 0);
    });
}

/// Where another node served the client until now, or this one was restarted. The stack would send it back to where it came from:
/// the address is nobody's.
#[test]
fn svc_60_a_stream_to_a_load_balancer_that_nobody_knows_is_ended_and_never_sent_back() {
    families(|pair, v6| {
        let balancer = ip(if v6 { "2001:db8:7::1" } else { "203.0.113.7" });
        let lives = ServiceKey {
            scope: service_scope::CLUSTER,
            ..services::key(balancer, 0, 0)
        };
        second(pair, balancer, port::NODE_CLUSTER, service_scope::EXTERNAL);
        pair.put_service(lives, Service::default());
        let to = |dst, dst_port| Ends {
            dst,
            ..outside(v6, dst_port)
        };
        let known = to(balancer, SECOND);
        let sent = known.tcp(ACK, b"data");
        // The stack may know it, and translate it.
        assert_eq!(arrive(pair, &sent).0, Ok(Verdict::Pass));
        let mut forwarded = world::frame(sent.clone(), ifindex::NETDEV);
        let (verdict, out) = pair.run_frame(Hook::ToNetdev, &forwarded);
        assert_eq!((verdict, pair.work.answered), (Err(Reason::InvalidState), 1));
        let there = ends(&sent);
        assert_eq!(ends(&out), (there.1, there.0));
        assert_eq!(out[if v6 { 54 } else { 34 } + 13], 4, "a reset");
        assert!(frames::checksums_hold(&out));
        // Of the host's own, which has its reasons, and of one that begins nothing is refused there.
        forwarded.ingress_ifindex = 0;
        assert_eq!(pair.run_frame(Hook::ToNetdev, &forwarded).0, Ok(Verdict::Pass));
        // Nor a part whose beginning was never here.
        let parts = frames::fragments(&known.udp(&[7; 200]), 96, 77);
        assert_eq!(arrive(pair, &parts[1]).0, Err(Reason::FragmentOrphan));
        // The stack has these, or knows their way.
        let node = to(node(v6), port::NODE_CLUSTER);
        let others = to(ip(if v6 { "2001:db8:7::2" } else { "203.0.113.8" }), SECOND);
        for ends in [node, others] {
            let parts = frames::fragments(&ends.udp(&[7; 200]), 96, 77);
            for bytes in [&ends.tcp(ACK, b"data"), &parts[1]] {
                let verdict = arrive(pair, bytes).0;
                assert!(
                    matches!(verdict, Ok(Verdict::Pass | Verdict::Arrived)),
                    "{verdict:?}"
                );
            }
        }
    });
}

#[test]
fn svc_25_a_reset_of_a_packet_whose_checksum_a_device_is_to_compute_awaits_it_too() {
    families(|pair, v6| {
        let l4 = if v6 { 54 } else { 34 };
        let mut sent = dial(v6, port::REFUSED).tcp(SYN, b"");
        let whole = answer(pair, &sent);
        // What the stack leaves there: the sum over the pseudo header.
        let pseudo = |segment: &[u8]| {
            let addresses = if v6 { &sent[22..54] } else { &sent[26..34] };
            let sum = addresses
                .chunks(2)
                .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
                .sum::<u32>()
                + 6
                + u32::try_from(segment.len()).unwrap();
            let sum = (sum & 0xffff) + (sum >> 16);
            ((sum & 0xffff) + (sum >> 16)) as u16
        };
        let sum = pseudo(&sent[l4..]);
        let expected = pseudo(&whole[l4..]);
        sent[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
        let (_, out) = pair.run(Hook::FromPod, &sent, ifindex::POD_A);
        assert_eq!(out[l4 + 16..l4 + 18], expected.to_be_bytes());
    });
}

#[test]
fn svc_26_endpoints_elsewhere_only_are_a_silent_drop() {
    families(|pair, v6| {
        for bytes in [
            dial(v6, port::ELSEWHERE).tcp(SYN, b""),
            dial(v6, port::ELSEWHERE).udp(b"x"),
        ] {
            let (verdict, out) = pair.run(Hook::FromPod, &bytes, ifindex::POD_A);
            assert_eq!((verdict, out), (Err(Reason::ServiceNotLocal), bytes));
            assert_eq!(pair.work.answered, 0);
        }
    });
}

#[test]
fn svc_28_another_port_of_a_cluster_ip_refuses() {
    families(|pair, v6| {
        answer(pair, &dial(v6, 1).tcp(SYN, b""));
        answer(pair, &dial(v6, 65535).udp(b"x"));
    });
}

#[test]
fn svc_29_an_address_that_no_service_has_is_a_drop_and_leaves_the_node_by_no_way() {
    families(|pair, v6| {
        let nobody = from_a(ip(if v6 { "fd00:96::77" } else { "10.96.0.77" }));
        for bytes in [
            nobody.tcp(SYN, b""),
            nobody.udp(b"x"),
            nobody.echo(false, b"ping"),
        ] {
            let (verdict, out) = pair.run(Hook::FromPod, &bytes, ifindex::POD_A);
            assert_eq!((verdict, out), (Err(Reason::ServiceUnknown), bytes));
            assert_eq!(pair.work.answered, 0);
        }
    });
}

/// Of sockets that no program connects: raw ones, SCTP's, and all where sockets are not balanced.
#[test]
fn svc_29_what_the_host_sends_to_the_service_range_does_not_leave_the_node() {
    families(|pair, v6| {
        let of_host = |ends: Ends| Ends {
            src: node(v6),
            src_mac: mac(ifindex::NETDEV),
            dst_mac: [2, 9, 9, 9, 9, 9],
            ..ends
        };
        let nobody = of_host(from_a(ip(if v6 { "fd00:96::77" } else { "10.96.0.77" })));
        for bytes in [nobody.tcp(SYN, b""), nobody.echo(false, b"ping")] {
            let (verdict, out) = pair.run(Hook::ToNetdev, &bytes, ifindex::NETDEV);
            assert_eq!((verdict, out), (Err(Reason::ServiceUnknown), bytes));
        }
        let dialled = of_host(dial(v6, port::TO_B));
        let (verdict, _) = pair.run(Hook::ToNetdev, &dialled.sctp(b"chunk"), ifindex::NETDEV);
        assert_eq!(verdict, Err(Reason::ServiceNoBackend));
        assert_eq!(pair.work.verdict(), BACK, "and its sender is told");
        let ping = of_host(from_a(vip(v6)));
        let (verdict, out) = pair.run(Hook::ToNetdev, &ping.echo(false, b"ping"), ifindex::NETDEV);
        assert_eq!(verdict, Ok(BACK));
        assert_eq!(ends(&out).1.0, node(v6));
        assert!(frames::checksums_hold(&out));
    });
}

#[test]
fn a_cluster_ip_answers_pings_whole_and_in_parts() {
    families(|pair, v6| {
        let ping = from_a(vip(v6));
        let (verdict, out) = pair.run(Hook::FromPod, &ping.echo(false, b"ping"), ifindex::POD_A);
        assert_eq!(verdict, TO_A);
        let expected = Ends {
            src_port: ping.src_port,
            ..ping.reversed()
        };
        assert_eq!(crate::hex(&out), crate::hex(&expected.echo(true, b"ping")));
        // What is left of the request's hops is nothing for the way back.
        let last = Ends { ttl: 1, ..ping };
        let (verdict, out) = pair.run(Hook::FromPod, &last.echo(false, b"ping"), ifindex::POD_A);
        assert_eq!(verdict, TO_A);
        assert_eq!(crate::hex(&out), crate::hex(&expected.echo(true, b"ping")));
        let parts = frames::fragments(&ping.echo(false, &[7; 200]), 96, 5);
        for part in &parts {
            let (verdict, out) = pair.run(Hook::FromPod, part, ifindex::POD_A);
            assert_eq!(verdict, TO_A);
            assert_eq!(out.len(), part.len());
        }
    });
}

#[test]
fn a_load_balancers_address_answers_pings_and_nothing_else() {
    families(|pair, v6| {
        let vip = world::balancer(v6);
        let from_outside = Ends {
            dst: vip,
            ..outside(v6, 80)
        };
        let of_host = Ends {
            src: node(v6),
            ..from_outside
        };
        for (hook, ends, device, back) in [
            (Hook::FromPod, from_a(vip), ifindex::POD_A, TO_A),
            (Hook::FromNetdev, from_outside, ifindex::NETDEV, Ok(BACK)),
            (Hook::ToNetdev, of_host, ifindex::NETDEV, Ok(BACK)),
        ] {
            let (verdict, out) = pair.run(hook, &ends.echo(false, b"ping"), device);
            assert_eq!(verdict, back);
            assert_eq!(services::ends(&out).0.0, vip);
            assert!(frames::checksums_hold(&out));
            // Two that answered an answer would never end; a request may have this id too.
            let any_id = Ends {
                src_port: u16::MAX,
                ..ends
            };
            let nobody = Ends {
                dst: ip(if v6 { "2001:db8:80::2" } else { "203.0.113.81" }),
                ..ends
            };
            for bytes in [
                ends.echo(true, b"pong"),
                any_id.echo(true, b"pong"),
                ends.tcp(SYN, b""),
                nobody.echo(false, b"ping"),
            ] {
                let (verdict, _) = pair.run(hook, &bytes, device);
                assert_ne!(verdict, back);
            }
        }
    });
}
