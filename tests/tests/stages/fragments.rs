//! Fragments, in whatever order they come.

use std::net::IpAddr;

use cni_ebpf::abi::{Port, Reason};
use cni_ebpf::datapath::Verdict;
use cni_tests::frames::{self, Ends};
use cni_tests::memory::Memory;
use cni_tests::world::{self, Hook, ifindex, ip, pod, port};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

/// For how long a first fragment is remembered, in seconds.
const REMEMBERED: u64 = 60;
const SECOND: u64 = 1_000_000_000;

type Judgement = (Result<Verdict, Reason>, [Port; 2]);

fn judge(memory: &mut Memory, bytes: &[u8], device: u32) -> Judgement {
    let mut frame = world::frame(bytes.to_vec(), device);
    let (outcome, work) = super::pass(memory, Hook::FromPod, &mut frame);
    (outcome, [work.tuple.src_port, work.tuple.dst_port])
}

/// Whole datagrams to everybody that a packet can be for: pods, also one with rules, a Service, other nodes, the outside.
fn any_datagram() -> impl Strategy<Value = (Vec<u8>, u32)> {
    let sender = prop_oneof![Just((2u8, ifindex::POD_A)), Just((5, ifindex::POD_RULES))];
    let shape = (any::<bool>(), 0..3u8, 0..6usize, 60..600usize);
    (sender, shape, prop_oneof![Just(80u16), Just(8080), any::<u16>()]).prop_map(
        |((number, device), (v6, shape, to, length), dst_port)| {
            let others: [&str; 4] = if v6 {
                ["fd00:96::1", "fd00:2::9", "fd00:3::9", "2620:fe::9"]
            } else {
                ["10.96.0.1", "10.2.0.9", "10.3.0.9", "9.9.9.9"]
            };
            let pods = [pod(3, v6), pod(if number == 5 { 2 } else { 5 }, v6)];
            let everybody: Vec<IpAddr> = pods.into_iter().chain(others.map(ip)).collect();
            let service = to == 2;
            let ends = Ends {
                dst_port: if service { port::TO_B } else { dst_port },
                ..super::ends(device, pod(number, v6), everybody[to])
            };
            let payload = vec![7; length];
            let whole = match shape {
                0 => ends.tcp(super::SYN, &payload),
                1 if !service => ends.echo(false, &payload),
                _ => ends.udp(&payload),
            };
            (whole, device)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn rel_45_a_fragment_is_judged_as_its_datagram_or_dropped_before_the_first(
        (whole, device) in any_datagram(),
        cuts in btree_set(3..70usize, 1..6),
        order in vec(any::<u32>(), 7),
        waits in vec(prop_oneof![3 => Just(0), 1 => 0..REMEMBERED], 7),
    ) {
        let body = whole.len() - if whole[12] == 8 { 34 } else { 54 };
        let cuts: Vec<usize> = cuts.into_iter().map(|units| 8 * units).filter(|at| *at < body).collect();
        let as_whole = judge(&mut world::memory(), &whole, device);
        let mut memory = world::memory();
        let mut pieces: Vec<_> = frames::pieces(&whole, &cuts, 9).into_iter().enumerate().collect();
        pieces.sort_by_key(|(at, _)| order[*at]);
        let mut first = None;
        for (at, piece) in pieces {
            memory.clock.set(memory.clock.get() + waits[at] * SECOND);
            let now = memory.clock.get();
            if at == 0 {
                first = Some(now);
            }
            let expected = match first {
                Some(then) if now - then <= REMEMBERED * SECOND => as_whole,
                _ => (Err(Reason::FragmentOrphan), [Port::ZERO; 2]),
            };
            prop_assert_eq!(judge(&mut memory, &piece, device), expected, "piece {} of {:?}", at, cuts);
        }
    }
}
