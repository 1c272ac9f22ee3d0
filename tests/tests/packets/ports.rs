//! Translated ports: all of them are used, and none that a socket of the host has.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use cni_ebpf::abi::{Addr, Port, Reason, Tuple, direction};
use cni_ebpf::datapath::conntrack::SECOND;
use cni_ebpf::datapath::{Table, Tables, Work};
use cni_tests::frames::Ends;
use cni_tests::memory::Memory;
use cni_tests::world::{self, Hook, ifindex, ip};

use socket2::{Domain, Socket, Type};

use crate::fixtures::{ACK, SYN, families, far, from_a, gateway};

fn node(v6: bool) -> IpAddr {
    ip(if v6 { "2001:db8::1" } else { "192.0.2.1" })
}

/// The port with which a datagram leaves.
fn translated(memory: &mut Memory, ends: Ends) -> Result<u16, Reason> {
    let mut frame = world::frame(ends.udp(b"q"), ifindex::POD_A);
    let outcome = world::run(memory, Hook::FromPod, &mut frame, &mut Work::default());
    memory.settle();
    let l4 = if ends.src.is_ipv6() { 54 } else { 34 };
    outcome.map(|_| u16::from_be_bytes([frame.bytes[l4], frame.bytes[l4 + 1]]))
}

#[test]
fn rel_39_nearly_every_port_is_given_before_one_is_refused() {
    // Powers of two, and what is none.
    for (first, last) in [(32_768u32, 34_815u32), (20_000, 22_099), (20_000, 20_002)] {
        for v6 in [false, true] {
            let mut memory = world::memory();
            (memory.config.snat_first, memory.config.snat_last) = (first, last);
            let ends = from_a(far(v6));
            let mut given = BTreeSet::new();
            let refused = (1024..=u16::MAX).find_map(|src_port| {
                match translated(&mut memory, Ends { src_port, ..ends }) {
                    Ok(port) => {
                        assert!((first..=last).contains(&u32::from(port)), "{port}");
                        assert!(given.insert(port), "{port} was given twice towards one place");
                        None
                    }
                    Err(reason) => Some(reason),
                }
            });
            assert_eq!(refused, Some(Reason::NatExhausted));
            let range = (last - first + 1) as usize;
            assert!(given.len() * 100 >= range * 99, "{} of {range}", given.len());
            let counts = memory.counts.borrow().clone();
            assert_eq!(
                counts.get(&(Reason::NatExhausted as u8, direction::EGRESS)),
                Some(&1)
            );
            // The same ports serve every other place.
            let elsewhere = Ends { dst_port: 1, ..ends };
            assert!(translated(&mut memory, elsewhere).is_ok());
            // What is refused leaves nothing.
            assert_eq!(memory.flows[1].len(), given.len() + 1);
            assert_eq!(memory.aliases[1].len(), given.len() + 1);
        }
    }
}

#[test]
fn rel_39_who_asks_again_where_no_port_is_free_costs_no_whole_search() {
    for v6 in [false, true] {
        let mut memory = world::memory();
        // A whole search finds each of so few.
        (memory.config.snat_first, memory.config.snat_last) = (20_000, 20_511);
        let ends = from_a(far(v6));
        let mut sources = (1024..).map(|src_port| Ends { src_port, ..ends });
        let mut ask = |memory: &mut Memory| translated(memory, sources.next().unwrap());
        for _ in 0..512 {
            assert!(ask(&mut memory).is_ok());
        }
        assert_eq!(ask(&mut memory), Err(Reason::NatExhausted));
        // Longer than an alias without a flow is spared.
        memory.clock.set(memory.clock.get() + 3 * SECOND);
        assert_eq!(ask(&mut memory), Err(Reason::NatExhausted));
        // One of 512 is free: a whole search finds it each time, one of sixteen ports hardly ever. It was taken long ago: what
        // was taken just now is spared.
        let mut old = memory.flows[1].entries().into_iter();
        let mut free_one = |memory: &mut Memory| memory.remove_flow(Table::New, &old.next().unwrap().0);
        free_one(&mut memory);
        let refused = (0..20).filter(|_| {
            let answer = ask(&mut memory);
            if answer.is_ok() {
                free_one(&mut memory);
            }
            answer.is_err()
        });
        assert!(refused.count() > 10);
        let elsewhere = Ends { dst_port: 1, ..ends };
        assert!(
            translated(&mut memory, elsewhere).is_ok(),
            "another place has its own"
        );
        memory.clock.set(memory.clock.get() + SECOND / 10);
        assert!(ask(&mut memory).is_ok(), "a failure is remembered for long");
    }
}

