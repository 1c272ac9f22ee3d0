//! What begins beside a Service's connection, between the same client and the same backend, is never taken for that one.

use cni_ebpf::abi::{Reason, service_scope};
use cni_ebpf::datapath::Verdict;
use cni_tests::frames::{self, Ends};
use cni_tests::world::{self, Hook, backend, ifindex, ip, mac, pod, port, service_id};

use crate::Pair;
use crate::contested::{SECOND, second};
use crate::dispute::with_ports;
use crate::external::{answer_to, arrive, client, from_pod_b, outside};
use crate::fixtures::{ACK, FIN_ACK, RST, SYN, SYN_ACK, TO_A, TO_B, gateway};
use crate::services::{dial, ends, node, vip};

/// A backend beyond the cluster, and a pod that dials its Service and itself from one port.
#[test]
fn svc_22_svc_57_what_is_too_big_is_told_to_the_second_connection_and_never_leaves_as_the_first() {
    with_ports(40_000..=40_003, |pair, v6| {
        let id = service_id(port::TO_B, v6, service_scope::CLUSTER);
        let own = backend::POD_B + if v6 { backend::V6 } else { 0 };
        let far = ip(if v6 { "2001:db8:5::9" } else { "198.51.100.77" });
        pair.put_backend(own, Some((far, 8080)));
        pair.put_slot(id, 0, own);
        let served = dial(v6, port::TO_B);
        let direct = Ends {
            dst: far,
            dst_port: 8080,
            ..served
        };
        let send = |pair: &mut Pair, ends: Ends, bytes: &[u8]| {
            pair.run(Hook::FromPod, &ends.udp(bytes), ifindex::POD_A)
        };
        let (_, first) = send(pair, served, b"q");
        // New, and known.
        for _ in 0..2 {
            let (verdict, _) = send(pair, direct, &[7; 1400]);
            assert_eq!((verdict, pair.work.answered), (Err(Reason::TooBig), 1));
            let (verdict, out) = send(pair, direct, b"q");
            assert_eq!(verdict, gateway(v6));
            assert_ne!(ends(&out).0, ends(&first).0);
        }
        let answer = answer_to(&first, [2, 9, 9, 9, 9, 9], mac(ifindex::NETDEV));
        let (verdict, back) = arrive(pair, &answer.udp(b"a"));
        assert_eq!((verdict, ends(&back).0), (TO_A, (vip(v6), port::TO_B)));
        pair.put_backend(own, Some((pod(3, v6), 8080)));
        pair.put_slot(id, 0, own);
    });
}

/// Of a pod whose others' connections are the stack's.
#[test]
fn svc_22_who_dials_a_pod_behind_the_stack_from_a_port_that_was_given_is_answered() {
    with_ports(40_000..=40_003, |pair, v6| {
        let id = service_id(port::NODE_LOCAL, v6, service_scope::EXTERNAL);
        let own = backend::POD_B + if v6 { backend::V6 } else { 0 };
        pair.put_backend(99, Some((pod(4, v6), 8080)));
        pair.put_slot(id, 0, 99);
        second(pair, node(v6), port::NODE_LOCAL, service_scope::EXTERNAL);
        let begin = |pair: &mut Pair, ends: Ends| {
            let (verdict, out) = arrive(pair, &ends.tcp(SYN, b""));
            verdict.unwrap();
            out
        };
        begin(pair, outside(v6, port::NODE_LOCAL));
        let given = ends(&begin(pair, outside(v6, SECOND))).0.1;
        let direct = Ends {
            src_port: given,
            dst: pod(4, v6),
            dst_port: 8080,
            ..outside(v6, 0)
        };
        let seen = begin(pair, direct);
        assert_ne!(ends(&seen).0.1, given);
        let answer = answer_to(&seen, mac(ifindex::POD_STACK), world::NODE_MAC).tcp(SYN_ACK, b"");
        let (verdict, back) = pair.run(Hook::FromPod, &answer, ifindex::POD_STACK);
        assert_eq!(verdict, gateway(v6));
        assert_eq!(ends(&back), ((pod(4, v6), 8080), (client(v6), given)));
        assert!(frames::checksums_hold(&back));
        pair.put_slot(id, 0, own);
        pair.put_backend(99, None);
    });
}

/// Its answers are looked for by their own tuple first.
#[test]
fn svc_22_a_second_connection_to_a_process_of_the_node_gets_no_port_of_one_that_is_hardly_over() {
    for (old, free) in [(40_000, 40_001), (40_001, 40_000)] {
        with_ports(40_000..=40_001, move |pair, v6| {
            second(pair, node(v6), port::NODE_HOST, service_scope::EXTERNAL);
            let say = |pair: &mut Pair, ends: Ends, flags| {
                let (verdict, out) = arrive(pair, &ends.tcp(flags, b""));
                assert_eq!(verdict, Ok(Verdict::Pass));
                out
            };
            let answer = |pair: &mut Pair, out: &[u8], flags| {
                let answer = answer_to(out, mac(ifindex::NETDEV), [2, 9, 9, 9, 9, 9]).tcp(flags, b"");
                let (verdict, back) = pair.run(Hook::ToNetdev, &answer, ifindex::NETDEV);
                assert_eq!(verdict, Ok(Verdict::Pass));
                ends(&back)
            };
            let over = Ends {
                src_port: old,
                ..outside(v6, port::NODE_HOST)
            };
            let seen = say(pair, over, SYN);
            answer(pair, &seen, SYN_ACK);
            say(pair, over, ACK);
            say(pair, over, FIN_ACK);
            answer(pair, &seen, FIN_ACK);
            say(pair, outside(v6, port::NODE_HOST), SYN);
            let moved = outside(v6, SECOND);
            let seen = say(pair, moved, SYN);
            assert_eq!(ends(&seen).0, (client(v6), free));
            let answered = answer(pair, &seen, SYN_ACK);
            assert_eq!(answered, ((node(v6), SECOND), (client(v6), moved.src_port)));
        });
    }
}

