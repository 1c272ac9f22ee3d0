//! Where in the array of slots each set has its own: blocks of neighbouring places.
//!
//! A set begins with an eighth of room to grow, if there is any; one that outgrows its block grows into what is free behind
//! it, or gets another one. A block is taken out of the smallest free piece that holds it, the first of these: which one it is
//! depends on nothing but what was taken and given back. In blocks at most half of the places hold nothing, an eighth unless a
//! set has shrunk, and none as soon as somebody lacks places. What lies free between blocks is bounded by nothing but what sets
//! do to each other: who needs a larger piece than there is waits for one.

use std::collections::{BTreeMap, BTreeSet};

/// Places next to each other; none of length 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    pub first: u32,
    pub len: u32,
}

/// A set's block, and how many slots it needs.
pub(crate) type Want = (Block, u32);

impl Block {
    pub(crate) const NONE: Self = Self { first: 0, len: 0 };

    pub(crate) fn end(self) -> u32 {
        self.first + self.len
    }

    pub(crate) fn places(self) -> std::ops::Range<u32> {
        self.first..self.end()
    }

    /// The first places, and the others. What has no place is nowhere: a frontend says so, and the next agent finds the same.
    pub(crate) fn split(self, len: u32) -> (Self, Self) {
        let len = len.min(self.len);
        let rest = Self {
            first: self.first + len,
            len: self.len - len,
        };
        let kept = if len == 0 {
            Self::NONE
        } else {
            Self { len, ..self }
        };
        (kept, rest)
    }

    /// Cuts off what a set of `count` slots need not keep, or, where somebody lacks places, does not fill.
    pub(crate) fn trim(&mut self, count: u32, is_short: bool) -> Self {
        let keeps = match count {
            0 => 0,
            _ if is_short => count,
            _ if self.len / 2 > count => roomy(count),
            _ => self.len,
        };
        let (kept, rest) = self.split(keeps);
        *self = kept;
        rest
    }
}

/// `count` and an eighth at most.
fn roomy(count: u32) -> u32 {
    // Four bits of it count: less than 16 stay as they are.
    match 1 << count.max(1).ilog2().saturating_sub(3) {
        1 => count,
        step => (count + 1).next_multiple_of(step),
    }
}

/// All places: in blocks, on their way out of blocks, or free.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocks {
    most: u32,
    /// Pieces by where they begin, none next to another one.
    free: BTreeMap<u32, u32>,
    /// The same by their length.
    by_length: BTreeSet<(u32, u32)>,
    /// No set's any more; readers may still be there.
    leaving: BTreeSet<Block>,
    used: usize,
}

impl Blocks {
    pub(crate) fn new(most: usize) -> Self {
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        let mut blocks = Self {
            most,
            ..Self::default()
        };
        blocks.add(Block { first: 0, len: most });
        blocks
    }

    /// How many places sets have.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// The longest piece that is free.
    pub(crate) fn longest(&self) -> u32 {
        self.by_length.last().map_or(0, |(len, _)| *len)
    }

    /// Makes this block a set's, if all of it is free.
    pub(crate) fn claim(&mut self, block: Block) -> bool {
        if block.len == 0
            || block
                .first
                .checked_add(block.len)
                .is_none_or(|end| end > self.most)
        {
            return block.len == 0;
        }
        let before = self.free.range(..=block.first).next_back();
        let Some((first, len)) = before.map(|(first, len)| (*first, *len)) else {
            return false;
        };
        let piece = Block { first, len };
        if piece.end() < block.end() {
            return false;
        }
        self.remove(piece);
        self.add(Block {
            first,
            len: block.first - first,
        });
        self.add(Block {
            first: block.end(),
            len: piece.end() - block.end(),
        });
        self.used += block.len as usize;
        true
    }

    /// The blocks of sets that need so many slots: theirs, longer if there is room behind it, or others. `None`: there are no
    /// such blocks, and nothing has changed.
    pub(crate) fn allot(&mut self, wants: &[Want]) -> Option<Vec<Block>> {
        self.allot_with_room(wants).or_else(|| self.allot_exactly(wants))
    }

    fn allot_with_room(&mut self, wants: &[Want]) -> Option<Vec<Block>> {
        let roomier: Vec<Want> = wants
            .iter()
            .map(|(block, count)| (*block, if *count > block.len { roomy(*count) } else { *count }))
            .collect();
        self.allot_exactly(&roomier)
    }

