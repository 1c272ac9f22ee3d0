//! Services as pods use them: ClusterIPs, affinity, hairpins, datagrams whose backend goes away.

use std::net::IpAddr;

use cni_ebpf::abi::{Addr, Backend, MemberKey, Port, Reason, Service, ServiceKey, Slot, service_scope};
use cni_ebpf::datapath::Verdict;
use cni_tests::frames::{self, Ends};
use cni_tests::world::{self, Hook, backend, ifindex, ip, place, pod, port, service_id};

use crate::Pair;
use crate::fixtures::{ACK, SYN, SYN_ACK, TO_A, TO_B, families, far, from_a, from_b};

pub(crate) fn vip(v6: bool) -> IpAddr {
    ip(if v6 { "fd00:96::1" } else { "10.96.0.1" })
}

pub(crate) fn node(v6: bool) -> IpAddr {
    ip(if v6 { "2001:db8::1" } else { "192.0.2.1" })
}

/// From pod A to a port of the ClusterIP.
pub(crate) fn dial(v6: bool, dst_port: u16) -> Ends {
    Ends {
        dst_port,
        ..from_a(vip(v6))
    }
}

/// Source and destination of a packet without options.
pub(crate) fn ends(bytes: &[u8]) -> ((IpAddr, u16), (IpAddr, u16)) {
    let v6 = bytes[12] != 8;
    let addr = |at: usize| -> IpAddr {
        if v6 {
            <[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap().into()
        } else {
            <[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap().into()
        }
    };
    let (src, dst, l4) = if v6 { (22, 38, 54) } else { (26, 30, 34) };
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    ((addr(src), port(l4)), (addr(dst), port(l4 + 2)))
}

impl Pair {
    pub(crate) fn put_backend(&mut self, id: u32, to: Option<(IpAddr, u16)>) {
        if let Some((addr, port)) = to {
            let backend = Backend {
                addr: Addr::from(addr),
                port: Port::new(port),
                ..Backend::default()
            };
            self.memory.backends.put(id, backend);
            self.kernel.backend(id, backend).unwrap();
        } else {
            self.memory.backends.remove(&id);
            self.kernel.remove_backend(id).unwrap();
        }
    }

    /// Leads a slot to a backend that there is.
    pub(crate) fn put_slot(&mut self, service: u32, slot: u32, number: u32) {
        let backend = *self.memory.backends.get(&number).unwrap();
        let value = Slot::new(service, number, backend.addr, backend.port);
        self.put_row(place(service, slot), value);
    }

    /// The same, whatever it is.
    pub(crate) fn put_row(&mut self, place: u32, value: Slot) {
        self.memory.slots.put(place, value);
        self.kernel.slot(place, &value).unwrap();
    }

    pub(crate) fn put_member(&mut self, key: MemberKey, is_one: bool) {
        if is_one {
            self.memory.members.put(key, 1);
            self.kernel.member(key).unwrap();
        } else {
            self.memory.members.remove(&key);
            self.kernel.remove_member(key).unwrap();
        }
    }

    /// With its slots where this world has them.
    pub(crate) fn put_service(&mut self, key: ServiceKey, service: Service) {
        let service = Service {
            first: place(service.id, 0),
            ..service
        };
        self.put_frontend(key, service);
    }

    pub(crate) fn put_frontend(&mut self, key: ServiceKey, service: Service) {
        self.memory.services.put(key, service);
        self.kernel.service(key, service).unwrap();
    }
}

pub(crate) fn key(addr: IpAddr, port: u16, proto: u8) -> ServiceKey {
    ServiceKey {
        addr: Addr::from(addr),
        port: Port::new(port),
        proto,
        scope: service_scope::CLUSTER,
        pad: 0,
    }
}

#[test]
fn svc_09_the_protocols_of_one_port_are_frontends_of_their_own() {
    families(|pair, v6| {
        let only_udp = key(vip(v6), 9999, 17);
        let service = Service {
            id: service_id(port::TO_B, v6, 0),
            slots: 1,
            ..Service::default()
        };
        pair.put_service(only_udp, service);
        let ends = dial(v6, 9999);
        assert_eq!(pair.run(Hook::FromPod, &ends.udp(b"x"), ifindex::POD_A).0, TO_B);
        let (verdict, _) = pair.run(Hook::FromPod, &ends.tcp(SYN, b""), ifindex::POD_A);
        assert_eq!(verdict, Err(Reason::ServiceNoBackend));
    });
}

#[test]
fn svc_20_new_connections_go_to_any_backend_alike() {
    families(|pair, v6| {
        let id = service_id(port::AFFINE, v6, 0);
        let service = Service {
            id,
            slots: 2,
            ..Service::default()
        };
        let plain = key(vip(v6), 9998, 17);
        pair.put_service(plain, service);
        let mut to_b = 0;
        for src_port in 1..=1000 {
            let ends = Ends {
                src_port,
                ..dial(v6, 9998)
            };
            let frame = world::frame(ends.udp(b"x"), ifindex::POD_A);
            let (_, out) = pair.host(Hook::FromPod, &frame);
            to_b += u32::from(self::ends(&out.bytes).1.0 == pod(3, v6));
        }
        // Five standard deviations.
        assert!((420..=580).contains(&to_b), "{to_b} of 1000");
    });
}

#[test]
fn svc_22_a_backend_sees_the_pod_itself() {
    families(|pair, v6| {
        let (_, out) = pair.run(Hook::FromPod, &dial(v6, port::TO_B).tcp(SYN, b""), ifindex::POD_A);
        assert_eq!(ends(&out), ((pod(2, v6), 33000), (pod(3, v6), 8080)));
    });
}

#[test]
fn svc_23_a_pod_reaches_itself_through_its_service() {
    families(|pair, v6| {
        let dialled = dial(v6, port::TO_A);
        for (there, answers) in [(dialled.tcp(SYN, b""), true), (dialled.udp(b"q"), false)] {
            let (verdict, out) = pair.run(Hook::FromPod, &there, ifindex::POD_A);
            assert_eq!(verdict, TO_A);
            assert_eq!(ends(&out), ((node(v6), 40000), (pod(2, v6), 8080)));
            assert!(frames::checksums_hold(&out));
            let back = Ends {
                dst_port: 40000,
                src_port: 8080,
                ..from_a(node(v6))
            };
            let back = if answers {
                back.tcp(SYN_ACK, b"")
            } else {
                back.udp(b"a")
            };
            let (verdict, out) = pair.run(Hook::FromPod, &back, ifindex::POD_A);
            assert_eq!(verdict, TO_A);
            assert_eq!(
                ends(&out),
                ((vip(v6), port::TO_A), (pod(2, v6), 33000)),
                "it comes from what was dialled"
            );
            assert!(frames::checksums_hold(&out));
        }
        let more = pair.run(Hook::FromPod, &dialled.tcp(ACK, b"data"), ifindex::POD_A);
        assert_eq!((more.0, ends(&more.1).0), (TO_A, (node(v6), 40000)));
    });
}

#[test]
fn svc_23_no_policy_keeps_a_pod_from_itself() {
    families(|pair, v6| {
        // The pod with rules may not send to port 99, and nobody may to it.
        pair.put_backend(99, Some((pod(5, v6), 99)));
        pair.put_slot(99, 0, 99);
        let service = Service {
            id: 99,
            slots: 1,
            ..Service::default()
        };
        pair.put_service(key(vip(v6), 99, 6), service);
        let own = Ends {
            src_mac: world::mac(ifindex::POD_RULES),
            src: pod(5, v6),
            ..dial(v6, 99)
        };
        let (verdict, _) = pair.run(Hook::FromPod, &own.tcp(SYN, b""), ifindex::POD_RULES);
        assert_eq!(
            verdict,
            Ok(Verdict::Peer {
                ifindex: ifindex::POD_RULES
            })
        );
        let other = dial(v6, 99).tcp(SYN, b"");
        assert_eq!(
            pair.run(Hook::FromPod, &other, ifindex::POD_A).0,
            Err(Reason::PolicyIngress)
        );
    });
}

#[test]
fn svc_24_where_everybody_is_masqueraded_the_backend_sees_the_node() {
    families(|pair, v6| {
        let dialled = dial(v6, port::HIDDEN);
        let (verdict, out) = pair.run(Hook::FromPod, &dialled.tcp(SYN, b""), ifindex::POD_A);
        assert_eq!(
            (verdict, ends(&out)),
            (TO_B, ((node(v6), 40000), (pod(3, v6), 8080)))
        );
        let seen = Ends {
            src: node(v6),
            src_port: 40000,
            dst: pod(3, v6),
            ..from_a(node(v6))
        };
        let (verdict, out) = pair.run(Hook::FromPod, &from_b(seen).tcp(SYN_ACK, b""), ifindex::POD_B);
        assert_eq!(verdict, TO_A);
        assert_eq!(ends(&out), ((vip(v6), port::HIDDEN), (pod(2, v6), 33000)));
    });
}

#[test]
fn svc_49_svc_50_a_client_stays_with_its_backend_until_its_time_is_over() {
    families(|pair, v6| {
        let backend_of = |pair: &mut Pair, src_port| {
            let ends = Ends {
                src_port,
                ..dial(v6, port::AFFINE)
            };
            let (_, out) = pair.run(Hook::FromPod, &ends.udp(b"x"), ifindex::POD_A);
            self::ends(&out).1.0
        };
        // Which of the two it is differs between the builds, so both are asked for what cannot differ.
        pin(pair, v6, backend::POD_B);
        for src_port in 1..=20 {
            assert_eq!(backend_of(pair, src_port), pod(3, v6));
        }
        // In memory alone: the kernel's clock is not ours.
        let key = pair.memory.affinity.entries()[0].0;
        let age = |pair: &mut Pair, seconds: u64| {
            let last = pair.memory.affinity.entries()[0].1.clone();
            last.seen.set(pair.memory.clock.get() - seconds * 1_000_000_000);
            pair.memory.affinity.put(key, last);
        };
        let mut moved = 0;
        for round in 0..40u16 {
            pin_memory(pair, v6, backend::POD_B);
            age(pair, if round < 20 { 99 } else { 101 });
            let ends = Ends {
                src_port: 1000 + round,
                ..dial(v6, port::AFFINE)
            };
            let (_, out) = pair.host(Hook::FromPod, &world::frame(ends.udp(b"x"), ifindex::POD_A));
            let elsewhere = self::ends(&out.bytes).1.0 != pod(3, v6);
            assert!(round >= 20 || !elsewhere, "its time is not over");
            moved += u32::from(elsewhere);
            let seen = pair.memory.affinity.entries()[0].1.seen.get();
            assert_eq!(seen, pair.memory.clock.get(), "every new connection prolongs it");
        }
        assert!(moved > 0, "nobody is bound for ever");
    });
}

/// Binds pod A to a backend of the Service with affinity.
fn pin(pair: &mut Pair, v6: bool, to: u32) {
    pin_memory(pair, v6, to);
    let (key, last) = pair.memory.affinity.entries()[0].clone();
    pair.kernel.affinity(key, &last).unwrap();
}

fn pin_memory(pair: &mut Pair, v6: bool, to: u32) {
    use cni_ebpf::abi::{Affinity, AffinityKey, Racy, client_kind};
    let key = AffinityKey {
        client: Addr::from(pod(2, v6)),
        service: service_id(port::AFFINE, v6, 0),
        kind: client_kind::ADDRESS,
    };
    let last = Affinity {
        seen: Racy::new(world::monotonic()),
        backend: to + if v6 { backend::V6 } else { 0 },
        pad: 0,
    };
    pair.memory.affinity.put(key, last);
}

#[test]
fn svc_51_affinity_to_a_backend_that_left_is_dropped() {
    families(|pair, v6| {
        let id = service_id(port::AFFINE, v6, 0);
        let offset = if v6 { backend::V6 } else { 0 };
        pin(pair, v6, backend::POD_B);
        // B is used no longer: both slots are A's.
        pair.put_slot(id, 1, backend::POD_A + offset);
        let member = MemberKey {
            service: id,
            backend: backend::POD_B + offset,
        };
        pair.put_member(member, false);
        let own = dial(v6, port::AFFINE);
        let (verdict, out) = pair.run(Hook::FromPod, &own.udp(b"x"), ifindex::POD_A);
        assert_eq!((verdict, ends(&out).1.0), (TO_A, pod(2, v6)));
        assert_eq!(
            pair.memory.affinity.entries()[0].1.backend,
            backend::POD_A + offset
        );
        pair.put_slot(id, 1, backend::POD_B + offset);
        pair.put_member(member, true);
    });
}

#[test]
fn svc_52_a_stream_stays_with_its_backend_whatever_becomes_of_the_service() {
    families(|pair, v6| {
        let offset = if v6 { backend::V6 } else { 0 };
        let dialled = dial(v6, port::TO_B);
        assert_eq!(
            pair.run(Hook::FromPod, &dialled.tcp(SYN, b""), ifindex::POD_A).0,
            TO_B
        );
        pair.put_backend(backend::POD_B + offset, None);
        let refused = Service {
            flags: cni_ebpf::abi::service_flags::REJECT,
            ..Service::default()
        };
        pair.put_service(key(vip(v6), port::TO_B, 6), refused);
        let (verdict, out) = pair.run(Hook::FromPod, &dialled.tcp(ACK, b"data"), ifindex::POD_A);
        assert_eq!((verdict, ends(&out).1.0), (TO_B, pod(3, v6)));
        pair.put_backend(backend::POD_B + offset, Some((pod(3, v6), 8080)));
    });
}

#[test]
fn svc_53_datagrams_leave_a_backend_that_serves_no_longer() {
    families(|pair, v6| {
        let offset = if v6 { backend::V6 } else { 0 };
        let id = service_id(port::TO_B, v6, 0);
        let dialled = dial(v6, port::TO_B);
        let send = |pair: &mut Pair| {
            let (_, out) = pair.run(Hook::FromPod, &dialled.udp(b"x"), ifindex::POD_A);
            ends(&out).1.0
        };
        assert_eq!(send(pair), pod(3, v6));
        // It is out of the Service and serves still (terminating): nothing changes.
        pair.put_slot(id, 0, backend::POD_A + offset);
        assert_eq!(send(pair), pod(3, v6), "who terminates may end what it began");
        // It serves no longer.
        pair.put_backend(backend::POD_B + offset, None);
        assert_eq!(send(pair), pod(2, v6));
        assert_eq!(send(pair), pod(2, v6), "and stays there");
        // Nobody serves: what there is is left alone.
        pair.put_backend(backend::POD_A + offset, None);
        assert_eq!(send(pair), pod(2, v6));
        for (number, address) in [(backend::POD_A, 2), (backend::POD_B, 3)] {
            pair.put_backend(number + offset, Some((pod(address, v6), 8080)));
        }
        pair.put_slot(id, 0, backend::POD_B + offset);
    });
}

#[test]
fn svc_54_datagrams_that_began_without_a_service_find_it() {
    families(|pair, v6| {
        // An address outside of the Service range: what is sent there leaves the cluster.
        let external = far(v6);
        let own = Ends {
            dst_port: 53,
            ..from_a(external)
        };
        let send = |pair: &mut Pair| pair.run(Hook::FromPod, &own.udp(b"x"), ifindex::POD_A).0;
        assert_eq!(send(pair), crate::fixtures::gateway(v6));
        let service = Service {
            id: service_id(port::TO_B, v6, 0),
            slots: 1,
            ..Service::default()
        };
        pair.put_service(key(external, 53, 17), service);
        assert_eq!(send(pair), TO_B);
        assert_eq!(send(pair), TO_B);
    });
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 }
        })
    })
}