/// Who dials one backend from one port twice, and where both directions of it are seen.
pub(crate) struct Rivals {
    pub(crate) first: Ends,
    pub(crate) other: Ends,
    there: (Hook, u32),
    back: (Hook, u32),
    answer: fn(&[u8]) -> Ends,
}

/// By two frontends, by one and past it in either order, and from outside.
pub(crate) fn rivals(pair: &mut Pair, v6: bool) -> [Rivals; 4] {
    second(pair, vip(v6), port::TO_B, service_scope::CLUSTER);
    second(pair, node(v6), port::NODE_REMOTE, service_scope::EXTERNAL);
    let [inside, moved] = [port::TO_B, SECOND].map(|port| dial(v6, port));
    let direct = Ends {
        dst: pod(3, v6),
        dst_port: 8080,
        ..inside
    };
    let of_pods = |first, other| Rivals {
        first,
        other,
        there: (Hook::FromPod, ifindex::POD_A),
        back: (Hook::FromPod, ifindex::POD_B),
        answer: from_pod_b,
    };
    let netdev = (Hook::FromNetdev, ifindex::NETDEV);
    let hidden = Rivals {
        first: outside(v6, port::NODE_REMOTE),
        other: outside(v6, SECOND),
        there: netdev,
        back: netdev,
        answer: |out| answer_to(out, [2, 9, 9, 9, 9, 9], mac(ifindex::NETDEV)),
    };
    [
        of_pods(inside, moved),
        of_pods(inside, direct),
        of_pods(direct, inside),
        hidden,
    ]
}

impl Rivals {
    /// What the backend is sent.
    pub(crate) fn said(&self, pair: &mut Pair, dialled: Ends, flags: u8) -> Vec<u8> {
        let (verdict, out) = pair.run(self.there.0, &dialled.tcp(flags, b""), self.there.1);
        assert!(verdict.is_ok(), "{verdict:?}");
        out
    }

    /// The backend's answer to what it has `seen` comes from what was dialled.
    pub(crate) fn answered(&self, pair: &mut Pair, seen: &[u8], dialled: Ends, flags: u8) {
        let (verdict, out) = pair.run(self.back.0, &(self.answer)(seen).tcp(flags, b""), self.back.1);
        assert!(verdict.is_ok(), "{verdict:?}");
        let reversed = dialled.reversed();
        let [from, to] = [dialled, reversed].map(|ends| (ends.dst, ends.dst_port));
        assert_eq!(ends(&out), (from, to));
    }

    fn begun(&self, pair: &mut Pair, dialled: Ends) -> Vec<u8> {
        let seen = self.said(pair, dialled, SYN);
        self.answered(pair, &seen, dialled, SYN_ACK);
        self.said(pair, dialled, ACK);
        seen
    }
}

/// Nothing is left to say of it. A reset that its sender knows nothing of was somebody else's.
#[test]
fn svc_22_a_connection_that_was_reset_leaves_its_ends_to_who_dials_elsewhere_and_one_that_goes_on_does_not() {
    with_ports(40_000..=40_003, |pair, v6| {
        for rivals in rivals(pair, v6) {
            let Rivals {
                first, other, there, ..
            } = rivals;
            for (by_client, forged) in [(true, false), (false, false), (true, true), (false, true)] {
                let seen = rivals.begun(pair, first);
                let speaks = |pair: &mut Pair, flags| {
                    if by_client {
                        rivals.said(pair, first, flags);
                    } else {
                        rivals.answered(pair, &seen, first, flags);
                    }
                };
                speaks(pair, RST);
                if forged {
                    speaks(pair, ACK);
                }
                let next = rivals.begun(pair, other);
                assert_eq!(ends(&next).0 == ends(&seen).0, !forged, "{first:?} {other:?}");
                // Of what is over nobody hears as of the other one.
                if !forged && there.0 == Hook::FromPod && first.dst != pod(3, v6) {
                    let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
                    let error = Ends { dst_port: 0, ..first };
                    let error = error.icmp_error(kind, code, &first.reversed().tcp(ACK, b"late"));
                    let (verdict, _) = pair.run(there.0, &error, there.1);
                    assert_eq!(verdict, Err(Reason::RelatedUnknown));
                }
                if forged {
                    rivals.answered(pair, &seen, first, ACK);
                    rivals.said(pair, first, ACK);
                }
                pair.forget();
            }
        }
    });
}

/// Of which the kernel has evicted all but the way back. In the host build alone, whose rows can be taken away.
#[test]
fn svc_22_a_connection_that_goes_on_keeps_its_port_though_the_one_that_had_it_was_reset() {
    with_ports(40_000..=40_003, |pair, v6| {
        second(pair, vip(v6), port::TO_B, service_scope::CLUSTER);
        let said = |pair: &mut Pair, dialled, flags| {
            let frame = world::frame(dial(v6, dialled).tcp(flags, b""), ifindex::POD_A);
            let (verdict, frame) = pair.host(Hook::FromPod, &frame);
            assert_eq!(verdict, TO_B);
            ends(&frame.bytes).0
        };
        let first = said(pair, port::TO_B, SYN);
        let seen = said(pair, SECOND, SYN);
        assert_ne!(seen, first);
        said(pair, port::TO_B, RST);
        let flows = &pair.memory.flows[1];
        for (key, _) in flows.entries().iter().filter(|(key, _)| key.reserved != 0) {
            flows.remove(key);
        }
        assert_eq!(said(pair, SECOND, ACK), seen);
    });
}
