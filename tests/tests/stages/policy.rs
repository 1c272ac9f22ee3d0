//! Which rule decides, against a scan over all entries.

use std::collections::BTreeSet;

use cni_ebpf::abi::{
    Addr, ClassBits, ClassKey, Grant, GrantKey, Group, GroupChunk, GroupKey, Peer, Port, Prefix, Reason,
    RuleList, RuleSet, action, policy_direction, rule_set_flags,
};
use cni_ebpf::datapath::policy::{Admission, Question};
use cni_ebpf::datapath::{Work, stage::Stage};
use cni_tests::memory::{Frame, Memory};
use cni_tests::world::{ifindex, pod};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

const RULE_SET: u32 = 3;
const GENERATION: u32 = 20;
const ENDPOINT: u32 = 5;
const NOW: u64 = 1_000_000;
/// A rule of another rule set, generation or direction.
const FOREIGN: u32 = 999;

/// What a rule set says of a protocol (0: of those without rules of their own) and a range of ports: so many leading bits
/// of this port.
type Entries = std::collections::BTreeMap<(u8, u32, u16), Vec<(u32, u64, bool)>>;

/// Bits by the word they stand in.
type Bits = std::collections::BTreeMap<u32, u64>;

/// What is known of the peer.
#[derive(Clone, Debug)]
struct Known {
    /// As a pod or a node.
    exact: Option<Bits>,
    /// By prefixes that hold its address: length, bits of everybody there, bits of the outside.
    cidrs: Vec<(u32, Bits, Bits)>,
    /// By names: bits, and whether they are still good.
    grants: std::collections::BTreeMap<u32, (u64, bool)>,
    /// What admitted the connection before.
    held: (u32, u64),
}

fn any_bits() -> impl Strategy<Value = Bits> {
    btree_map(1..4u32, 0..16u64, 0..3)
}

fn any_known() -> impl Strategy<Value = Known> {
    let cidrs = vec((96..=128u32, any_bits(), any_bits()), 0..3);
    let grants = btree_map(1..4u32, (0..16u64, any::<bool>()), 0..3);
    let held = (0..4u32, prop_oneof![2 => Just(0), 1 => 0..16u64]);
    (option::of(any_bits()), cidrs, grants, held).prop_map(|(exact, cidrs, grants, held)| Known {
        exact,
        cidrs,
        grants,
        held,
    })
}

fn any_port() -> impl Strategy<Value = u16> {
    prop_oneof![Just(80), Just(81), Just(8080), any::<u16>()]
}

fn any_entries() -> impl Strategy<Value = Entries> {
    let range = (prop_oneof![Just(0u8), Just(6), Just(17)], 0..=16u32, any_port())
        .prop_map(|(proto, bits, port)| (proto, bits, first_of(port, bits)));
    let groups = vec((0..4u32, 0..16u64, any::<bool>()), 0..11);
    btree_map(range, groups, 0..12)
}

/// The first port of those that have these leading bits.
fn first_of(port: u16, bits: u32) -> u16 {
    u16::MAX.checked_shl(16 - bits).map_or(0, |mask| port & mask)
}

/// The rules' number: a group is known by where it stands.
fn rule(entry: usize, group: usize) -> u32 {
    (100 * entry + group + 1) as u32
}

fn write(memory: &mut Memory, entries: &Entries, known: &Known, peer: Addr, direction: u8) {
    for (entry, ((proto, bits, port), groups)) in entries.iter().enumerate() {
        let list = entry as u32 + 1;
        let mut all: Vec<Group> = Vec::new();
        for (place, (word, mask, allows)) in groups.iter().enumerate() {
            all.push(Group {
                mask: *mask,
                word: *word,
                action: if *allows { action::ALLOW } else { action::DENY },
                rule: rule(entry, place),
                pad: 0,
            });
        }
        let mut chunks = 0;
        for part in all.chunks(4) {
            let groups = std::array::from_fn(|at| part.get(at).copied().unwrap_or_default());
            memory
                .groups
                .put(GroupKey { list, chunk: chunks }, GroupChunk { groups });
            chunks += 1;
        }
        memory
            .rules
            .entry((RULE_SET, GENERATION, direction, *proto))
            .or_default()
            .push((*bits, *port, RuleList { list, chunks }));
    }
    foreign(memory, direction);
    if let Some(bits) = &known.exact {
        classify(memory, 1, bits, &Bits::new());
        memory.peers.put(
            peer,
            Peer {
                class: 1,
                ..Peer::default()
            },
        );
    }
    for (at, (len, bits, outside)) in known.cidrs.iter().enumerate() {
        let class = at as u32 + 2;
        classify(memory, class, bits, outside);
        memory.cidrs.put(
            Prefix {
                len: *len,
                words: peer.words(),
            },
            class,
        );
    }
    for (word, (bits, good)) in &known.grants {
        let key = GrantKey {
            addr: peer,
            endpoint: ENDPOINT,
            word: *word,
        };
        let expires = if *good { NOW + 1 } else { NOW };
        memory.grants.put(
            key,
            Grant {
                expires,
                bits: *bits,
                ..Grant::default()
            },
        );
        // Another pod's.
        memory.grants.put(
            GrantKey {
                endpoint: ENDPOINT + 1,
                ..key
            },
            Grant {
                expires: NOW + 1,
                bits: u64::MAX,
                ..Grant::default()
            },
        );
    }
}

fn classify(memory: &Memory, class: u32, any: &Bits, outside: &Bits) {
    for word in 1..4 {
        let [any, outside] = [any, outside].map(|bits| bits.get(&word).copied().unwrap_or(0));
        memory
            .classes
            .put(ClassKey { class, word }, ClassBits { any, outside });
    }
}

