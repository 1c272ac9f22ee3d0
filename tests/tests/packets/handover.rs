//! Programs of another layout take over: connections that the old ones have let through may be unknown for a moment.

use cni_ebpf::abi::{Port, Reason, Tuple};
use cni_ebpf::datapath::Verdict;
use cni_tests::frames::Ends;
use cni_tests::world::{self, Hook, ifindex, mac, pod, port};

use crate::Pair;
use crate::external::{answer_to, arrive, outside};
use crate::fixtures::{ACK, SYN, SYN_ACK, TO_B, families, from_b};
use crate::services::dial;

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
        let answer = from_b(backend).tcp(SYN_ACK, b"");
        assert_eq!(
            outcome(pair, Hook::FromPod, answer, ifindex::POD_B),
            Err(Reason::Unsettled)
        );
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
