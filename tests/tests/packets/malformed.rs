//! Headers and senders that must not pass, and odd ones that must.

use cni_ebpf::abi::Reason;
use cni_ebpf::datapath::Verdict;
use cni_tests::frames::{self, Ends};
use cni_tests::world::{Hook, ifindex, ip, pod};

use crate::fixtures::{TO_B, drop_of, families, from_a, gateway};

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
        let expired = Ends { ttl: 0, ..expiring };
        let (verdict, out) = pair.run(Hook::FromPod, &expired.udp(b"x"), ifindex::POD_A);
        assert_eq!((verdict, out), (Ok(Verdict::Pass), expired.udp(b"x")));
        assert_eq!(drop_of(pair, &good[..20]), Reason::Truncated);
        for words in 1..=10u8 {
            // The datagram ends inside of its header.
            let mut short = frames::with_options(&good, &vec![1; usize::from(words) * 4]);
            short[17] = 20 + words * 4 - 1;
            frames::fix_ipv4(&mut short);
            assert_eq!(
                drop_of(pair, &short),
                Reason::Malformed,
                "{words} words of options"
            );
        }
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
        // An authentication header counts its length in units of four bytes, less two.
        let authentication = |words: u8| {
            let mut header = vec![0; (usize::from(words) + 2) * 4];
            header[1] = words;
            (51, header)
        };
        for headers in [
            vec![authentication(0)],
            vec![authentication(4)],
            vec![(0, header()), authentication(2), (60, header())],
        ] {
            let bytes = frames::with_extensions(&good, &headers);
            assert_eq!(
                pair.run(Hook::FromPod, &bytes, ifindex::POD_A).0,
                TO_B,
                "{headers:?}"
            );
        }
        let mut long = frames::with_extensions(&good, &[authentication(4)]);
        long[14 + 40 + 1] = 200;
        assert_eq!(drop_of(pair, &long), Reason::Malformed);
        // A whole datagram in one fragment (RFC 6946), with headers before and behind the fragment's own.
        for numbers in [[0, 44, 60], [60, 44, 60], [44, 60, 60]] {
            assert_eq!(
                pair.run(Hook::FromPod, &chain(&numbers), ifindex::POD_A).0,
                TO_B,
                "{numbers:?}"
            );
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
fn rel_48_udp_without_checksum_stays_without() {
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
