//! What becomes of a connection that was admitted when rules, names and peers change.

use cni_ebpf::abi::{
    Addr, Grant, GrantKey, Group, GroupChunk, GroupKey, Peer, Reason, RuleKey, RuleList, RuleSet, peer_flags,
    policy_direction,
};
use cni_ebpf::datapath::Verdict;
use cni_tests::frames::Ends;
use cni_tests::world::{self, Hook, KUBELET, ifindex, ip, mac, pod};

use crate::Pair;
use crate::fixtures::{ACK, SYN, families, from_a};

const ADMITTED: Result<Verdict, Reason> = Ok(Verdict::Peer {
    ifindex: ifindex::POD_RULES,
});

fn to_rules(v6: bool) -> Ends {
    Ends {
        dst_port: 80,
        ..from_a(pod(5, v6))
    }
}

fn send(pair: &mut Pair, ends: Ends, flags: u8) -> Result<Verdict, Reason> {
    pair.host(Hook::FromPod, &world::frame(ends.tcp(flags, b""), ifindex::POD_A))
        .0
}

fn class_of_a(pair: &mut Pair, v6: bool, class: u32) {
    let peer = Peer {
        class,
        flags: peer_flags::POD,
        ..Peer::default()
    };
    pair.memory.peers.put(Addr::from(pod(2, v6)), peer);
    pair.memory.settings.class_epoch += 1;
}

#[test]
fn a_peer_that_changes_its_class_loses_what_the_class_gave_it() {
    families(|pair, v6| {
        assert_eq!(send(pair, to_rules(v6), SYN), ADMITTED);
        class_of_a(pair, v6, 9);
        assert_eq!(send(pair, to_rules(v6), ACK), Err(Reason::PolicyIngress));
        class_of_a(pair, v6, 7);
        assert_eq!(send(pair, to_rules(v6), ACK), ADMITTED);
    });
}

#[test]
fn an_expired_grant_ends_no_connection_and_a_revoked_rule_does() {
    families(|pair, v6| {
        let now = world::monotonic();
        pair.memory.clock.set(now);
        class_of_a(pair, v6, 9);
        let key = GrantKey {
            addr: Addr::from(pod(2, v6)),
            endpoint: ifindex::POD_RULES,
            word: 4,
        };
        let grant = Grant {
            expires: now + 1,
            bits: 0b010,
            ..Grant::default()
        };
        pair.memory.grants.put(key, grant);
        assert_eq!(send(pair, to_rules(v6), SYN), ADMITTED);
        pair.memory.clock.set(now + 2);
        for _ in 0..2 {
            pair.memory.settings.class_epoch += 1;
            assert_eq!(send(pair, to_rules(v6), ACK), ADMITTED);
        }
        let other = Ends {
            src_port: 1,
            ..to_rules(v6)
        };
        assert_eq!(send(pair, other, SYN), Err(Reason::PolicyIngress), "no new one");
        let deny = pair.memory.rule_sets.get(&2).copied().unwrap();
        pair.memory.rule_sets.put(
            2,
            RuleSet {
                generation: 4,
                ..deny
            },
        );
        assert_eq!(send(pair, to_rules(v6), ACK), Err(Reason::PolicyIngress));
        pair.memory.rule_sets.put(2, deny);
        class_of_a(pair, v6, 7);
    });
}

#[test]
fn rel_40_a_list_of_rules_with_a_hole_admits_nobody() {
    families(|pair, v6| {
        // Everybody who is not denied may; the groups that deny did not fit into the map.
        let open = pair.memory.rule_sets.get(&2).copied().unwrap();
        pair.memory.rule_sets.put(
            2,
            RuleSet {
                flags: 0,
                generation: 5,
            },
        );
        assert_eq!(send(pair, to_rules(v6), SYN), ADMITTED);
        let ports = vec![(
            RuleKey::ALL_BITS - RuleKey::FIXED_BITS,
            80,
            RuleList { list: 77, chunks: 2 },
        )];
        pair.memory
            .rules
            .insert((2, 6, policy_direction::INGRESS, 6), ports);
        pair.memory.rule_sets.put(
            2,
            RuleSet {
                flags: 0,
                generation: 6,
            },
        );
        let nobody = Group {
            mask: 1 << 60,
            word: 4,
            action: cni_ebpf::abi::action::DENY,
            rule: 1,
            pad: 0,
        };
        pair.memory.groups.put(
            GroupKey { list: 77, chunk: 0 },
            GroupChunk { groups: [nobody; 4] },
        );
        let other = Ends {
            src_port: 1,
            ..to_rules(v6)
        };
        assert_eq!(send(pair, other, SYN), Err(Reason::PolicyIngress));
        pair.memory.rule_sets.put(2, open);
    });
}

/// Where clouds hand out credentials and where nodes take orders, policy is asked as anywhere: the pod with rules may go to
/// these ports of all others.
#[test]
fn rel_50_metadata_and_the_kubelet_are_policys_to_give() {
    families(|pair, v6| {
        let either = |v4: &str, six: &str| ip(if v6 { six } else { v4 });
        let metadata = either("169.254.169.254", "fd00:ec2::254");
        let node = either("192.0.2.1", "2001:db8::1");
        let loopback = either("127.0.0.1", "::1");
        let (remote, far) = (either("10.2.0.9", "fd00:2::9"), either("9.9.9.9", "2620:fe::9"));
        let mut dial = |number: u8, dst, dst_port| {
            let device = ifindex::POD_A + u32::from(number) - 2;
            let ends = Ends {
                src_mac: mac(device),
                src: pod(number, v6),
                dst_port,
                ..from_a(dst)
            };
            pair.run(Hook::FromPod, &ends.tcp(SYN, b""), device).0
        };
        for (dst, port) in [(metadata, 80), (node, 80), (node, KUBELET)] {
            assert_eq!(dial(5, dst, port), Err(Reason::PolicyEgress), "{dst} {port}");
            // The drop is the rules', and nobody else's.
            assert!(dial(2, dst, port).is_ok(), "{dst} {port}");
        }
        for (dst, port) in [(remote, 80), (remote, KUBELET), (far, 80)] {
            assert!(dial(5, dst, port).is_ok(), "{dst} {port}");
        }
        // What a node keeps to itself no rule gives away.
        for number in [2, 5] {
            assert_eq!(dial(number, loopback, KUBELET), Err(Reason::LinkLocal));
        }
    });
}