#[test]
fn rel_39_a_connection_whose_entry_is_lost_goes_on_under_its_port() {
    for (first, last) in [(32_768, 65_535), (20_000, 22_099)] {
        for v6 in [false, true] {
            let mut memory = world::memory();
            (memory.config.snat_first, memory.config.snat_last) = (first, last);
            let ends = from_a(far(v6));
            let send = |memory: &mut Memory, flags, sockets: &[Tuple]| {
                let mut frame = world::frame(ends.tcp(flags, b""), ifindex::POD_A);
                frame.sockets = sockets.to_vec();
                let outcome = world::run(memory, Hook::FromPod, &mut frame, &mut Work::default());
                assert_eq!(outcome, gateway(v6));
                let (_, flow) = memory.flows[1].entries().remove(0);
                memory.flows[1].clear();
                flow.snat_port.get()
            };
            let answer = |port| Tuple {
                proto: 6,
                ..answer(ends, port)
            };
            let favourite = send(&mut memory, SYN, &[]);
            memory.forget();
            let given = send(&mut memory, SYN, &[answer(favourite)]);
            assert_ne!(given, favourite);
            // Its favourite is free now, but the other side knows it by this one.
            assert_eq!(send(&mut memory, ACK, &[]), given);
            assert_eq!(memory.aliases[1].len(), 1);
            // Nobody knows one that begins.
            assert_eq!(send(&mut memory, SYN, &[]), favourite);
        }
    }
}

/// The answer to a datagram that left with this port.
fn answer(ends: Ends, port: u16) -> Tuple {
    Tuple {
        src: Addr::from(ends.dst),
        dst: Addr::from(node(ends.src.is_ipv6())),
        src_port: Port::new(ends.dst_port),
        dst_port: Port::new(port),
        proto: 17,
        ..Tuple::default()
    }
}

#[test]
fn svc_59_rel_39_a_port_with_a_socket_behind_it_is_not_given() {
    for v6 in [false, true] {
        let mut memory = world::memory();
        (memory.config.snat_first, memory.config.snat_last) = (40_000, 40_003);
        let ends = from_a(far(v6));
        let taken = [40_000, 40_001, 40_003].map(|port| answer(ends, port));
        let mut frame = world::frame(ends.udp(b"q"), ifindex::POD_A);
        frame.sockets = taken.to_vec();
        let outcome = world::run(&memory, Hook::FromPod, &mut frame, &mut Work::default());
        assert_eq!(outcome, gateway(v6));
        let (_, flow) = memory.flows[1].entries().remove(0);
        assert_eq!(flow.snat_port.get(), 40_002, "the only one without a socket");
        memory.forget();
        let mut frame = world::frame(ends.udp(b"q"), ifindex::POD_A);
        frame.sockets = (40_000..=40_003).map(|port| answer(ends, port)).collect();
        let outcome = world::run(&memory, Hook::FromPod, &mut frame, &mut Work::default());
        assert_eq!(outcome, Err(Reason::NatExhausted));
    }
}

/// A socket of the host in the namespace of the calling thread, which heeds answers from there on.
fn hold(at: SocketAddr, tcp: bool) -> Socket {
    let kind = if tcp { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(Domain::for_address(at), kind, None).unwrap();
    socket.bind(&at.into()).unwrap();
    if tcp {
        socket.listen(1).unwrap();
    }
    socket
}

#[test]
fn svc_59_rel_39_the_kernel_knows_the_hosts_sockets() {
    families(|pair, v6| {
        let ends = from_a(far(v6));
        let there = SocketAddr::new(ends.dst, ends.dst_port);
        let any = cni_tests::traffic::any(!v6).ip();
        for (tcp, address, connected) in [
            (true, node(v6), None),
            (true, any, None),
            (false, node(v6), None),
            (false, any, None),
            (false, node(v6), Some(there)),
        ] {
            let what = format!("TCP {tcp}, {address}, {connected:?}");
            let packet = |ends: Ends| if tcp { ends.tcp(SYN, b"") } else { ends.udp(b"q") };
            let holder = hold(SocketAddr::new(address, 40_000), tcp);
            if let Some(peer) = connected {
                holder.connect(&peer.into()).unwrap();
            }
            let mut frame = world::frame(packet(ends), ifindex::POD_A);
            let mut tuple = answer(ends, 40_000);
            tuple.proto = if tcp { 6 } else { 17 };
            frame.sockets = vec![tuple];
            assert_eq!(
                pair.run_frame(Hook::FromPod, &frame).0,
                Err(Reason::NatExhausted),
                "{what}"
            );
            if connected.is_some() {
                // It hears nobody else.
                let other = Ends { dst_port: 1, ..ends };
                let verdict = pair.run(Hook::FromPod, &packet(other), ifindex::POD_A).0;
                assert_eq!(verdict, gateway(v6), "{what}");
            }
            drop(holder);
            let verdict = pair.run(Hook::FromPod, &packet(ends), ifindex::POD_A).0;
            assert_eq!(verdict, gateway(v6), "without {what}");
            pair.forget();
        }
    });
}
