//! What nobody may send: other people's addresses, errors about other people's connections, answers to no question.

use cni_ebpf::abi::Reason;
use cni_ebpf::datapath::Verdict;
use cni_tests::frames::{self, Ends};
use cni_tests::world::{self, Hook, ifindex, ip, mac, pod};

use crate::fixtures::{RST, SYN, SYN_ACK, TO_A, TO_B, drop_of, families, from_a, from_b, outside};

#[test]
fn rel_48_a_pod_does_not_choose_a_vlan() {
    families(|pair, v6| {
        // The kernel takes the tag off before our program sees the packet, and puts it on again behind it.
        let mut tagged = world::frame(from_a(pod(3, v6)).udp(b"x"), ifindex::POD_A);
        tagged.vlan = true;
        assert_eq!(pair.host(Hook::FromPod, &tagged).0, Err(Reason::UnknownEthertype));
        assert!(pair.memory.flows[1].is_empty());
    });
}

/// The kernel takes one tag off; of two (802.1ad, 802.1Q twice, or the older 0x9100) the inner one stands where the Ethertype
/// is looked for, and so does the only one where nobody has taken it off.
#[test]
fn rel_48_no_packet_hides_behind_a_second_vlan_tag() {
    families(|pair, v6| {
        let plain = from_a(pod(3, v6)).udp(b"x");
        let unreadable = Err(Reason::UnknownEthertype);
        for kind in [0x8100u16, 0x88a8, 0x9100] {
            let tag = [kind.to_be_bytes(), [0, 7]].concat();
            let tagged = [&plain[..12], &tag, &plain[12..]].concat();
            let twice = [&plain[..12], &tag, &tag, &plain[12..]].concat();
            for bytes in [tagged, twice] {
                // A pod neither sends nor gets it; on the node's devices it is the stack's, which has devices for VLANs.
                for (hook, device, expected) in [
                    (Hook::FromPod, ifindex::POD_A, unreadable),
                    (Hook::ToPod, ifindex::POD_B, unreadable),
                    (Hook::FromNetdev, ifindex::NETDEV, Ok(Verdict::Pass)),
                    (Hook::ToNetdev, ifindex::NETDEV, Ok(Verdict::Pass)),
                    (Hook::XdpNodeport, ifindex::NETDEV, Ok(Verdict::Pass)),
                    (Hook::FromNetdev, ifindex::TUNNEL, unreadable),
                ] {
                    let (verdict, out) = pair.run(hook, &bytes, device);
                    assert_eq!((verdict, &out), (expected, &bytes), "{hook:?}, {kind:#x}");
                    let mut beside = world::frame(bytes.clone(), device);
                    beside.vlan = true;
                    let (verdict, left) = pair.host(hook, &beside);
                    assert_eq!((verdict, &left.bytes), (expected, &bytes), "{hook:?}, {kind:#x}");
                }
            }
        }
        assert!(pair.memory.flows.iter().all(|table| table.is_empty()));
        assert_eq!(pair.kernel.flows("conntrack_new").unwrap(), 0);
    });
}

#[test]
fn rel_23_nobody_reaches_the_nodes_loopback() {
    families(|pair, v6| {
        let loopback = ip(if v6 { "::1" } else { "127.0.0.1" });
        assert_eq!(drop_of(pair, &from_a(loopback).udp(b"x")), Reason::LinkLocal);
        let other = ip(if v6 { "2001:db8::1" } else { "192.0.2.1" });
        for (src, dst) in [
            (ip(if v6 { "2001:db8::9" } else { "192.0.2.9" }), loopback),
            (loopback, other),
        ] {
            let ends = Ends {
                src,
                dst,
                ..outside(from_a(other))
            };
            let verdict = pair.run(Hook::FromNetdev, &ends.udp(b"x"), ifindex::NETDEV).0;
            assert_eq!(verdict, Err(Reason::Martian));
        }
    });
}

