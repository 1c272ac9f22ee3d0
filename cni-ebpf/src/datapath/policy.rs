//! Policy: may this packet begin, or go on with, this connection?
//!
//! The cost of a decision follows the groups that a rule set has for the port, not the number of selectors, policies
//! or endpoints. A connection that was admitted is not asked again until the rule set's generation or the class epoch
//! moves; then it is asked with the bits that admitted it still counted, so that a revoked rule cuts it and an expired
//! grant does not.

use super::stage::{self, Stage};
use super::{Packet, Tables, Work, conntrack};
use crate::abi::{
    Addr, ClassKey, Endpoint, Flow, GrantKey, Group, GroupKey, Port, Prefix, Reason, RuleKey, action,
    policy_direction, rule_set_flags,
};

/// How many chunks of four groups one port may have.
const CHUNKS: u32 = 4096;

/// What is asked.
#[derive(Clone, Default, Debug)]
#[repr(C)]
pub struct Question {
    pub peer: Addr,
    /// Granted bits that admitted the connection before, and the word they stand in.
    pub held_bits: u64,
    pub held_word: u32,
    pub rule_set: u32,
    pub endpoint: u32,
    pub port: Port,
    pub direction: u8,
    pub proto: u8,
}

/// What the answer rests on.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Admission {
    pub bits: u64,
    pub word: u32,
    pub rule: u32,
    pub generation: u32,
    pub denied: u32,
}

/// The current generation of a rule set; 0 is "no rule set".
#[inline(always)]
pub fn generation<T: Tables>(tables: &T, rule_set: u32) -> u32 {
    if rule_set == 0 {
        return 0;
    }
    tables.rule_set(rule_set).map_or(0, |set| set.generation)
}

/// Decides `work.question`. A rule set that is named but not there denies: the endpoint was written before its rules,
/// which the agent never does, or the map lost them.
#[inline(always)]
pub(super) fn decide_stage<T: Tables>(tables: &T, work: &mut Work) -> Result<(), Reason> {
    decide(tables, work);
    if work.answer.denied == 0 {
        return Ok(());
    }
    Err(if work.question.direction == policy_direction::EGRESS {
        Reason::PolicyEgress
    } else {
        Reason::PolicyIngress
    })
}

#[inline(always)]
fn decide<T: Tables>(tables: &T, work: &mut Work) {
    let Work {
        question,
        answer,
        now,
        ..
    } = work;
    let now = *now;
    answer.bits = 0;
    answer.word = 0;
    answer.rule = 0;
    answer.generation = 0;
    answer.denied = 1;
    let Some(set) = tables.rule_set(question.rule_set) else {
        return;
    };
    if set.generation == 0 {
        return;
    }
    answer.generation = set.generation;
    answer.denied = u32::from(set.flags & rule_set_flags::DEFAULT_DENY != 0);
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
    let Some(list) = list else { return };
    let classes = Classes::of(tables, &question.peer);
    let (id, chunks) = (list.list, list.chunks.min(CHUNKS));
    tables.repeat(chunks, |chunk| {
        let Some(found) = tables.groups(&GroupKey { list: id, chunk }) else {
            // A hole: what stood there may have denied.
            answer.denied = 1;
            return false;
        };
        for group in &found.groups {
            if group.action == action::NONE {
                return false;
            }
            let (known, granted) = meets(tables, question, &classes, group, now);
            if known | granted != 0 {
                answer.denied = u32::from(group.action == action::DENY);
                answer.bits = granted;
                answer.word = group.word;
                answer.rule = group.rule;
                return false;
            }
        }
        true
    });
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

/// The bits of the peer that meet the group's mask: by what it is, and by what was granted. Only the second outlive
/// their reason, for a name may lead elsewhere while the connection goes on; a peer that is another one now has nothing
/// from the one before.
#[inline(always)]
fn meets<T: Tables>(
    tables: &T,
    question: &Question,
    classes: &Classes,
    group: &Group,
    now: u64,
) -> (u64, u64) {
    let mut bits = 0;
    let mut granted = 0;
    if group.word == ClassKey::EVERYBODY_WORD {
        bits = ClassKey::EVERYBODY_BITS;
    } else {
        if classes.exact != 0
            && let Some(found) = tables.class_bits(&ClassKey {
                class: classes.exact,
                word: group.word,
            })
        {
            bits |= found.any;
        }
        if classes.cidr != 0
            && let Some(found) = tables.class_bits(&ClassKey {
                class: classes.cidr,
                word: group.word,
            })
        {
            bits |= found.any;
            if classes.exact == 0 {
                bits |= found.outside;
            }
        }
        if let Some(grant) = tables.grant(&GrantKey {
            addr: question.peer,
            endpoint: question.endpoint,
            word: group.word,
        }) && grant.expires > now
        {
            granted = grant.bits;
        }
        if question.held_word == group.word {
            granted |= question.held_bits;
        }
    }
    (bits & group.mask, granted & group.mask)
}

/// Writes `work.question` about the connection whose forward tuple is `work.out`.
#[inline(always)]
fn ask(work: &mut Work, endpoint: &Endpoint, direction: u8, held_bits: u64, held_word: u32) {
    let egress = direction == policy_direction::EGRESS;
    let Work { question, out, .. } = work;
    question.rule_set = if egress {
        endpoint.egress_rules
    } else {
        endpoint.ingress_rules
    };
    question.direction = direction;
    question.proto = out.proto;
    question.port = out.dst_port;
    question.peer = if egress { out.dst } else { out.src };
    question.endpoint = endpoint.id;
    question.held_bits = held_bits;
    question.held_word = held_word;
}

/// Judges a new connection, `work.flow` with the tuple `work.out`: what the sender may do, then what the receiver
/// admits. `from_host`: generated on this node, which its own pods always admit (kubelet's probes).
#[inline(always)]
pub(super) fn admit<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    source: Option<&Endpoint>,
    destination: Option<&Endpoint>,
    from_host: bool,
) -> Result<(), Reason> {
    let enforced = tables.config().has_policy() != 0 && !itself(source, destination);
    if let Some(settings) = tables.settings() {
        work.flow.class_epoch.set(settings.class_epoch);
    }
    if let Some(source) = source {
        work.flow.source_endpoint = source.id;
        if enforced && source.egress_rules != 0 {
            ask(work, source, policy_direction::EGRESS, 0, 0);
            judge(tables, packet, work)?;
            let Work { flow, answer, .. } = work;
            flow.egress_bits.set(answer.bits);
            flow.egress_word.set(answer.word);
            flow.egress_rule.set(answer.rule);
            flow.egress_generation.set(answer.generation);
        }
    }
    if let Some(destination) = destination {
        work.flow.destination_endpoint = destination.id;
        if from_host {
            work.flow.source_endpoint = FROM_HOST;
        } else if enforced && destination.ingress_rules != 0 {
            ask(work, destination, policy_direction::INGRESS, 0, 0);
            judge(tables, packet, work)?;
            let Work { flow, answer, .. } = work;
            flow.ingress_bits.set(answer.bits);
            flow.ingress_word.set(answer.word);
            flow.ingress_rule.set(answer.rule);
            flow.ingress_generation.set(answer.generation);
        }
    }
    Ok(())
}

