//! How long a silent connection is known, and what an hour without anybody to clean up does. In memory, where the clock
//! can be moved and a table be small.

use cni_ebpf::abi::{Reason, direction, tcp_state};
use cni_ebpf::datapath::{Verdict, Work, conntrack};
use cni_tests::frames::Ends;
use cni_tests::memory::{Memory, Room};
use cni_tests::world::{self, Hook, ifindex, ip, pod};

use crate::fixtures::{ACK, WHOLE_LIFE, far, from_a, from_b, outside};

const SECOND: u64 = conntrack::SECOND;

fn send(memory: &mut Memory, hook: Hook, bytes: Vec<u8>, device: u32) -> Result<Verdict, Reason> {
    let mut frame = world::frame(bytes, device);
    let outcome = world::run(memory, hook, &mut frame, &mut Work::default());
    memory.settle();
    outcome
}

/// Opens a flow, puts it into `state` and the table at this index, and says whether a packet finds it after so many
/// seconds of silence.
fn is_known(bytes: &[u8], state: u8, table: usize, silence: u64) -> bool {
    let mut memory = world::memory();
    assert!(send(&mut memory, Hook::FromPod, bytes.to_vec(), ifindex::POD_A).is_ok());
    let (key, flow) = memory.flows[1].entries().remove(0);
    let created = flow.created;
    flow.state.set(state);
    memory.flows[1].remove(&key);
    memory.flows[table].put(key, flow);
    memory.clock.set(created + silence * SECOND);
    assert!(send(&mut memory, Hook::FromPod, bytes.to_vec(), ifindex::POD_A).is_ok());
    let found = [0, 1].map(|table| memory.flows[table].entries());
    let found: Vec<u64> = found.iter().flatten().map(|(_, flow)| flow.created).collect();
    assert_eq!(found.len(), 1, "one connection, in one table");
    found[0] == created
}

#[test]
fn rel_38_a_silent_connection_is_over_when_its_state_says_and_not_before() {
    use tcp_state::{CLOSED, ESTABLISHED, FIN_WAIT, NEW, TIME_WAIT};
    for v6 in [false, true] {
        let ends = from_a(pod(3, v6));
        let (tcp, udp, sctp) = (ends.tcp(ACK, b"x"), ends.udp(b"x"), ends.sctp(b"x"));
        let echo = ends.echo(false, b"x");
        for (bytes, state, seconds) in [
            (&tcp, NEW, 60),
            (&tcp, ESTABLISHED, 24 * 3600),
            (&tcp, FIN_WAIT, 3600),
            (&tcp, TIME_WAIT, 30),
            (&tcp, CLOSED, 10),
            (&udp, NEW, 60),
            (&udp, ESTABLISHED, 180),
            (&sctp, NEW, 60),
            (&sctp, ESTABLISHED, 6 * 3600),
            (&echo, NEW, 30),
            (&echo, ESTABLISHED, 30),
        ] {
            for table in [0, 1] {
                let known = [seconds, seconds + 1].map(|silence| is_known(bytes, state, table, silence));
                assert_eq!(
                    known,
                    [true, false],
                    "IPv6 {v6}, state {state}, table {table}, {seconds} s"
                );
            }
        }
    }
}

/// A connection between two pods from its first packet to its last.
fn whole_connection(memory: &mut Memory, ends: Ends) {
    for (flags, forward) in WHOLE_LIFE {
        let (ends, device) = if forward {
            (ends, ifindex::POD_A)
        } else {
            (from_b(ends), ifindex::POD_B)
        };
        let outcome = send(memory, Hook::FromPod, ends.tcp(flags, b""), device);
        assert!(outcome.is_ok(), "{ends:?}, flags {flags}: {outcome:?}");
    }
}

/// A datagram to the outside and its answer. Gives the port that the outside saw.
fn question(memory: &mut Memory, ends: Ends) -> u16 {
    let v6 = ends.src.is_ipv6();
    let mut frame = world::frame(ends.udp(b"q"), ifindex::POD_A);
    let outcome = world::run(memory, Hook::FromPod, &mut frame, &mut Work::default());
    assert!(outcome.is_ok(), "{ends:?}: {outcome:?}");
    let l4 = if v6 { 54 } else { 34 };
    let port = u16::from_be_bytes([frame.bytes[l4], frame.bytes[l4 + 1]]);
    let seen = Ends {
        src: ip(if v6 { "2001:db8::1" } else { "192.0.2.1" }),
        src_port: port,
        ..ends
    };
    let answer = outside(seen).udp(b"a");
    let outcome = send(memory, Hook::FromNetdev, answer, ifindex::NETDEV);
    assert!(outcome.is_ok(), "the answer to {seen:?}: {outcome:?}");
    port
}

#[test]
fn rel_38_an_hour_of_churn_without_an_agent_costs_no_connection() {
    const TABLE: usize = 512;
    for v6 in [false, true] {
        let mut memory = world::memory();
        (memory.config.snat_first, memory.config.snat_last) = (40_000, 49_999);
        for table in memory.flows.iter_mut() {
            table.room = Room::Lru(TABLE);
        }
        for table in memory.aliases.iter_mut() {
            table.room = Room::Lru(TABLE);
        }
        let lasting: Vec<Ends> = (1..=4)
            .map(|src_port| Ends {
                src_port,
                ..from_a(far(v6))
            })
            .collect();
        let ports: Vec<u16> = lasting.iter().map(|ends| question(&mut memory, *ends)).collect();
        let mut number = 0u16;
        for _ in 0..3600 {
            memory.clock.set(memory.clock.get() + SECOND);
            // Eight connections a second: 28,800 in all, fifty times what a table has room for.
            for _ in 0..4 {
                number += 1;
                let src_port = 10_000 + number % 50_000;
                whole_connection(
                    &mut memory,
                    Ends {
                        src_port,
                        ..from_a(pod(3, v6))
                    },
                );
                question(
                    &mut memory,
                    Ends {
                        src_port,
                        ..from_a(far(v6))
                    },
                );
            }
            if number.is_multiple_of(80) {
                // Every twenty seconds each of the lasting ones speaks, and is still the same.
                for (ends, port) in lasting.iter().zip(&ports) {
                    assert_eq!(question(&mut memory, *ends), *port, "{ends:?}");
                }
            }
        }
        assert_eq!(memory.flows[0].len(), TABLE, "the table was full");
        let dropped: u64 = memory
            .counts
            .borrow()
            .iter()
            .filter(|((reason, _), _)| *reason != 0)
            .map(|(_, count)| *count)
            .sum();
        assert_eq!(dropped, 0);
        let passed = memory.counts.borrow()[&(0, direction::EGRESS)];
        assert!(passed > 80_000, "{passed} packets");
    }
}
