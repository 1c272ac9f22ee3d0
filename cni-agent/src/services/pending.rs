//! Rows that nothing names any more. They go a moment later: a packet that has read the frontend still finds its slot, and
//! one that has read the slot its backend.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

use cni_ebpf::abi::{MaglevKey, MemberKey, SourceRange};

use super::{Keys, Rows, blocks::Block, room::Counts};

/// A program runs for microseconds; this is for one that was interrupted in the middle.
const GRACE: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub struct Pending {
    slots: HashMap<u32, Instant>,
    members: HashMap<MemberKey, Instant>,
    ranges: HashMap<SourceRange, Instant>,
    maglev: HashMap<MaglevKey, Instant>,
    backends: HashMap<u32, Instant>,
    blocks: HashMap<Block, Instant>,
    /// When the first of them is due.
    due: Option<Instant>,
}

impl Pending {
    /// Takes all but the frontends, which go at once.
    pub fn add(&mut self, keys: Keys, now: Instant) {
        let at = now + GRACE;
        self.slots.extend(keys.slots.into_iter().map(|key| (key, at)));
        self.members.extend(keys.members.into_iter().map(|key| (key, at)));
        self.ranges.extend(keys.ranges.into_iter().map(|key| (key, at)));
        self.maglev.extend(keys.maglev.into_iter().map(|key| (key, at)));
        self.backends
            .extend(keys.backends.into_iter().map(|key| (key, at)));
        self.settle_due();
    }

    /// Blocks that no frontend names any more. What becomes of their rows is another matter.
    pub fn retire(&mut self, blocks: Vec<Block>, now: Instant) {
        self.blocks
            .extend(blocks.into_iter().map(|block| (block, now + GRACE)));
        self.settle_due();
    }

    /// Those that nobody can be reading. Their rows go first, at the same time at the latest: see
    /// [`take_due`](Self::take_due).
    pub fn take_blocks(&mut self, now: Instant) -> Vec<Block> {
        let blocks = take(&mut self.blocks, now);
        self.settle_due();
        blocks
    }

    /// What is written stays.
    pub fn keep(&mut self, rows: &Rows) {
        if self.due.is_none() {
            return;
        }
        rows.slots.iter().for_each(|(key, _)| _ = self.slots.remove(key));
        rows.members
            .iter()
            .for_each(|(key, _)| _ = self.members.remove(key));
        rows.ranges
            .iter()
            .for_each(|(key, _)| _ = self.ranges.remove(key));
        rows.maglev
            .iter()
            .for_each(|(key, _)| _ = self.maglev.remove(key));
        rows.backends
            .iter()
            .for_each(|(key, _)| _ = self.backends.remove(key));
        self.settle_due();
    }

    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    pub fn take_due(&mut self, now: Instant) -> Keys {
        if self.due.is_none_or(|at| at > now) {
            return Keys::default();
        }
        let keys = Keys {
            services: Vec::new(),
            ranges: take(&mut self.ranges, now),
            maglev: take(&mut self.maglev, now),
            members: take(&mut self.members, now),
            slots: take(&mut self.slots, now),
            backends: take(&mut self.backends, now),
        };
        self.settle_due();
        keys
    }

    /// How many rows are to go.
    pub fn counts(&self) -> Counts {
        Counts {
            backends: self.backends.len(),
            slots: self.blocks.keys().map(|block| block.len as usize).sum(),
            members: self.members.len(),
            ranges: self.ranges.len(),
            services: 0,
        }
    }

    /// An audit finds whatever rows were to go.
    pub fn clear(&mut self) {
        let blocks = std::mem::take(&mut self.blocks);
        *self = Self {
            blocks,
            ..Self::default()
        };
        self.settle_due();
    }

    fn settle_due(&mut self) {
        let all = self
            .slots
            .values()
            .chain(self.members.values())
            .chain(self.blocks.values())
            .chain(self.ranges.values())
            .chain(self.maglev.values())
            .chain(self.backends.values());
        self.due = all.min().copied();
    }
}

fn take<K: Copy + Eq + Hash>(all: &mut HashMap<K, Instant>, now: Instant) -> Vec<K> {
    all.extract_if(|_, at| *at <= now).map(|(key, _)| key).collect()
}

#[cfg(test)]
mod tests {
    use cni_ebpf::abi::Slot;

    use super::*;

    #[test]
    fn what_comes_back_in_time_stays() {
        let now = Instant::now();
        let mut pending = Pending::default();
        let keys = Keys {
            slots: vec![0, 1],
            backends: vec![7],
            ..Keys::default()
        };
        pending.add(keys, now);
        assert!(
            pending.take_due(now).is_empty(),
            "a reader may still be on its way"
        );
        let rows = Rows {
            slots: vec![(1, Slot::default())],
            ..Rows::default()
        };
        pending.keep(&rows);
        let due = pending.take_due(now + GRACE);
        assert_eq!((due.slots, due.backends), (vec![0], vec![7]));
        assert_eq!(pending.due(), None);
    }

    #[test]
    fn a_block_is_held_back_as_long_as_a_reader_may_be_there_whatever_an_audit_finds() {
        let now = Instant::now();
        let mut pending = Pending::default();
        let block = Block { first: 4, len: 3 };
        pending.retire(vec![block], now);
        pending.clear();
        assert_eq!(pending.counts().slots, 3);
        assert_eq!(pending.due(), Some(now + GRACE));
        assert_eq!(pending.take_blocks(now + GRACE / 2), []);
        assert_eq!(pending.take_blocks(now + GRACE), [block]);
        assert_eq!(pending.due(), None);
    }
}
