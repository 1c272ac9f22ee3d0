//! Rows of the maps, as they are written and taken away.

use std::{collections::HashSet, hash::Hash};

use cni_ebpf::abi::{
    self, Backend, MaglevChunk, MaglevKey, MemberKey, Plain, Service, ServiceKey, Slot, SourceRange,
};

use super::room::Counts;
use crate::{desired::Table, reconcile::Change};

/// What is written, referenced before referrer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    pub backends: Vec<(u32, Backend)>,
    pub slots: Vec<(u32, Slot)>,
    pub members: Vec<(MemberKey, u32)>,
    pub ranges: Vec<(SourceRange, u32)>,
    pub maglev: Vec<(MaglevKey, MaglevChunk)>,
    pub services: Vec<(ServiceKey, Service)>,
}

/// What is taken away, referrer before referenced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Keys {
    pub services: Vec<ServiceKey>,
    pub ranges: Vec<SourceRange>,
    pub maglev: Vec<MaglevKey>,
    pub members: Vec<MemberKey>,
    /// Places.
    pub slots: Vec<u32>,
    pub backends: Vec<u32>,
}

/// What becomes of one or more Services.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edits {
    pub put: Rows,
    pub gone: Keys,
}

impl Rows {
    pub fn is_empty(&self) -> bool {
        self.backends.is_empty()
            && self.slots.is_empty()
            && self.members.is_empty()
            && self.ranges.is_empty()
            && self.maglev.is_empty()
            && self.services.is_empty()
    }

    pub fn len(&self) -> usize {
        let slots = self.slots.len() + self.members.len();
        self.backends.len() + slots + self.ranges.len() + self.maglev.len() + self.services.len()
    }

    pub fn append(&mut self, mut other: Self) {
        self.backends.append(&mut other.backends);
        self.slots.append(&mut other.slots);
        self.members.append(&mut other.members);
        self.ranges.append(&mut other.ranges);
        self.maglev.append(&mut other.maglev);
        self.services.append(&mut other.services);
    }

    pub fn changes(&self) -> Vec<Change> {
        [
            put(Table::Backends, &self.backends),
            put(Table::ServiceSlots, &self.slots),
            put(Table::ServiceMembers, &self.members),
            put(Table::ServiceRanges, &self.ranges),
            put(Table::Maglev, &self.maglev),
            put(Table::Services, &self.services),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl Edits {
    /// Takes over what happens behind it: what went and comes back stays.
    pub fn append(&mut self, other: Self) {
        self.gone.keep(&other.put);
        self.put.append(other.put);
        self.gone.append(other.gone);
    }
}

impl Keys {
    /// All but those that are written.
    fn keep(&mut self, rows: &Rows) {
        fn keep<K: Copy + Eq + Hash, V>(keys: &mut Vec<K>, rows: &[(K, V)]) {
            if !keys.is_empty() && !rows.is_empty() {
                let written: HashSet<K> = rows.iter().map(|(key, _)| *key).collect();
                keys.retain(|key| !written.contains(key));
            }
        }
        keep(&mut self.services, &rows.services);
        keep(&mut self.ranges, &rows.ranges);
        keep(&mut self.maglev, &rows.maglev);
        keep(&mut self.slots, &rows.slots);
        keep(&mut self.members, &rows.members);
        keep(&mut self.backends, &rows.backends);
    }

    /// Without the slots: these have their places whether anything stands there or not.
    pub fn counts(&self) -> Counts {
        Counts {
            backends: self.backends.len(),
            slots: 0,
            members: self.members.len(),
            ranges: self.ranges.len(),
            services: self.services.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
            && self.ranges.is_empty()
            && self.maglev.is_empty()
            && self.members.is_empty()
            && self.slots.is_empty()
            && self.backends.is_empty()
    }

    pub fn append(&mut self, mut other: Self) {
        self.services.append(&mut other.services);
        self.ranges.append(&mut other.ranges);
        self.maglev.append(&mut other.maglev);
        self.members.append(&mut other.members);
        self.slots.append(&mut other.slots);
        self.backends.append(&mut other.backends);
    }

    pub fn changes(&self) -> Vec<Change> {
        [
            delete(Table::Services, &self.services),
            delete(Table::ServiceRanges, &self.ranges),
            delete(Table::Maglev, &self.maglev),
            delete(Table::ServiceMembers, &self.members),
            delete(Table::ServiceSlots, &self.slots),
            delete(Table::Backends, &self.backends),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn packed<'a, T: Plain + 'a>(all: impl Iterator<Item = &'a T>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(all.size_hint().0 * size_of::<T>());
    all.for_each(|one| bytes.extend_from_slice(abi::as_bytes(one)));
    bytes
}

fn put<K: Plain, V: Plain>(table: Table, rows: &[(K, V)]) -> Option<Change> {
    (!rows.is_empty()).then(|| Change::PutAll {
        table,
        keys: packed(rows.iter().map(|(key, _)| key)),
        values: packed(rows.iter().map(|(_, value)| value)),
    })
}

fn delete<K: Plain>(table: Table, keys: &[K]) -> Option<Change> {
    (!keys.is_empty()).then(|| Change::DeleteAll {
        table,
        keys: packed(keys.iter()),
    })
}