/// Whether a pod reaches itself, which no policy can forbid.
#[inline(always)]
fn itself(source: Option<&Endpoint>, destination: Option<&Endpoint>) -> bool {
    match (source, destination) {
        (Some(source), Some(destination)) => source.id == destination.id,
        _ => false,
    }
}

#[inline(always)]
fn judge<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Result<(), Reason> {
    let outcome = stage::call(Stage::Decide, tables, packet, work);
    work.rule = work.answer.rule;
    if outcome.is_err() {
        // A drop is told of the one who refused: a sender's run asks its receiver too.
        work.endpoint = work.question.endpoint;
        work.direction = work.question.direction;
    }
    outcome
}

/// Asks again about an existing flow, if anything moved since it was admitted; `source` and `destination` are its endpoints
/// as far as they are local. `work.out` is overwritten with the flow's tuple in the originator's direction if it asks.
#[inline(always)]
pub(super) fn revalidate<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    flow: &Flow,
    source: Option<&Endpoint>,
    destination: Option<&Endpoint>,
) -> Result<(), Reason> {
    if tables.config().has_policy() == 0 || itself(source, destination) {
        return Ok(());
    }
    let epoch = tables.settings().map_or(0, |settings| settings.class_epoch);
    let moved = epoch != flow.class_epoch.get();
    let destination = destination.filter(|_| flow.source_endpoint != FROM_HOST);
    if let Some(source) = source {
        let generation = generation(tables, source.egress_rules);
        if generation != flow.egress_generation.get() || (moved && generation != 0) {
            if source.egress_rules != 0 {
                let held = (flow.egress_bits.get(), flow.egress_word.get());
                ask_again(tables, packet, work, flow, source, policy_direction::EGRESS, held)?;
                flow.egress_bits.set(work.answer.bits);
                flow.egress_word.set(work.answer.word);
                flow.egress_rule.set(work.answer.rule);
            }
            flow.egress_generation.set(generation);
        }
    }
    if let Some(destination) = destination {
        let generation = generation(tables, destination.ingress_rules);
        if generation != flow.ingress_generation.get() || (moved && generation != 0) {
            if destination.ingress_rules != 0 {
                let held = (flow.ingress_bits.get(), flow.ingress_word.get());
                ask_again(
                    tables,
                    packet,
                    work,
                    flow,
                    destination,
                    policy_direction::INGRESS,
                    held,
                )?;
                flow.ingress_bits.set(work.answer.bits);
                flow.ingress_word.set(work.answer.word);
                flow.ingress_rule.set(work.answer.rule);
            }
            flow.ingress_generation.set(generation);
        }
    }
    if moved {
        flow.class_epoch.set(epoch);
    }
    Ok(())
}

#[inline(always)]
fn ask_again<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    flow: &Flow,
    endpoint: &Endpoint,
    direction: u8,
    (held_bits, held_word): (u64, u32),
) -> Result<(), Reason> {
    conntrack::forward_tuple(&work.key, flow, &mut work.out);
    ask(work, endpoint, direction, held_bits, held_word);
    judge(tables, packet, work)
}

/// [`Flow::source_endpoint`] of a connection that the host itself began.
pub const FROM_HOST: u32 = u32::MAX;
