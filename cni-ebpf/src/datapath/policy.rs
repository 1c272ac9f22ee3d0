//! Policy: may this packet begin, or go on with, this connection?
//!
//! The cost of a decision follows the groups that a rule set has for the port, not the number of selectors, policies
//! or endpoints. A connection that was admitted is not asked again until the rule set's generation or the class epoch
//! moves; then it is asked with the bits that admitted it still counted, so that a revoked rule cuts it and an expired
//! grant does not.

use super::{Tables, Work};
use crate::abi::{
    Addr, ClassKey, Endpoint, Flow, GrantKey, Group, GroupKey, Prefix, Reason, RuleKey, action, policy_direction,
    rule_set_flags,
};

/// How many chunks of four groups one port may have.
const CHUNKS: u32 = 4096;

/// What was asked.
#[derive(Clone, Copy)]
pub struct Question {
    pub rule_set: u32,
    pub direction: u8,
    pub proto: u8,
    pub port: crate::abi::Port,
    pub peer: Addr,
    pub endpoint: u32,
    pub now: u64,
    /// Bits that admitted the connection before, and the word they stand in.
    pub held_bits: u64,
    pub held_word: u32,
}

/// What the answer rests on.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Admission {
    pub bits: u64,
    pub word: u32,
    pub rule: u32,
    pub generation: u32,
    pub denied: bool,
}

/// The current generation of a rule set; 0 is "no rule set".
#[inline(always)]
pub fn generation<T: Tables>(tables: &T, rule_set: u32) -> u32 {
    if rule_set == 0 {
        return 0;
    }
    tables.rule_set(rule_set).map_or(0, |set| set.generation)
}

/// Decides. A rule set that is named but not there denies: the endpoint was written before its rules, which the agent
/// never does, or the map lost them.
#[inline(always)]
pub fn decide<T: Tables>(tables: &T, question: &Question) -> Admission {
    if question.rule_set == 0 {
        return Admission::default();
    }
    let mut answer = Admission { denied: true, ..Admission::default() };
    let Some(set) = tables.rule_set(question.rule_set) else { return answer };
    if set.generation == 0 {
        return answer;
    }
    answer.generation = set.generation;
    answer.denied = set.flags & rule_set_flags::DEFAULT_DENY != 0;
    let mut key = RuleKey {
        prefix_len: RuleKey::ALL_BITS,
        rule_set: question.rule_set,
        generation: set.generation,
        direction: question.direction,
        proto: question.proto,
        port: question.port,
    };
    let mut list = tables.rules(&key);
    if list.is_none() {
        key.proto = 0;
        list = tables.rules(&key);
    }
    let Some(list) = list else { return answer };
    let classes = Classes::of(tables, &question.peer);
    let (id, chunks) = (list.list, list.chunks.min(CHUNKS));
    tables.repeat(chunks, |chunk| {
        let Some(found) = tables.groups(&GroupKey { list: id, chunk }) else { return false };
        for group in &found.groups {
            if group.action == action::NONE {
                return false;
            }
            if let Some(bits) = meets(tables, question, &classes, group) {
                answer.denied = group.action == action::DENY;
                answer.bits = bits;
                answer.word = group.word;
                answer.rule = group.rule;
                return false;
            }
        }
        true
    });
    answer
}

/// The classes of a peer: what it is known as, and what its address lies in.
struct Classes {
    exact: u32,
    cidr: u32,
}

impl Classes {
    #[inline(always)]
    fn of<T: Tables>(tables: &T, addr: &Addr) -> Self {
        let exact = tables.peer(addr).map_or(0, |peer| peer.class);
        let cidr = tables.cidr(&Prefix::host(*addr)).copied().unwrap_or(0);
        Self { exact, cidr }
    }
}

/// The bits of the peer that meet the group's mask, if any do.
#[inline(always)]
fn meets<T: Tables>(tables: &T, question: &Question, classes: &Classes, group: &Group) -> Option<u64> {
    let mut bits = 0;
    if group.word == ClassKey::EVERYBODY_WORD {
        bits = ClassKey::EVERYBODY_BITS;
    } else {
        if classes.exact != 0
            && let Some(found) = tables.class_bits(&ClassKey { class: classes.exact, word: group.word })
        {
            bits |= found.any;
        }
        if classes.cidr != 0
            && let Some(found) = tables.class_bits(&ClassKey { class: classes.cidr, word: group.word })
        {
            bits |= found.any;
            if classes.exact == 0 {
                bits |= found.outside;
            }
        }
        if let Some(grant) =
            tables.grant(&GrantKey { addr: question.peer, endpoint: question.endpoint, word: group.word })
            && grant.expires > question.now
        {
            bits |= grant.bits;
        }
        if question.held_word == group.word {
            bits |= question.held_bits;
        }
    }
    let met = bits & group.mask;
    (met != 0).then_some(met)
}

