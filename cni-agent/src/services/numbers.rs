//! Numbers that are not given twice, whatever becomes of the agent: connections in the kernel bear them.

use std::{fs, io, path::PathBuf};

use roaring::RoaringBitmap;

use crate::ledger;

/// How many are set aside at a time: a write for each would be a write for each endpoint of the cluster, and a node that begins
/// waits for the disk.
const BLOCK: u32 = 1 << 18;
/// To a release whose slots were a hash the bit above says that a slot's key is not a slot.
const LAST: u32 = (1 << 31) - 1;

/// Gives numbers from 1, round and round.
#[derive(Debug)]
pub struct Numbers {
    /// Holds the end of the block that is being given.
    file: PathBuf,
    last: u32,
    /// Of the block.
    left: u32,
    in_use: RoaringBitmap,
}

impl Numbers {
    /// Goes on behind whatever an earlier agent may have given.
    pub fn open(file: PathBuf) -> io::Result<Self> {
        let last = match fs::read_to_string(&file) {
            // After a power cut, which no connection outlives either.
            Ok(text) => text.trim().parse().unwrap_or_else(|error| {
                tracing::warn!(file = %file.display(), %error, "the numbers of Services begin anew");
                0
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(Self {
            file,
            last,
            left: 0,
            in_use: RoaringBitmap::new(),
        })
    }

    /// This one is in use already.
    pub fn claim(&mut self, number: u32) {
        self.in_use.insert(number);
    }

    pub fn is_in_use(&self, number: u32) -> bool {
        self.in_use.contains(number)
    }

    pub fn release(&mut self, number: u32) {
        self.in_use.remove(number);
    }

    pub fn give(&mut self) -> u32 {
        loop {
            if self.left == 0 {
                self.set_aside();
            }
            self.last = if self.last >= LAST { 1 } else { self.last + 1 };
            self.left -= 1;
            if self.in_use.insert(self.last) {
                return self.last;
            }
        }
    }

    fn set_aside(&mut self) {
        self.left = BLOCK;
        let end = self.last.saturating_add(BLOCK);
        let end = if end > LAST { end - LAST } else { end };
        // Without a disk Services are served all the same; only after a restart a number may be given again.
        if let Err(error) = ledger::write(&self.file, end.to_string().as_bytes()) {
            tracing::warn!(file = %self.file.display(), %error, "numbers of Services cannot be set aside on disk");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_not_given_twice_by_the_next_agent_either() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("numbers");
        let mut numbers = Numbers::open(file.clone()).unwrap();
        let first: Vec<u32> = (0..3).map(|_| numbers.give()).collect();
        assert_eq!(first, [1, 2, 3]);
        numbers.release(2);
        assert_eq!(numbers.give(), 4, "not the one that was just given back");
        let mut again = Numbers::open(file.clone()).unwrap();
        assert!(again.give() > 4);
        fs::write(&file, (LAST - 1).to_string()).unwrap();
        let mut last = Numbers::open(file.clone()).unwrap();
        last.claim(1);
        assert_eq!(
            [last.give(), last.give()],
            [LAST, 2],
            "round, and past what is in use"
        );
        for torn in ["", "x", "4294967296"] {
            fs::write(&file, torn).unwrap();
            assert_eq!(
                Numbers::open(file.clone()).unwrap().give(),
                1,
                "the node has a network"
            );
        }
    }
}