/// Rules for everybody and every port that are not this endpoint's, or not any more, or for the other direction.
fn foreign(memory: &mut Memory, direction: u8) {
    let everybody = Group {
        mask: ClassKey::EVERYBODY_BITS,
        word: ClassKey::EVERYBODY_WORD,
        action: action::ALLOW,
        rule: FOREIGN,
        pad: 0,
    };
    memory.groups.put(
        GroupKey {
            list: FOREIGN,
            chunk: 0,
        },
        GroupChunk {
            groups: [everybody; 4],
        },
    );
    let list = RuleList {
        list: FOREIGN,
        chunks: 1,
    };
    for (set, generation, towards) in [
        (RULE_SET + 1, GENERATION, direction),
        (RULE_SET, GENERATION + 1, direction),
        (RULE_SET, GENERATION, 1 - direction),
    ] {
        for proto in [0, 6, 17] {
            memory.rules.insert(
                (set, generation, towards, proto),
                vec![(16, 80, list), (0, 0, list)],
            );
        }
    }
}

/// All that the peer is, as (word, bit), and all that it was granted.
fn meant(known: &Known) -> [BTreeSet<(u32, u32)>; 2] {
    let set = |word: u32, bits: u64| {
        (0..64)
            .filter(move |bit| bits >> bit & 1 != 0)
            .map(move |bit| (word, bit))
    };
    let mut is = BTreeSet::from([(ClassKey::EVERYBODY_WORD, 0)]);
    let mut add = |bits: &Bits| bits.iter().for_each(|(word, bits)| is.extend(set(*word, *bits)));
    if let Some(bits) = &known.exact {
        add(bits);
    }
    // The last one that was written of the longest.
    if let Some((_, bits, outside)) = known.cidrs.iter().max_by_key(|(len, ..)| *len) {
        add(bits);
        if known.exact.is_none() {
            add(outside);
        }
    }
    let mut granted = BTreeSet::new();
    for (word, (bits, good)) in &known.grants {
        granted.extend(set(*word, if *good { *bits } else { 0 }));
    }
    let (word, bits) = known.held;
    granted.extend(set(word, if word == ClassKey::EVERYBODY_WORD { 0 } else { bits }));
    [is, granted]
}

/// Entry by entry, group by group, bit by bit.
fn scan(entries: &Entries, known: &Known, proto: u8, port: u16, default_deny: bool) -> Admission {
    let mut answer = Admission {
        generation: GENERATION,
        denied: u32::from(default_deny),
        ..Admission::default()
    };
    let of = |wanted: u8| {
        entries
            .iter()
            .enumerate()
            .filter(|(_, ((proto, bits, first), _))| *proto == wanted && first_of(port, *bits) == *first)
            .max_by_key(|(_, ((_, bits, _), _))| *bits)
    };
    let Some((entry, (_, groups))) = of(proto).or_else(|| of(0)) else {
        return answer;
    };
    let [is, granted] = meant(known);
    for (place, (word, mask, allows)) in groups.iter().enumerate() {
        let wanted: BTreeSet<_> = (0..64)
            .filter(|bit| mask >> bit & 1 != 0)
            .map(|bit| (*word, bit))
            .collect();
        let by_grant = wanted
            .intersection(&granted)
            .fold(0, |bits, (_, bit)| bits | 1 << bit);
        if by_grant == 0 && wanted.is_disjoint(&is) {
            continue;
        }
        answer.denied = u32::from(!*allows);
        answer.bits = by_grant;
        answer.word = *word;
        answer.rule = rule(entry, place);
        break;
    }
    answer
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn the_first_group_of_the_narrowest_range_decides(
        entries in any_entries(), mut known in any_known(), v6: bool, egress: bool, default_deny: bool,
        proto in prop_oneof![Just(6u8), Just(17), Just(1)], port in any_port(), published in 0..8u8,
    ) {
        // One entry for each prefix.
        known.cidrs.sort_by_key(|(len, ..)| *len);
        known.cidrs.dedup_by_key(|(len, ..)| *len);
        let (peer, direction) = (Addr::from(pod(9, v6)), if egress {
            policy_direction::EGRESS
        } else {
            policy_direction::INGRESS
        });
        let mut memory = Memory::default();
        write(&mut memory, &entries, &known, peer, direction);
        let flags = if default_deny { rule_set_flags::DEFAULT_DENY } else { 0 };
        // Named and not there, there and not published, or in force.
        let expected = match published {
            0 => Admission { denied: 1, ..Admission::default() },
            1 => {
                memory.rule_sets.put(RULE_SET, RuleSet { generation: 0, flags });
                Admission { denied: 1, ..Admission::default() }
            }
            _ => {
                memory.rule_sets.put(RULE_SET, RuleSet { generation: GENERATION, flags });
                scan(&entries, &known, proto, port, default_deny)
            }
        };
        let mut work = Work {
            now: NOW,
            question: Question {
                peer,
                held_bits: known.held.1,
                held_word: known.held.0,
                rule_set: RULE_SET,
                endpoint: ENDPOINT,
                port: Port::new(port),
                direction,
                proto,
            },
            ..Work::default()
        };
        let mut frame = Frame::new(Vec::new(), ifindex::POD_A);
        let outcome = super::run(Stage::Decide, &memory, &mut frame, &mut work);
        prop_assert_eq!(&work.answer, &expected);
        let refused = if egress { Reason::PolicyEgress } else { Reason::PolicyIngress };
        prop_assert_eq!(outcome, if expected.denied == 0 { Ok(()) } else { Err(refused) });
    }
}
