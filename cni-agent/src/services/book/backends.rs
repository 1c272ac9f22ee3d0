//! Backends by their numbers, and found by what they are. There may be a hundred thousand: what each is stands here once.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
};

use cni_ebpf::abi::Backend;
use hashbrown::HashTable;

use crate::compile::service::Target;

#[derive(Debug, Default)]
pub(super) struct Backends {
    all: HashMap<u32, Known>,
    numbers: HashTable<u32>,
    hasher: RandomState,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) target: Target,
    /// How many Services name it.
    pub(super) users: u32,
    pub(super) flags: u32,
}

impl Known {
    pub(super) fn row(&self) -> Backend {
        Backend {
            addr: self.target.addr,
            port: self.target.port,
            proto: self.target.proto,
            flags: self.flags,
            ..Backend::default()
        }
    }
}

impl Backends {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Known)> {
        self.all.iter().map(|(number, known)| (*number, known))
    }

    pub(super) fn get(&self, number: u32) -> Option<&Known> {
        self.all.get(&number)
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Known> {
        self.all.get_mut(&number)
    }

    pub(super) fn number_of(&self, target: &Target) -> Option<u32> {
        let is_it = |number: &u32| self.get(*number).is_some_and(|known| known.target == *target);
        self.numbers.find(self.hasher.hash_one(target), is_it).copied()
    }

    /// One that is not there yet.
    pub(super) fn insert(&mut self, number: u32, known: Known) {
        self.all.insert(number, known);
        let hash = |number: &u32| {
            let target = self.all.get(number).map(|known| known.target);
            target.map_or(0, |target| self.hasher.hash_one(target))
        };
        self.numbers.insert_unique(hash(&number), number, hash);
    }

    pub(super) fn remove(&mut self, number: u32) {
        let Some(known) = self.all.get(&number) else {
            return;
        };
        let hash = self.hasher.hash_one(known.target);
        if let Ok(entry) = self.numbers.find_entry(hash, |other| *other == number) {
            entry.remove();
        }
        self.all.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use cni_ebpf::abi::{Addr, Port};

    use super::*;

    #[test]
    fn each_is_found_by_what_it_is_until_it_goes() {
        let target = |number: u32| Target {
            addr: Addr::v4(number.to_be_bytes()),
            port: Port::new(80),
            proto: 6,
        };
        let mut backends = Backends::default();
        for number in 1..2_000 {
            let known = Known {
                target: target(number),
                users: 1,
                flags: 0,
            };
            backends.insert(number * 3, known);
        }
        (1..1_000).for_each(|number| backends.remove(number * 3));
        assert_eq!(backends.len(), 1_000);
        for number in 1..2_000 {
            let expected = (number >= 1_000).then_some(number * 3);
            assert_eq!(backends.number_of(&target(number)), expected, "{number}");
        }
    }
}
