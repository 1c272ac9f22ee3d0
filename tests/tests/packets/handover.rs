//! Programs of another layout take over: connections that the old ones have let through may be unknown for a moment.

use cni_ebpf::abi::{Port, Reason, Settings, Tuple};
use cni_ebpf::datapath::{BACK, Verdict};
use cni_tests::frames::Ends;
use cni_tests::world::{self, Hook, Kernel, ifindex, mac, pod, port};

use crate::external::{answer_to, arrive, outside};
use crate::fixtures::{ACK, RST, SYN, SYN_ACK, TO_B, families, from_a, from_b, from_pod};
use crate::services::dial;
use crate::{Pair, privileged};

/// From one packet to the next.
fn unsettled(pair: &mut Pair, until: u64) {
    pair.memory.settings.unsettled_until = until;
}

/// In the host build alone: the other one's settings are not changed.
fn outcome(pair: &mut Pair, hook: Hook, bytes: Vec<u8>, ifindex: u32) -> Result<Verdict, Reason> {
    pair.host(hook, &world::frame(bytes, ifindex)).0
}

fn forget_flows(pair: &mut Pair) {
    pair.memory.flows.iter_mut().for_each(|table| table.clear());
}

#[test]
fn rel_29_what_pods_send_amidst_an_unknown_connection_waits_until_it_is_known() {
    families(|pair, v6| {
        let client = dial(v6, port::TO_B);
        let from_pod = |pair: &mut Pair, bytes| outcome(pair, Hook::FromPod, bytes, ifindex::POD_A);
        unsettled(pair, u64::MAX);
        // Another endpoint would reset it.
        assert_eq!(from_pod(pair, client.tcp(ACK, b"x")), Err(Reason::Unsettled));
        // And its own answer would come from an address that the client did not dial.
        let backend = Ends {
            dst: pod(3, v6),
            dst_port: 8080,
            ..client
        };
        for flags in [SYN_ACK, RST] {
            let answer = from_b(backend).tcp(flags, b"");
            assert_eq!(
                outcome(pair, Hook::FromPod, answer, ifindex::POD_B),
                Err(Reason::Unsettled)
            );
        }
        // What begins is held back by nobody, and known from then on.
        assert_eq!(from_pod(pair, client.tcp(SYN, b"")), TO_B);
        assert_eq!(from_pod(pair, client.tcp(ACK, b"x")), TO_B);
        // It ends without an agent.
        forget_flows(pair);
        unsettled(pair, 1);
        assert_eq!(from_pod(pair, client.tcp(ACK, b"x")), TO_B);
    });
}

#[test]
fn rel_29_what_arrives_amidst_an_unknown_connection_is_the_stacks_only_with_a_socket() {
    families(|pair, v6| {
        let to_node = outside(v6, port::NODE_REMOTE);
        let from_netdev = |pair: &mut Pair, bytes| outcome(pair, Hook::FromNetdev, bytes, ifindex::NETDEV);
        let (verdict, out) = arrive(pair, &to_node.tcp(SYN, b""));
        verdict.unwrap();
        let answer = answer_to(&out, [2, 9, 9, 9, 9, 9], mac(ifindex::NETDEV)).tcp(SYN_ACK, b"");
        forget_flows(pair);
        unsettled(pair, u64::MAX);
        assert_eq!(from_netdev(pair, answer), Err(Reason::Unsettled));
        let stranger = outside(v6, port::EMPTY);
        assert_eq!(from_netdev(pair, stranger.tcp(ACK, b"x")), Err(Reason::Unsettled));
        let mut frame = world::frame(stranger.tcp(ACK, b"x"), ifindex::NETDEV);
        frame.sockets.push(Tuple {
            src: stranger.src.into(),
            dst: stranger.dst.into(),
            src_port: Port::new(stranger.src_port),
            dst_port: Port::new(stranger.dst_port),
            proto: 6,
            ..Tuple::default()
        });
        assert_eq!(pair.host(Hook::FromNetdev, &frame).0, Ok(Verdict::Pass));
        unsettled(pair, 0);
        assert_eq!(from_netdev(pair, stranger.tcp(ACK, b"x")), Ok(Verdict::Pass));
    });
}

#[test]
fn rel_29_what_may_begin_a_connection_is_asked_about_and_goes_on_where_it_comes_back() {
    families(|pair, v6| {
        let datagram = from_a(pod(3, v6)).udp(b"x");
        let asks = outside(v6, port::NODE_REMOTE).udp(b"x");
        unsettled(pair, 0);
        let (verdict, out) = arrive(pair, &asks);
        verdict.unwrap();
        // Its translated tuple stands where both loads see it, and the connection behind that does not.
        let answer = answer_to(&out, [2, 9, 9, 9, 9, 9], mac(ifindex::NETDEV)).udp(b"x");
        // Of the node itself: the other load may know that a client dialled another address.
        let of_node = outside(v6, port::EMPTY).reversed();
        let packets = [
            (Hook::FromPod, datagram, ifindex::POD_A),
            (Hook::FromNetdev, answer, ifindex::NETDEV),
            (Hook::FromNetdev, asks, ifindex::NETDEV),
            (Hook::ToNetdev, of_node.udp(b"x"), ifindex::NETDEV),
            (Hook::ToNetdev, of_node.tcp(SYN_ACK, b""), ifindex::NETDEV),
        ];
        for hands_over in [1, 0] {
            forget_flows(pair);
            pair.memory.settings.hands_over = hands_over;
            unsettled(pair, u64::MAX);
            for (hook, bytes, ifindex) in packets.clone() {
                let first = outcome(pair, hook, bytes.clone(), ifindex);
                if hands_over == 0 {
                    // Nobody would hand it back.
                    first.unwrap();
                    continue;
                }
                assert_eq!(first, Err(Reason::Unsettled), "{hook:?}");
                let mut frame = world::frame(bytes, ifindex);
                frame.handed_over = 1;
                assert_eq!(pair.host(hook, &frame).0, Err(Reason::Unsettled), "{hook:?}");
                frame.handed_over = BACK;
                pair.host(hook, &frame).0.unwrap();
            }
        }
    });
}

