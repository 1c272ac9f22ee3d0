//! What policy there is in the world.

use cni_ebpf::abi::*;

use super::content::prefix;
use super::{ip, pod};

/// The port of every node's kubelet.
pub const KUBELET: u16 = 10250;

/// Rules of the pod with rules: it may send TCP to ports 8080 to 8087 (a prefix) of anybody, to 80 and [`KUBELET`] of all but
/// the clouds' metadata and this node, and ping nobody; it takes TCP on port 80 from pods of class 7 and from 10.2.0.0/16.
pub(super) struct Rules {
    pub(super) sets: Vec<(u32, RuleSet)>,
    pub(super) lists: Vec<(RuleKey, RuleList)>,
    pub(super) groups: Vec<(GroupKey, GroupChunk)>,
    pub(super) classes: Vec<(ClassKey, ClassBits)>,
    pub(super) peers: Vec<(Addr, Peer)>,
    pub(super) cidrs: Vec<(Prefix, u32)>,
}

pub(super) fn rules() -> Rules {
    let deny = RuleSet {
        generation: 3,
        flags: rule_set_flags::DEFAULT_DENY,
    };
    let key = |rule_set, direction, port, bits| RuleKey {
        prefix_len: RuleKey::FIXED_BITS + bits,
        rule_set,
        generation: 3,
        direction,
        proto: 6,
        port: Port::new(port),
    };
    let group = |action, word, mask, rule| Group {
        mask,
        word,
        action,
        rule,
        pad: 0,
    };
    let chunk = |groups: &[Group]| GroupChunk {
        groups: std::array::from_fn(|at| groups.get(at).copied().unwrap_or_default()),
    };
    let (everybody, all) = (ClassKey::EVERYBODY_WORD, ClassKey::EVERYBODY_BITS);
    let bits = |any| ClassBits { any, outside: 0 };
    Rules {
        sets: vec![(1, deny), (2, deny)],
        lists: vec![
            (
                key(1, policy_direction::EGRESS, 8080, 13),
                RuleList { list: 1, chunks: 1 },
            ),
            (
                key(2, policy_direction::INGRESS, 80, 16),
                RuleList { list: 2, chunks: 1 },
            ),
            (
                key(1, policy_direction::EGRESS, 80, 16),
                RuleList { list: 3, chunks: 1 },
            ),
            (
                key(1, policy_direction::EGRESS, KUBELET, 16),
                RuleList { list: 3, chunks: 1 },
            ),
        ],
        groups: vec![
            (
                GroupKey { list: 1, chunk: 0 },
                chunk(&[group(action::ALLOW, everybody, all, 11)]),
            ),
            (
                GroupKey { list: 2, chunk: 0 },
                chunk(&[group(action::ALLOW, 4, 0b110, 12)]),
            ),
            (
                GroupKey { list: 3, chunk: 0 },
                chunk(&[
                    group(action::DENY, 4, 0b1000, 13),
                    group(action::ALLOW, everybody, all, 14),
                ]),
            ),
        ],
        classes: vec![
            (ClassKey { class: 7, word: 4 }, bits(0b010)),
            (ClassKey { class: 8, word: 4 }, bits(0b100)),
            (ClassKey { class: 9, word: 4 }, bits(0b1000)),
        ],
        peers: [false, true]
            .into_iter()
            .flat_map(|v6| {
                let node = ip(if v6 { "2001:db8::1" } else { "192.0.2.1" });
                [(pod(2, v6), 7, peer_flags::POD), (node, 9, peer_flags::HOST)]
            })
            .map(|(addr, class, flags)| {
                let peer = Peer {
                    class,
                    flags,
                    ..Peer::default()
                };
                (Addr::from(addr), peer)
            })
            .collect(),
        cidrs: vec![
            (prefix("10.2.0.0/16"), 8),
            (prefix("169.254.169.254/32"), 9),
            (prefix("fd00:ec2::254/128"), 9),
        ],
    }
}