#[test]
fn rel_09_a_pods_address_from_outside_reaches_not_even_the_node() {
    families(|pair, v6| {
        let node = ip(if v6 { "2001:db8::1" } else { "192.0.2.1" });
        let ends = Ends {
            src: pod(2, v6),
            dst: node,
            ..outside(from_a(node))
        };
        let verdict = pair.run(Hook::FromNetdev, &ends.udp(b"x"), ifindex::NETDEV).0;
        assert_eq!(verdict, Err(Reason::Martian));
    });
}

#[test]
fn what_lies_behind_the_tunnel_does_not_come_by_another_device() {
    families(|pair, v6| {
        let remote = ip(if v6 { "fd00:3::9" } else { "10.3.0.9" });
        let ends = Ends {
            src: remote,
            dst: pod(3, v6),
            ..outside(from_a(remote))
        };
        let verdict = pair.run(Hook::FromNetdev, &ends.udp(b"x"), ifindex::NETDEV).0;
        assert_eq!(verdict, Err(Reason::Martian));
    });
}

#[test]
fn rel_47_errors_come_from_the_receiver_to_the_sender_of_the_packet_inside() {
    families(|pair, v6| {
        let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
        let to_b = from_a(pod(3, v6));
        let sent = to_b.udp(b"hello there");
        assert_eq!(pair.run(Hook::FromPod, &sent, ifindex::POD_A).0, TO_B);
        // A third pod guesses the ports.
        let third = Ends {
            src_mac: mac(ifindex::POD_STACK),
            src: pod(4, v6),
            ..from_b(to_b)
        };
        let forged = third.icmp_error(kind, code, &sent);
        let verdict = pair.run(Hook::FromPod, &forged, ifindex::POD_STACK).0;
        assert_eq!(verdict, Err(Reason::RelatedUnknown));
        // An error that is not for the one who sent the packet inside.
        let far = from_a(ip(if v6 { "fd00:2::9" } else { "10.2.0.9" }));
        let sent = far.udp(b"hello there");
        assert!(pair.run(Hook::FromPod, &sent, ifindex::POD_A).0.is_ok());
        let wrong = Ends {
            dst: pod(3, v6),
            ..outside(far)
        };
        let forged = wrong.icmp_error(kind, code, &sent);
        let verdict = pair.run(Hook::FromNetdev, &forged, ifindex::NETDEV).0;
        assert_eq!(verdict, Err(Reason::RelatedUnknown));
        // Those who may.
        let error = from_b(to_b).icmp_error(kind, code, &to_b.udp(b"hello there"));
        assert_eq!(pair.run(Hook::FromPod, &error, ifindex::POD_B).0, TO_A);
        let error = outside(far).icmp_error(kind, code, &sent);
        assert_eq!(pair.run(Hook::FromNetdev, &error, ifindex::NETDEV).0, TO_A);
    });
}

#[test]
fn rel_10_a_query_is_no_answer_whatever_its_id() {
    families(|pair, v6| {
        let open = Ends {
            src_port: 0xffff,
            ..from_a(pod(3, v6))
        };
        assert_eq!(
            pair.run(Hook::FromPod, &open.echo(false, b"x"), ifindex::POD_A).0,
            TO_B
        );
        let back = Ends {
            src_port: 0xffff,
            ..from_b(open)
        };
        assert_eq!(
            pair.run(Hook::FromPod, &back.echo(false, b"x"), ifindex::POD_B).0,
            TO_A
        );
        let flows = pair.memory.flows[1].entries();
        assert_eq!(flows.len(), 1);
        assert_eq!(
            flows[0].1.packets_reply.get(),
            0,
            "it was judged as a connection of its own"
        );
        assert_eq!(flows[0].1.source_endpoint, ifindex::POD_B);
    });
}