#[test]
fn rel_29_a_packet_that_was_handed_over_costs_its_limit_once() {
    families(|pair, v6| {
        let packet = from_pod(6, pod(3, v6)).udp(b"x");
        let mut frame = world::frame(packet, ifindex::POD_LIMIT);
        pair.refill(ifindex::POD_LIMIT, 0);
        assert_eq!(pair.host(Hook::FromPod, &frame).0, Err(Reason::RateLimit));
        frame.handed_over = 1;
        assert_eq!(pair.host(Hook::FromPod, &frame).0, TO_B);
    });
}

/// `TC_ACT_SHOT` and `TC_ACT_REDIRECT`.
const DROPPED: i32 = 2;
const LED_ON: i32 = 7;

/// Two loads of which each has connections that the other one does not know.
struct Loads {
    old: Kernel,
    new: Kernel,
}

impl Loads {
    fn with(settings: &Settings) -> Self {
        let mut old = Kernel::with(&world::CONFIG).unwrap();
        let mut new = old.successor(&world::CONFIG).unwrap();
        for load in [&mut old, &mut new] {
            load.settings(settings).unwrap();
        }
        Self { old, new }
    }

    /// What pod A sends meets a program of the new load.
    fn meets_new(&mut self, bytes: &[u8]) -> i32 {
        sent_by_a(&mut self.new, bytes)
    }

    fn meets_old(&mut self, bytes: &[u8]) -> i32 {
        sent_by_a(&mut self.old, bytes)
    }

    /// Connections that the old and the new one know.
    fn flows(&mut self) -> [usize; 2] {
        [&mut self.old, &mut self.new].map(|load| load.flows("conntrack_new").unwrap())
    }
}

/// What a load's program, or the one that it hands the packet to, returns.
fn sent_by_a(load: &mut Kernel, bytes: &[u8]) -> i32 {
    let frame = world::frame(bytes.to_vec(), ifindex::POD_A);
    let (returned, _) = load.run_program(Hook::FromPod, &frame, &mut Vec::new()).unwrap();
    returned
}

/// Runs `test` in a world of its own.
fn with_loads(settings: Settings, test: impl FnOnce(&mut Loads) + Send + 'static) {
    cni_tests::require!(privileged(), "running programs needs root");
    std::thread::spawn(move || test(&mut Loads::with(&settings)))
        .join()
        .unwrap();
}

#[test]
fn rel_29_each_of_two_loads_hands_to_the_other_what_it_does_not_know() {
    let settings = Settings {
        unsettled_until: u64::MAX,
        hands_over: 1,
        ..world::memory().settings
    };
    with_loads(settings, |loads| {
        for v6 in [false, true] {
            let client = dial(v6, port::TO_B);
            let later = Ends {
                src_port: client.src_port + 1,
                ..client
            };
            assert_eq!(loads.meets_old(&client.tcp(SYN, b"")), LED_ON);
            assert_eq!(loads.meets_new(&later.tcp(SYN, b"")), LED_ON);
            let begun = loads.flows();
            assert_eq!(loads.meets_new(&client.tcp(ACK, b"x")), LED_ON);
            assert_eq!(loads.old.outcome().unwrap().0, TO_B);
            assert_eq!(loads.meets_old(&later.tcp(ACK, b"x")), LED_ON);
            assert_eq!(loads.new.outcome().unwrap().0, TO_B);
            // Of what neither knows the one that met it decides.
            let stranger = Ends {
                src_port: client.src_port + 2,
                ..client
            };
            assert_eq!(loads.meets_new(&stranger.tcp(ACK, b"x")), DROPPED);
            assert_eq!(loads.new.outcome().unwrap().0, Err(Reason::Unsettled));
            assert_eq!(loads.flows(), begun);
            let datagram = from_a(pod(3, v6)).udp(b"x");
            assert_eq!(loads.meets_old(&datagram), LED_ON);
            assert_eq!(loads.meets_new(&datagram), LED_ON);
            assert_eq!(loads.flows(), [begun[0] + 1, begun[1]]);
            let another = Ends {
                src_port: client.src_port + 3,
                ..from_a(pod(3, v6))
            };
            assert_eq!(loads.meets_new(&another.udp(b"x")), LED_ON);
            assert_eq!(loads.flows(), [begun[0] + 1, begun[1] + 1]);
        }
    });
}

#[test]
fn what_nobody_replaces_is_judged_by_one_load() {
    with_loads(world::memory().settings, |loads| {
        let client = dial(false, port::TO_B);
        assert_eq!(loads.meets_old(&client.tcp(SYN, b"")), LED_ON);
        assert_eq!(loads.meets_new(&client.tcp(ACK, b"x")), LED_ON);
        assert_eq!(loads.new.outcome().unwrap().0, TO_B);
        assert_eq!(loads.flows(), [1, 1]);
    });
}