/// With its checksum.
pub(crate) fn sealed(mut frame: Vec<u8>, v6: bool) -> Vec<u8> {
    let l4 = if v6 { 54 } else { 34 };
    frame[l4 + 8..l4 + 12].fill(0);
    let sum = crc32c(&frame[l4..]);
    frame[l4 + 8..l4 + 12].copy_from_slice(&sum.to_le_bytes());
    frame
}

#[test]
fn svc_56_sctp_is_forwarded_with_its_port_and_checksum_rewritten() {
    families(|pair, v6| {
        for length in [0, 1, 4, 7, 100, 1200] {
            let dialled = Ends {
                src_port: 20000 + length,
                ..dial(v6, port::TO_B)
            };
            let chunk = vec![0xa5; usize::from(length)];
            let (verdict, out) = pair.run(Hook::FromPod, &sealed(dialled.sctp(&chunk), v6), ifindex::POD_A);
            assert_eq!((verdict, ends(&out).1), (TO_B, (pod(3, v6), 8080)));
            assert_eq!(out, sealed(out.clone(), v6), "{length} bytes");
            // A device that is to compute it finds zero.
            let (_, out) = pair.run(Hook::FromPod, &dialled.sctp(&chunk), ifindex::POD_A);
            let l4 = if v6 { 54 } else { 34 };
            assert_eq!(out[l4 + 8..l4 + 12], [0; 4]);
        }
    });
}

