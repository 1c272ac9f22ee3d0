//! Backends by their numbers, and found by what they are and whose. There may be a hundred thousand: what each is stands here
//! once. An endpoint of two Services is two backends: by its row a program sees that one Service has it no longer, while
//! the other one has.

use std::hash::BuildHasher;

use cni_ebpf::abi::Backend;
use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

use crate::compile::service::Target;

#[derive(Debug, Default)]
pub(super) struct Backends {
    all: HashMap<u32, Known>,
    numbers: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) target: Target,
    /// The Service, as the book counts them.
    pub(super) owner: u32,
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

    pub(super) fn number_of(&self, owner: u32, target: &Target) -> Option<u32> {
        let is_it = |number: &u32| {
            let known = self.get(*number);
            known.is_some_and(|known| known.owner == owner && known.target == *target)
        };
        let hash = self.hasher.hash_one((owner, target));
        self.numbers.find(hash, is_it).copied()
    }

    /// One that is not there yet.
    pub(super) fn insert(&mut self, number: u32, known: Known) {
        self.all.insert(number, known);
        let hash = |number: &u32| {
            let known = self.all.get(number);
            known.map_or(0, |known| self.hasher.hash_one((known.owner, &known.target)))
        };
        self.numbers.insert_unique(hash(&number), number, hash);
    }

    pub(super) fn remove(&mut self, number: u32) {
        let Some(known) = self.all.get(&number) else {
            return;
        };
        let hash = self.hasher.hash_one((known.owner, &known.target));
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
                owner: number % 2,
                flags: 0,
            };
            backends.insert(number * 3, known);
        }
        (1..1_000).for_each(|number| backends.remove(number * 3));
        assert_eq!(backends.len(), 1_000);
        for number in 1..2_000 {
            let expected = (number >= 1_000).then_some(number * 3);
            assert_eq!(
                backends.number_of(number % 2, &target(number)),
                expected,
                "{number}"
            );
            let another = (number + 1) % 2;
            assert_eq!(backends.number_of(another, &target(number)), None, "{number}");
        }
    }
}
