//! A set's endpoints in its slots, and a Service's source ranges.

use std::collections::BTreeSet;

use cni_ebpf::abi::{Prefix, SlotKey, SourceRange};
use ipnetwork::IpNetwork;

use super::{Book, Entry, Set};
use crate::{
    compile::service::{Compiled, SlotSet},
    services::Edits,
};

impl Book {
    /// Puts the endpoints into slots so that as few as possible change, and none is left out on the way.
    pub(super) fn fill(&mut self, owner: u32, set: SlotSet, old: Option<Set>, edits: &mut Edits) -> Set {
        let (number, before, had_members) = match old {
            Some(old) => (old.number, old.slots, old.members),
            None => (self.numbers.give(), Box::default(), false),
        };
        let wanted: BTreeSet<u32> = set
            .targets
            .iter()
            .filter_map(|target| self.backends.number_of(owner, target))
            .collect();
        let slots = arrange(&before, &wanted);
        for (slot, backend) in slots.iter().enumerate() {
            if before.get(slot) != Some(backend) {
                edits.put.slots.push((slot_key(number, slot), *backend));
            }
        }
        edits
            .gone
            .slots
            .extend((slots.len()..before.len()).map(|slot| slot_key(number, slot)));
        let old_members: BTreeSet<u32> = if had_members {
            before.iter().copied().collect()
        } else {
            BTreeSet::new()
        };
        let members = if set.affinity { wanted } else { BTreeSet::new() };
        let member = |backend: &u32| SlotKey::member(number, *backend);
        edits.put.slots.extend(
            members
                .difference(&old_members)
                .map(|backend| (member(backend), *backend)),
        );
        edits
            .gone
            .slots
            .extend(old_members.difference(&members).map(member));
        Set {
            name: set.name,
            number,
            slots: slots.into(),
            members: set.affinity,
            hints: set.hints,
            places: None,
        }
    }

    pub(super) fn empty(&mut self, set: Set, edits: &mut Edits) {
        edits
            .gone
            .slots
            .extend((0..set.slots.len()).map(|slot| slot_key(set.number, slot)));
        if set.members {
            edits.gone.slots.extend(
                set.slots
                    .iter()
                    .map(|backend| SlotKey::member(set.number, *backend)),
            );
        }
        self.numbers.release(set.number);
        self.forget(set.places, &mut edits.gone);
    }

    /// The number of a Service's source ranges, if it has had any; 0: none.
    pub(super) fn ranges_number(&self, old: &Entry, compiled: &Compiled) -> u32 {
        let restricted = compiled.frontends.iter().filter(|frontend| frontend.restricted);
        match old.ranges_number {
            0 => self.recovered.ranges_of(restricted.map(|frontend| frontend.key)),
            number => number,
        }
    }

    /// The rows of the source ranges, and their number.
    pub(super) fn restrict(
        &mut self,
        ranges: Option<&[IpNetwork]>,
        (old, old_number): (&[SourceRange], u32),
        edits: &mut Edits,
    ) -> (Box<[SourceRange]>, u32) {
        let number = match (ranges, old_number) {
            (Some(_), 0) => self.numbers.give(),
            (Some(_), number) => number,
            (None, number) => {
                if number != 0 {
                    self.numbers.release(number);
                }
                0
            }
        };
        let rows: Box<[SourceRange]> = ranges
            .unwrap_or_default()
            .iter()
            .filter_map(|range| source_range(range, number))
            .collect();
        let new = rows.iter().filter(|range| !old.contains(range));
        edits.put.ranges.extend(new.map(|range| (*range, 1)));
        let gone = old.iter().filter(|range| !rows.contains(range));
        edits.gone.ranges.extend(gone);
        (rows, number)
    }
}

pub(super) fn source_range(range: &IpNetwork, number: u32) -> Option<SourceRange> {
    let prefix = Prefix::new(range.network(), range.prefix())?;
    Some(SourceRange {
        len: 32 + prefix.len,
        ranges: number,
        words: prefix.words,
    })
}

pub(super) fn slot_key(service: u32, slot: usize) -> SlotKey {
    SlotKey {
        service,
        slot: u32::try_from(slot).unwrap_or(u32::MAX),
    }
}

/// Those that stay keep their slots, new ones take the places of those that go, the last ones fill what is left: so every
/// slot below the lower count holds a good backend at each step.
pub(super) fn arrange(before: &[u32], wanted: &BTreeSet<u32>) -> Vec<u32> {
    let known: BTreeSet<u32> = before.iter().copied().collect();
    let mut new = wanted.difference(&known);
    let mut seen = BTreeSet::new();
    // `None`: a hole.
    let mut slots: Vec<Option<u32>> = before
        .iter()
        .map(|backend| {
            let stays = wanted.contains(backend) && seen.insert(*backend);
            stays.then_some(*backend).or_else(|| new.next().copied())
        })
        .collect();
    slots.extend(new.map(|backend| Some(*backend)));
    let mut slot = 0;
    while slot < slots.len() {
        if slots[slot].is_none() {
            slots.swap_remove(slot);
        } else {
            slot += 1;
        }
    }
    slots.into_iter().flatten().collect()
}
