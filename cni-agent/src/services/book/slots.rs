//! A set's endpoints in its slots, and a Service's source ranges.

use std::collections::BTreeSet;

use cni_ebpf::abi::{MemberKey, Prefix, Slot, SourceRange};
use ipnetwork::IpNetwork;

use super::{Book, Entry, Set};
use crate::{
    compile::service::{Compiled, SlotSet},
    services::{
        Edits,
        blocks::{Block, Want},
    },
};

impl Book {
    /// The blocks of a Service's sets, which were these.
    pub(super) fn allot(&mut self, sets: &[SlotSet], before: &[Option<Set>]) -> Vec<Block> {
        let wants: Vec<Want> = sets
            .iter()
            .zip(before)
            .map(|(set, old)| (old.as_ref().map_or(Block::NONE, |old| old.block), places_of(set)))
            .collect();
        let found = if self.fit.is_short() {
            self.blocks.allot_exactly(&wants)
        } else {
            self.blocks.allot(&wants)
        };
        // Nobody asks for what there is not: see `squeeze`.
        debug_assert!(found.is_some(), "{wants:?}");
        found.unwrap_or_else(|| wants.into_iter().map(|(block, _)| block).collect())
    }

    /// Puts the endpoints into slots so that as few as possible change, and none is left out on the way. In another block than
    /// before all are new, and nothing that stands in the old one changes: the frontend switches in one write.
    pub(super) fn fill(
        &mut self,
        owner: u32,
        (set, mut block): (SlotSet, Block),
        old: Option<Set>,
        edits: &mut Edits,
    ) -> Set {
        let (number, old_block, before, had_members) = match old {
            Some(old) => (old.number, old.block, old.slots, old.members),
            None => (self.numbers.give(), Block::NONE, Box::default(), false),
        };
        let wanted: BTreeSet<u32> = set
            .targets
            .iter()
            .filter_map(|target| self.backends.number_of(owner, target))
            .collect();
        let mut slots = arrange(&before, &wanted);
        slots.truncate(block.len as usize);
        let count = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        let stays = old_block.len > 0 && block.first == old_block.first;
        let kept: &[u32] = if stays { &before } else { &[] };
        for ((slot, backend), place) in slots.iter().enumerate().zip(block.places()) {
            if kept.get(slot) != Some(backend) {
                edits.put.slots.push((place, self.slot(number, *backend)));
            }
        }
        let filled = before.len().min(old_block.len as usize);
        let left = old_block
            .places()
            .take(filled)
            .skip(if stays { slots.len() } else { 0 });
        edits.gone.slots.extend(left);
        let spare = if stays {
            block.trim(count, self.fit.is_short())
        } else {
            old_block
        };
        self.retire(spare);
        let key = |backend: &u32| MemberKey {
            service: number,
            backend: *backend,
        };
        let old_members: BTreeSet<u32> = if had_members {
            before.iter().copied().collect()
        } else {
            BTreeSet::new()
        };
        let members = if set.affinity { wanted } else { BTreeSet::new() };
        let new = members.difference(&old_members);
        edits.put.members.extend(new.map(|backend| (key(backend), 1)));
        edits
            .gone
            .members
            .extend(old_members.difference(&members).map(key));
        Set {
            name: set.name,
            number,
            block,
            slots: slots.into(),
            members: set.affinity,
            hints: set.hints,
            places: None,
        }
    }

    pub(super) fn empty(&mut self, set: Set, edits: &mut Edits) {
        edits.gone.slots.extend(set.block.places().take(set.slots.len()));
        edits.gone.members.extend(set.members());
        self.retire(set.block);
        self.numbers.release(set.number);
        self.forget(set.places, &mut edits.gone);
    }

    /// A backend as it stands in a slot.
    pub(super) fn slot(&self, set: u32, backend: u32) -> Slot {
        let target = self.backends.get(backend).map(|known| known.target);
        target.map_or_else(Slot::default, |target| {
            Slot::new(set, backend, target.addr, target.port)
        })
    }

    /// Nothing that is written from now on leads there.
    pub(super) fn retire(&mut self, block: Block) {
        if block.len > 0 {
            self.blocks.retire(block);
            self.retired.push(block);
        }
    }

    /// Whether a set has places that it does not fill.
    pub(super) fn keeps_room_to_grow(&self) -> bool {
        let mut sets = self.entries.values().flat_map(|entry| &entry.sets);
        // What an earlier agent has left and nobody has found yet is in use, too.
        self.blocks.used() > self.slots && sets.any(|set| set.block.len as usize > set.slots.len())
    }

    /// Somebody needs places that others only might: no set keeps more than it fills.
    pub(super) fn give_up_room_to_grow(&mut self) {
        if !self.keeps_room_to_grow() {
            return;
        }
        for set in self.entries.values_mut().flat_map(|entry| &mut entry.sets) {
            let filled = u32::try_from(set.slots.len()).unwrap_or(u32::MAX);
            let (block, spare) = set.block.split(filled);
            set.block = block;
            if spare.len > 0 {
                self.blocks.retire(spare);
                self.retired.push(spare);
            }
        }
    }

    /// What no frontend names, when all that was said has been written. It is to be [freed](Self::free_blocks) when nobody can be
    /// reading it.
    pub fn take_retired(&mut self) -> Vec<Block> {
        std::mem::take(&mut self.retired)
    }

    pub fn free_blocks(&mut self, blocks: Vec<Block>) {
        blocks.into_iter().for_each(|block| self.blocks.free(block));
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

/// How many places a set takes.
pub(super) fn places_of(set: &SlotSet) -> u32 {
    u32::try_from(set.targets.len()).unwrap_or(u32::MAX)
}

/// Those that stay keep their slots, new ones take the places of those that go, the last ones fill what is left: so every
/// slot below the lower count holds a good backend at each step.
pub(super) fn arrange(before: &[u32], wanted: &BTreeSet<u32>) -> Vec<u32> {
    if before.is_empty() {
        return wanted.iter().copied().collect();
    }
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
