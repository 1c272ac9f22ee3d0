//! Clients from outside who are given the same endpoint by every node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cni_ebpf::abi::{Addr, Port, Tuple};
use cni_ebpf::datapath::maglev;
use cni_tests::frames::Ends;
use cni_tests::world::{MAGLEV, MAGLEV_SIZE, backend, ip, pod, port};

use crate::Pair;
use crate::external::{arrive, outside};
use crate::fixtures::{SYN, TO_B, families};
use crate::services::ends;

fn address(number: u32, v6: bool) -> IpAddr {
    match number {
        backend::POD_A => pod(2, v6),
        backend::POD_B => pod(3, v6),
        backend::ROUTED => ip(if v6 { "fd00:2::9" } else { "10.2.0.9" }),
        _ => ip(if v6 { "fd00:3::9" } else { "10.3.0.9" }),
    }
}

/// Whom the table has in the client's place.
fn due(ends: &Ends, proto: u8, whole_client: bool) -> IpAddr {
    let tuple = Tuple {
        src: Addr::from(ends.src),
        src_port: Port::new(ends.src_port),
        proto,
        ..Tuple::default()
    };
    let place = maglev::hash(&tuple, whole_client) % MAGLEV_SIZE;
    address(MAGLEV[place as usize % MAGLEV.len()], ends.src.is_ipv6())
}

/// Whom a client's first packet goes to.
fn chosen(pair: &mut Pair, bytes: &[u8]) -> IpAddr {
    let (verdict, out) = arrive(pair, bytes);
    verdict.unwrap();
    pair.forget();
    ends(&out).1.0
}

#[test]
fn a_clients_place_in_the_table_says_its_endpoint() {
    families(|pair, v6| {
        let mut seen = BTreeSet::new();
        for src_port in 50_000..50_024 {
            let dialled = Ends {
                src_port,
                ..outside(v6, port::NODE_MAGLEV)
            };
            let (stream, datagram) = (due(&dialled, 6, false), due(&dialled, 17, false));
            assert_eq!(chosen(pair, &dialled.tcp(SYN, b"")), stream);
            assert_eq!(chosen(pair, &dialled.udp(b"x")), datagram);
            seen.extend([stream, datagram]);
        }
        assert_eq!(seen.len(), MAGLEV.len(), "each of them gets some");
    });
}

#[test]
fn svc_49_with_affinity_all_connections_of_a_client_have_one_place() {
    families(|pair, v6| {
        let mut seen = BTreeSet::new();
        for last in 1..12 {
            let (mut dialled, mut found) = (outside(v6, port::NODE_MAGLEV_AFFINE), BTreeSet::new());
            dialled.src = ip(&if v6 {
                format!("2620:fe::{last}")
            } else {
                format!("9.9.9.{last}")
            });
            for src_port in 50_000..50_004 {
                dialled.src_port = src_port;
                found.insert(chosen(pair, &dialled.tcp(SYN, b"")));
            }
            assert_eq!(found, BTreeSet::from([due(&dialled, 6, true)]));
            seen.append(&mut found);
        }
        assert!(seen.len() > 1);
    });
}

#[test]
fn without_its_table_a_frontend_gives_any_of_its_endpoints() {
    families(|pair, v6| {
        let bytes = outside(v6, port::NODE_MAGLEV_LOST).tcp(SYN, b"");
        assert_eq!(arrive(pair, &bytes).0, TO_B);
    });
}