#[test]
fn svc_58_all_parts_of_a_datagram_go_to_one_backend() {
    families(|pair, v6| {
        pin(pair, v6, backend::POD_B);
        let whole = dial(v6, port::AFFINE).udp(&[7; 200]);
        for part in frames::fragments(&whole, 96, 77) {
            let (verdict, out) = pair.run(Hook::FromPod, &part, ifindex::POD_A);
            assert_eq!((verdict, ends(&out).1.0), (TO_B, pod(3, v6)));
        }
        let [_, orphan] = frames::fragments(&whole, 96, 78);
        let (verdict, _) = pair.run(Hook::FromPod, &orphan, ifindex::POD_A);
        assert_eq!(verdict, Err(Reason::FragmentOrphan));
    });
}

#[test]
fn events_name_what_was_dialled() {
    families(|pair, v6| {
        let dialled = dial(v6, port::TO_B);
        let (_, _) = pair.run(Hook::FromPod, &dialled.tcp(SYN, b""), ifindex::POD_A);
        let told = pair.events[0];
        assert_eq!(
            (told.dnat, told.dnat_port, told.service),
            (
                Addr::from(vip(v6)),
                Port::new(port::TO_B),
                service_id(port::TO_B, v6, 0)
            )
        );
        let (_, _) = pair.run(Hook::FromPod, &from_a(pod(3, v6)).udp(b"x"), ifindex::POD_A);
        assert_eq!(pair.events[0].dnat, Addr::UNSPECIFIED);
    });
}
