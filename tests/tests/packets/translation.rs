//! Services, masquerade, and the ICMP errors of both.

use std::net::IpAddr;

use cni_ebpf::abi::Reason;
use cni_tests::frames::{self, Ends};
use cni_tests::world::{Hook, ifindex, ip, pod};

use crate::fixtures::{ACK, SYN, SYN_ACK, TO_A, TO_B, drop_of, families, from_a, from_b, gateway, outside};

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