/// Judges a new connection, `work.flow` with the tuple `work.out`: what the sender may do, then what the receiver
/// admits. `from_host`: generated on this node, which its own pods always admit (kubelet's probes).
#[inline(always)]
pub(super) fn admit<T: Tables>(
    tables: &T,
    work: &mut Work,
    source: Option<&Endpoint>,
    destination: Option<&Endpoint>,
    from_host: bool,
) -> Result<(), Reason> {
    if let Some(epoch) = tables.settings().map(|settings| settings.class_epoch) {
        work.flow.class_epoch.set(epoch);
    }
    if let Some(source) = source {
        work.flow.source_endpoint = source.id;
        let answer = decide(tables, &question(work, source, policy_direction::EGRESS, 0, 0));
        work.rule = answer.rule;
        if answer.denied {
            return Err(Reason::PolicyEgress);
        }
        work.flow.egress_bits.set(answer.bits);
        work.flow.egress_word.set(answer.word);
        work.flow.egress_rule.set(answer.rule);
        work.flow.egress_generation.set(answer.generation);
    }
    if let Some(destination) = destination {
        work.flow.destination_endpoint = destination.id;
        if from_host {
            work.flow.source_endpoint = FROM_HOST;
            work.flow.ingress_generation.set(generation(tables, destination.ingress_rules));
            return Ok(());
        }
        let answer = decide(tables, &question(work, destination, policy_direction::INGRESS, 0, 0));
        work.rule = answer.rule;
        if answer.denied {
            return Err(Reason::PolicyIngress);
        }
        work.flow.ingress_bits.set(answer.bits);
        work.flow.ingress_word.set(answer.word);
        work.flow.ingress_rule.set(answer.rule);
        work.flow.ingress_generation.set(answer.generation);
    }
    Ok(())
}

#[inline(always)]
fn question(work: &Work, endpoint: &Endpoint, direction: u8, held_bits: u64, held_word: u32) -> Question {
    let egress = direction == policy_direction::EGRESS;
    Question {
        rule_set: if egress { endpoint.egress_rules } else { endpoint.ingress_rules },
        direction,
        proto: work.out.proto,
        port: work.out.dst_port,
        peer: if egress { work.out.dst } else { work.out.src },
        endpoint: endpoint.id,
        now: work.now,
        held_bits,
        held_word,
    }
}

/// Asks again about an existing flow, if anything moved since it was admitted. `work.out` is the flow's tuple in the
/// originator's direction; `source` and `destination` are its endpoints as far as they are local.
#[inline(always)]
pub(super) fn revalidate<T: Tables>(
    tables: &T,
    work: &mut Work,
    flow: &Flow,
    source: Option<&Endpoint>,
    destination: Option<&Endpoint>,
) -> Result<(), Reason> {
    let epoch = tables.settings().map_or(0, |settings| settings.class_epoch);
    let moved = epoch != flow.class_epoch.get();
    if let Some(source) = source
        && (moved && source.egress_rules != 0
            || generation(tables, source.egress_rules) != flow.egress_generation.get())
    {
        let held = (flow.egress_bits.get(), flow.egress_word.get());
        let answer = decide(tables, &question(work, source, policy_direction::EGRESS, held.0, held.1));
        work.rule = answer.rule;
        if answer.denied {
            return Err(Reason::PolicyEgress);
        }
        flow.egress_rule.set(answer.rule);
        flow.egress_generation.set(answer.generation);
    }
    if let Some(destination) = destination
        && flow.source_endpoint != FROM_HOST
        && (moved && destination.ingress_rules != 0
            || generation(tables, destination.ingress_rules) != flow.ingress_generation.get())
    {
        let held = (flow.ingress_bits.get(), flow.ingress_word.get());
        let answer = decide(tables, &question(work, destination, policy_direction::INGRESS, held.0, held.1));
        work.rule = answer.rule;
        if answer.denied {
            return Err(Reason::PolicyIngress);
        }
        flow.ingress_rule.set(answer.rule);
        flow.ingress_generation.set(answer.generation);
    }
    if moved {
        flow.class_epoch.set(epoch);
    }
    Ok(())
}

/// [`Flow::source_endpoint`] of a connection that the host itself began.
pub const FROM_HOST: u32 = u32::MAX;
