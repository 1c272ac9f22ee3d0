//! The book as the maps should have it.

use std::collections::{BTreeMap, HashMap, HashSet};

use cni_ebpf::abi::{
    self, Backend, MaglevChunk, MaglevKey, MemberKey, Service, ServiceKey, Slot, SourceRange,
};

use super::{Book, Known, Set, maglev::Places};
use crate::{
    desired::Table,
    services::{Keys, Rows},
};

/// What a row of the kernel is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::services) enum Verdict {
    Right,
    /// Its key is right, and its value should be this one.
    Stale(Vec<u8>),
    Superfluous,
}

/// For one comparison with the kernel: what is found by a number.
#[derive(Debug)]
pub struct View<'a> {
    book: &'a Book,
    /// By the first place of their blocks.
    sets: BTreeMap<u32, &'a Set>,
    members: HashSet<MemberKey>,
    ranges: HashSet<SourceRange>,
    tables: HashMap<u32, &'a Places>,
}

impl Book {
    pub fn view(&self) -> View<'_> {
        let sets = || self.entries.values().flat_map(|entry| &entry.sets);
        let with_slots = sets().filter(|set| !set.slots.is_empty());
        View {
            book: self,
            sets: with_slots.map(|set| (set.block.first, set)).collect(),
            members: sets().flat_map(Set::members).collect(),
            ranges: self
                .entries
                .values()
                .flat_map(|entry| entry.ranges.iter().copied())
                .collect(),
            tables: self
                .entries
                .values()
                .flat_map(|entry| entry.tables())
                .map(|places| (places.number, places))
                .collect(),
        }
    }
}

impl View<'_> {
    /// How many rows a table should have.
    pub fn expected(&self, table: Table) -> usize {
        match table {
            Table::Services => self.book.owners.len(),
            Table::ServiceSlots => self.book.slots,
            Table::ServiceMembers => self.members.len(),
            Table::ServiceRanges => self.ranges.len(),
            Table::Maglev => self.book.room.used,
            Table::Backends => self.book.backends.len(),
            _ => 0,
        }
    }

    pub(in crate::services) fn judge(&self, table: Table, key: &[u8], value: &[u8]) -> Verdict {
        let wanted = match table {
            Table::Services => abi::from_bytes(key).and_then(|key| self.service(&key)).map(bytes),
            Table::ServiceSlots => abi::from_bytes(key).and_then(|place| self.slot(place)).map(bytes),
            Table::ServiceMembers => {
                let known = abi::from_bytes(key).is_some_and(|key| self.members.contains(&key));
                known.then(|| bytes(1u32))
            }
            Table::ServiceRanges => {
                let known = abi::from_bytes(key).is_some_and(|key| self.ranges.contains(&key));
                known.then(|| bytes(1u32))
            }
            Table::Maglev => abi::from_bytes(key).and_then(|key| self.part(&key)).map(bytes),
            Table::Backends => abi::from_bytes(key).and_then(|key| self.backend(key)).map(bytes),
            _ => None,
        };
        match wanted {
            Some(wanted) if wanted == value => Verdict::Right,
            Some(wanted) => Verdict::Stale(wanted),
            None => Verdict::Superfluous,
        }
    }

    fn service(&self, key: &ServiceKey) -> Option<Service> {
        let entry = self.book.entries.get(self.book.owners.get(key)?)?;
        let found = entry.frontends.iter().find(|(other, _)| other == key);
        found.map(|(_, service)| *service)
    }

    fn slot(&self, place: u32) -> Option<Slot> {
        let (first, set) = self.sets.range(..=place).next_back()?;
        let backend = set.slots.get(usize::try_from(place - first).ok()?)?;
        Some(self.book.slot(set.number, *backend))
    }

    fn part(&self, key: &MaglevKey) -> Option<MaglevChunk> {
        self.tables.get(&key.table)?.part(key)
    }

    fn backend(&self, number: u32) -> Option<Backend> {
        self.book.backends.get(number).map(Known::row)
    }

    /// All rows of a table.
    pub fn rows(&self, table: Table) -> Rows {
        let mut rows = Rows::default();
        match table {
            Table::Services => {
                let all = self.book.entries.values().flat_map(|entry| &entry.frontends);
                rows.services.extend(all.copied());
            }
            Table::ServiceSlots => {
                for set in self.sets.values() {
                    let slots = set.block.places().zip(&set.slots);
                    let slots = slots.map(|(place, backend)| (place, self.book.slot(set.number, *backend)));
                    rows.slots.extend(slots);
                }
            }
            Table::ServiceMembers => rows.members.extend(self.members.iter().map(|key| (*key, 1))),
            Table::Maglev => rows
                .maglev
                .extend(self.tables.values().flat_map(|places| places.rows())),
            Table::ServiceRanges => rows.ranges.extend(self.ranges.iter().map(|range| (*range, 1))),
            Table::Backends => {
                let all = self.book.backends.iter();
                rows.backends
                    .extend(all.map(|(number, known)| (number, known.row())));
            }
            _ => {}
        }
        rows
    }
}

impl Rows {
    /// Takes a row as bytes.
    pub fn push(&mut self, table: Table, key: &[u8], value: &[u8]) {
        fn row<K: abi::Plain, V: abi::Plain>(key: &[u8], value: &[u8]) -> Option<(K, V)> {
            abi::from_bytes(key).zip(abi::from_bytes(value))
        }
        match table {
            Table::Services => self.services.extend(row(key, value)),
            Table::ServiceSlots => self.slots.extend(row(key, value)),
            Table::ServiceMembers => self.members.extend(row(key, value)),
            Table::ServiceRanges => self.ranges.extend(row(key, value)),
            Table::Maglev => self.maglev.extend(row(key, value)),
            Table::Backends => self.backends.extend(row(key, value)),
            _ => {}
        }
    }
}

impl Keys {
    /// Takes a key of the kernel's.
    pub fn push(&mut self, table: Table, key: &[u8]) {
        match table {
            Table::Services => self.services.extend(abi::from_bytes::<ServiceKey>(key)),
            Table::ServiceSlots => self.slots.extend(abi::from_bytes::<u32>(key)),
            Table::ServiceMembers => self.members.extend(abi::from_bytes::<MemberKey>(key)),
            Table::ServiceRanges => self.ranges.extend(abi::from_bytes::<SourceRange>(key)),
            Table::Maglev => self.maglev.extend(abi::from_bytes::<MaglevKey>(key)),
            Table::Backends => self.backends.extend(abi::from_bytes::<u32>(key)),
            _ => {}
        }
    }
}

fn bytes<T: abi::Plain>(value: T) -> Vec<u8> {
    abi::as_bytes(&value).to_vec()
}