    /// The same without room to grow.
    pub(crate) fn allot_exactly(&mut self, wants: &[Want]) -> Option<Vec<Block>> {
        // Who needs another block must not take what lies behind the one that could grow.
        let mut allotted: Vec<Option<Block>> = Vec::with_capacity(wants.len());
        allotted.extend(wants.iter().map(|(block, count)| self.grown(*block, *count)));
        for (place, (_, count)) in allotted.iter_mut().zip(wants) {
            *place = place.or_else(|| self.take(*count));
        }
        if allotted.contains(&None) {
            let done = allotted.iter().zip(wants);
            done.for_each(|(new, (old, _))| self.undo(*old, new.unwrap_or(*old)));
            return None;
        }
        Some(allotted.into_iter().flatten().collect())
    }

    /// Whether [`allot`](Self::allot) would find something.
    pub(crate) fn has(&self, wants: &[Want]) -> bool {
        self.evidently_has(wants).unwrap_or_else(|| {
            let mut copy = Self {
                leaving: BTreeSet::new(),
                free: self.free.clone(),
                by_length: self.by_length.clone(),
                ..*self
            };
            copy.allot_exactly(wants).is_some()
        })
    }

    /// The same, where it takes no copy to know it: many may wait, each time that anything changes.
    fn evidently_has(&self, wants: &[Want]) -> Option<bool> {
        let longest = self.longest();
        let new = || wants.iter().filter(|(block, count)| *count > block.len);
        let fits_alone = |(block, count): &Want| {
            // Who waits may have given up the end of its block since it was asked.
            let behind = self.free.range(..=block.end()).next_back();
            let reaches = |(first, len): (&u32, &u32)| first + len >= block.first + count;
            *count <= longest || block.len > 0 && behind.is_some_and(reaches)
        };
        if !new().all(fits_alone) {
            return Some(false);
        }
        let all: u64 = new().map(|(_, count)| u64::from(*count)).sum();
        (new().count() <= 1 || all <= u64::from(longest)).then_some(true)
    }

    /// The same, when everything has left that is about to.
    pub(crate) fn will_have(&self, wants: &[Want]) -> bool {
        if self.leaving.is_empty() {
            return self.has(wants);
        }
        let mut later = self.clone();
        self.leaving.iter().for_each(|block| later.free(*block));
        later.allot_exactly(wants).is_some()
    }

    /// The set has left this block, or the end of its own. Nobody gets it before it is [free](Self::free).
    pub(crate) fn retire(&mut self, block: Block) {
        if block.len > 0 {
            self.used -= block.len as usize;
            self.leaving.insert(block);
        }
    }

    /// Nobody can be reading a block that was retired.
    pub(crate) fn free(&mut self, block: Block) {
        if self.leaving.remove(&block) {
            self.add(block);
        }
    }

    fn grown(&mut self, block: Block, count: u32) -> Option<Block> {
        if count <= block.len {
            return Some(block);
        }
        let more = Block {
            first: block.end(),
            len: count - block.len,
        };
        (block.len > 0 && self.claim(more)).then_some(Block { len: count, ..block })
    }

    fn take(&mut self, count: u32) -> Option<Block> {
        let (_, first) = *self.by_length.range((count, 0)..).next()?;
        let block = Block { first, len: count };
        self.claim(block).then_some(block)
    }

    /// As if it had never been given.
    fn undo(&mut self, old: Block, new: Block) {
        let given = if old.len > 0 && old.first == new.first {
            Block {
                first: old.end(),
                len: new.len - old.len,
            }
        } else {
            new
        };
        self.used -= given.len as usize;
        self.add(given);
    }

    fn add(&mut self, mut piece: Block) {
        if piece.len == 0 {
            return;
        }
        if let Some((first, len)) = self.free.range(..piece.first).next_back().map(|(a, b)| (*a, *b))
            && first + len == piece.first
        {
            self.remove(Block { first, len });
            piece = Block {
                first,
                len: len + piece.len,
            };
        }
        if let Some(len) = self.free.get(&piece.end()).copied() {
            self.remove(Block {
                first: piece.end(),
                len,
            });
            piece.len += len;
        }
        self.free.insert(piece.first, piece.len);
        self.by_length.insert((piece.len, piece.first));
    }