#[test]
fn what_cannot_begin_a_connection_begins_none() {
    families(|pair, v6| {
        for dst in [pod(3, v6), ip(if v6 { "2620:fe::9" } else { "9.9.9.9" })] {
            let ends = from_a(dst);
            assert_eq!(drop_of(pair, &ends.echo(true, b"x")), Reason::InvalidState);
            assert_eq!(drop_of(pair, &ends.tcp(RST, b"")), Reason::InvalidState);
        }
        let ends = outside(from_a(ip(if v6 { "2620:fe::9" } else { "9.9.9.9" })));
        for bytes in [ends.echo(true, b"x"), ends.tcp(RST, b"")] {
            for hook in [Hook::FromNetdev, Hook::ToPod] {
                let device = if hook == Hook::ToPod {
                    ifindex::POD_A
                } else {
                    ifindex::NETDEV
                };
                assert_eq!(pair.run(hook, &bytes, device).0, Err(Reason::InvalidState));
            }
        }
        assert!(pair.memory.flows[1].is_empty());
    });
}

#[test]
fn rel_49_a_forged_fragment_is_not_remembered() {
    families(|pair, v6| {
        let forged = Ends {
            src: pod(3, v6),
            dst: pod(4, v6),
            ..from_a(pod(3, v6))
        };
        let [first, _] = frames::fragments(&forged.udp(&[7; 100]), 48, 77);
        assert_eq!(drop_of(pair, &first), Reason::SourceAddress);
        assert!(pair.memory.fragments.is_empty());
    });
}

#[test]
fn rel_46_the_destination_that_is_judged_is_the_last_one() {
    families(|pair, v6| {
        if !v6 {
            return;
        }
        let good = from_a(pod(3, true)).udp(b"payload");
        let routing =
            |kind, left| frames::with_extensions(&good, &[(43, vec![0, 0, kind, left, 0, 0, 0, 0])]);
        assert_eq!(drop_of(pair, &routing(4, 1)), Reason::ExtensionHeader);
        assert_eq!(pair.run(Hook::FromPod, &routing(4, 0), ifindex::POD_A).0, TO_B);
    });
}

#[test]
fn an_old_translation_is_no_door() {
    families(|pair, v6| {
        let far = ip(if v6 { "2620:fe::9" } else { "9.9.9.9" });
        let node = ip(if v6 { "2001:db8::1" } else { "192.0.2.1" });
        let ends = from_a(far);
        let back = Ends {
            src: node,
            src_port: 40000,
            ..ends
        }
        .reversed();
        // A connection that both sides have ended; the far side tries to open one backwards.
        for (hook, bytes, device) in [
            (Hook::FromPod, ends.tcp(SYN, b""), ifindex::POD_A),
            (Hook::FromNetdev, back.tcp(SYN_ACK, b""), ifindex::NETDEV),
            (Hook::FromPod, ends.tcp(17, b""), ifindex::POD_A),
            (Hook::FromNetdev, back.tcp(17, b""), ifindex::NETDEV),
        ] {
            assert!(pair.run(hook, &bytes, device).0.is_ok());
        }
        let verdict = pair.run(Hook::FromNetdev, &back.tcp(SYN, b""), ifindex::NETDEV).0;
        assert_eq!(verdict, Ok(Verdict::Pass), "the stack's, which refuses it");
        // A datagram long after the conversation.
        pair.forget();
        assert!(pair.run(Hook::FromPod, &ends.udp(b"q"), ifindex::POD_A).0.is_ok());
        assert_eq!(
            pair.run(Hook::FromNetdev, &back.udp(b"a"), ifindex::NETDEV).0,
            TO_A
        );
        let later = world::monotonic() + 200_000_000_000;
        pair.memory.clock.set(later);
        let late = world::frame(back.udp(b"a"), ifindex::NETDEV);
        assert_eq!(pair.host(Hook::FromNetdev, &late).0, Ok(Verdict::Pass));
        // The same when nothing but the translation is left.
        pair.memory.flows[0].clear();
        pair.memory.flows[1].clear();
        assert_eq!(pair.host(Hook::FromNetdev, &late).0, Ok(Verdict::Pass));
    });
}