    fn remove(&mut self, piece: Block) {
        self.free.remove(&piece.first);
        self.by_length.remove(&(piece.len, piece.first));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_set_that_grows_by_one_moves_seldom_and_wastes_little() {
        let mut blocks = Blocks::new(1 << 18);
        let mut block = Block::NONE;
        let mut moves = 0;
        for count in 1..=10_000 {
            // Another one is right behind it each time.
            let new = blocks.allot(&[(block, count)]).unwrap()[0];
            blocks.allot(&[(Block::NONE, 1)]).unwrap();
            if new.first != block.first || block.len == 0 {
                moves += 1;
                blocks.retire(block);
                blocks.free(block);
            }
            block = new;
            assert!(block.len <= count + count / 8, "{count}: {block:?}");
        }
        assert!(moves < 100, "{moves}");
        let (len, end) = (block.len, block.end());
        assert_eq!((block.trim(10_000, false).len, block.len), (0, len));
        let rest = block.trim(20, false);
        assert_eq!((block.len, rest.first, rest.end()), (roomy(20), block.end(), end));
        assert_eq!((block.trim(20, true).len, block.len), (roomy(20) - 20, 20));
        assert_eq!((block.trim(0, false).len, block), (20, Block::NONE));
    }

    #[test]
    fn what_is_free_behind_a_block_makes_it_longer_and_what_does_not_fit_changes_nothing() {
        let mut blocks = Blocks::new(20);
        let first = blocks.allot(&[(Block::NONE, 6)]).unwrap()[0];
        assert_eq!(first, Block { first: 0, len: 6 });
        let longer = blocks.allot(&[(first, 12)]).unwrap()[0];
        assert_eq!((longer.first, longer.len), (0, 12));
        assert_eq!(blocks.allot(&[(Block::NONE, 4), (Block::NONE, 5)]), None);
        assert!(!blocks.has(&[(Block::NONE, 4), (Block::NONE, 5)]));
        let rest = blocks.allot(&[(Block::NONE, 5), (Block::NONE, 3)]).unwrap();
        assert_eq!(rest, [Block { first: 12, len: 5 }, Block { first: 17, len: 3 }]);
        assert_eq!((blocks.used(), blocks.longest()), (20, 0));
        blocks.retire(longer);
        assert_eq!(
            blocks.allot(&[(Block::NONE, 1)]),
            None,
            "somebody may be reading it"
        );
        assert!(blocks.will_have(&[(Block::NONE, 12)]));
        assert!(!blocks.will_have(&[(Block::NONE, 13)]));
        blocks.free(longer);
        assert!(blocks.claim(Block { first: 3, len: 4 }));
        assert!(!blocks.claim(Block { first: 6, len: 4 }), "part of it is a set's");
        assert!(!blocks.claim(Block { first: 19, len: 2 }));
    }

    proptest! {
        #[test]
        fn no_two_blocks_overlap_and_none_is_given_before_it_is_free(
            most in 1usize..80,
            steps in proptest::collection::vec((0u8..6, 0u32..24, 0u8..8), 1..80),
        ) {
            let mut blocks = Blocks::new(most);
            let mut sets: BTreeMap<u8, Block> = BTreeMap::new();
            let mut leaving: Vec<Block> = Vec::new();
            for (set, count, fate) in steps {
                let old = sets.get(&set).copied().unwrap_or_default();
                match fate {
                    0 if !leaving.is_empty() => blocks.free(leaving.remove(0)),
                    1 => {
                        sets.remove(&set);
                        blocks.retire(old);
                        leaving.extend((old.len > 0).then_some(old));
                    }
                    2 | 3 => {
                        let mut kept = old;
                        let rest = kept.trim(count.min(old.len), fate == 3);
                        blocks.retire(rest);
                        leaving.extend((rest.len > 0).then_some(rest));
                        sets.insert(set, kept);
                    }
                    _ => {
                        let wants = [(old, count)];
                        let had = blocks.has(&wants);
                        let free = most - blocks.used() - leaving.iter().map(|block| block.len as usize).sum::<usize>();
                        match blocks.allot(&wants) {
                            Some(new) => {
                                prop_assert!(had);
                                if old.len > 0 && new[0].first != old.first {
                                    blocks.retire(old);
                                    leaving.push(old);
                                }
                                prop_assert!(new[0].len >= count);
                                sets.insert(set, new[0]);
                            }
                            None => {
                                prop_assert!(!had && count > blocks.longest());
                                let left = most - blocks.used() - leaving.iter().map(|block| block.len as usize).sum::<usize>();
                                prop_assert_eq!(left, free, "nothing has changed");
                            }
                        }
                    }
                }
                let mut all: Vec<Block> = sets.values().chain(&leaving).copied().filter(|block| block.len > 0).collect();
                all.sort();
                prop_assert!(all.windows(2).all(|pair| pair[0].end() <= pair[1].first), "{:?}", all);
                prop_assert!(all.last().is_none_or(|last| last.end() as usize <= most));
                prop_assert_eq!(blocks.used(), sets.values().map(|block| block.len as usize).sum::<usize>());
                // The next agent finds the same blocks, and what is left is the same.
                let mut next = Blocks::new(most);
                prop_assert!(all.iter().all(|block| next.claim(*block)));
                prop_assert_eq!(&next.by_length, &blocks.by_length);
            }
        }
    }
}
