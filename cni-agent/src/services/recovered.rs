//! What an earlier agent has left in the maps: the numbers, and the order of slots.

use std::collections::{BTreeMap, HashMap, HashSet};

use cni_ebpf::abi::{
    self, Backend, MaglevChunk, MaglevKey, MemberKey, Service, ServiceKey, Slot, SourceRange,
};

use roaring::RoaringBitmap;

use super::{blocks::Block, room::Counts};
use crate::{
    compile::service::Target,
    desired::Table,
    kernel::{Kernel, KernelError},
    reconcile::Reconciler,
};

#[derive(Debug, Default)]
pub struct Recovered {
    pub(super) sets: HashMap<ServiceKey, Service>,
    slots: BTreeMap<u32, Slot>,
    pub(super) members: HashSet<MemberKey>,
    pub(super) maglev: HashMap<MaglevKey, MaglevChunk>,
    /// The lowest number that an endpoint has, and the others if it is more than one Service's.
    backends: HashMap<Target, u32>,
    twins: HashMap<Target, Vec<u32>>,
    pub(super) ranges: HashSet<SourceRange>,
    rows: usize,
    /// Backends in anybody's slots, and in those of the Service that is looked at.
    in_slots: RoaringBitmap,
    own: RoaringBitmap,
    /// Sets and tables that have found their Service.
    taken: HashSet<u32>,
}

impl Recovered {
    pub fn take(&mut self, table: Table, key: &[u8], value: &[u8]) {
        match table {
            Table::Services => {
                if let (Some(key), Some(value)) = (abi::from_bytes(key), abi::from_bytes(value)) {
                    self.sets.insert(key, value);
                }
            }
            Table::ServiceSlots => {
                if let (Some(key), Some(value)) = (abi::from_bytes(key), abi::from_bytes::<Slot>(value)) {
                    self.in_slots.insert(value.backend);
                    self.slots.insert(key, value);
                }
            }
            Table::ServiceMembers => self.members.extend(abi::from_bytes::<MemberKey>(key)),
            Table::Maglev => {
                if let (Some(key), Some(value)) = (abi::from_bytes(key), abi::from_bytes(value)) {
                    self.maglev.insert(key, value);
                }
            }
            Table::Backends => {
                if let (Some(id), Some(backend)) =
                    (abi::from_bytes::<u32>(key), abi::from_bytes::<Backend>(value))
                {
                    let target = Target {
                        addr: backend.addr,
                        port: backend.port,
                        proto: backend.proto,
                    };
                    self.rows += 1;
                    let lowest = self.backends.entry(target).or_insert(id);
                    if *lowest != id {
                        let twin = id.max(*lowest);
                        *lowest = id.min(*lowest);
                        self.twins.entry(target).or_default().push(twin);
                    }
                }
            }
            Table::ServiceRanges => self.ranges.extend(abi::from_bytes::<SourceRange>(key)),
            _ => {}
        }
    }

    /// No map has a row.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.maglev.is_empty() && self.counts() == Counts::default()
    }

    /// How much there was.
    pub(super) fn counts(&self) -> Counts {
        Counts {
            backends: self.rows,
            slots: 0,
            members: self.members.len(),
            ranges: self.ranges.len(),
            services: self.sets.len(),
        }
    }

    /// The set that one of these frontends had, if no other one has taken it over.
    pub(super) fn find_set<'a>(&self, keys: impl Iterator<Item = &'a ServiceKey>) -> Option<Service> {
        let mut found = keys.filter_map(|key| self.sets.get(key)).copied();
        found.find(|service| service.id != 0 && !self.taken.contains(&service.id))
    }

    /// The same, for the one that takes it over.
    pub(super) fn set_of<'a>(&mut self, keys: impl Iterator<Item = &'a ServiceKey>) -> Option<Service> {
        let service = self.find_set(keys)?;
        self.taken.insert(service.id);
        Some(service)
    }

    /// What follows is about the Service that has these frontends.
    pub(super) fn look_at<'a>(&mut self, keys: impl Iterator<Item = &'a ServiceKey>) {
        let sets = keys.filter_map(|key| self.sets.get(key));
        let slots = sets.flat_map(|service| self.slots_of(service).1);
        self.own = slots.collect();
    }

    /// The number of a backend of the Service: one of its slots', or one of nobody's slots, which is about to end.
    pub(super) fn backend(&self, target: &Target) -> Option<u32> {
        let lowest = self.backends.get(target).copied()?;
        let twins = self.twins.get(target).into_iter().flatten().copied();
        let all = || [lowest].into_iter().chain(twins.clone());
        let own = all().find(|number| self.own.contains(*number));
        own.or_else(|| all().find(|number| !self.in_slots.contains(*number)))
    }

    /// The same, for the one who takes it over.
    pub(super) fn take_backend(&mut self, target: &Target) -> Option<u32> {
        let number = self.backend(target)?;
        let twins = self.twins.remove(target).unwrap_or_default();
        let lowest = self.backends.remove(target);
        let left = lowest.into_iter().chain(twins).filter(|other| *other != number);
        let mut left: Vec<u32> = left.collect();
        if let Some(at) = (0..left.len()).min_by_key(|at| left[*at]) {
            self.backends.insert(*target, left.swap_remove(at));
        }
        if !left.is_empty() {
            self.twins.insert(*target, left);
        }
        Some(number)
    }

    /// The numbers of all that nobody has taken over.
    pub(super) fn backends(&self) -> impl Iterator<Item = u32> {
        let twins = self.twins.values().flatten();
        self.backends.values().chain(twins).copied()
    }

    /// The number of the source ranges that one of these frontends had; 0: none.
    pub(super) fn ranges_of(&self, keys: impl Iterator<Item = ServiceKey>) -> u32 {
        let mut found = keys.filter_map(|key| Some(self.sets.get(&key)?.ranges));
        found.find(|number| *number != 0).unwrap_or(0)
    }

    /// The Maglev table that one of these frontends had, if all of it is there.
    pub(super) fn table_of(&mut self, keys: &[ServiceKey]) -> Option<(u32, Box<[u32]>)> {
        let mut found = keys.iter().filter_map(|key| self.sets.get(key));
        let service = found.find(|service| service.maglev != 0 && !self.taken.contains(&service.maglev))?;
        let parts = service.maglev_size.div_ceil(MaglevChunk::PLACES);
        let part = |chunk| {
            let table = service.maglev;
            self.maglev.get(&MaglevKey { table, chunk })
        };
        let mut places = Vec::new();
        for chunk in (0..parts).map(part) {
            places.extend_from_slice(&chunk?.backends);
        }
        places.truncate(service.maglev_size as usize);
        self.taken.insert(service.maglev);
        Some((service.maglev, places.into()))
    }

    /// The numbers of all tables.
    pub(super) fn tables(&self) -> impl Iterator<Item = u32> {
        let named = self.sets.values().map(|service| service.maglev);
        named.chain(self.maglev.keys().map(|key| key.table))
    }

    /// Where a set's slots are, and the backends in them in their order.
    pub(super) fn slots_of(&self, set: &Service) -> (Block, Vec<u32>) {
        let places = set.first..set.first.saturating_add(set.slots);
        let backends: Vec<u32> = places
            .map_while(|place| self.slots.get(&place))
            .take_while(|slot| slot.service == set.id)
            .map(|slot| slot.backend)
            .collect();
        let block = match u32::try_from(backends.len()) {
            Ok(0) | Err(_) => Block::NONE,
            Ok(len) => Block {
                first: set.first,
                len,
            },
        };
        (block, backends)
    }

    /// Numbers of the sets that have slots or members.
    pub(super) fn sets_of_slots(&self) -> impl Iterator<Item = u32> {
        let members = self.members.iter().map(|key| key.service);
        self.slots.values().map(|slot| slot.service).chain(members)
    }

    /// Each place where anything stands that nobody has taken over.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Block> {
        self.slots.keys().map(|place| Block {
            first: *place,
            len: 1,
        })
    }

    /// Forgets places that there are not.
    pub(super) fn keep_places(&mut self, mut are_there: impl FnMut(Block) -> bool) {
        self.slots.retain(|place, _| {
            are_there(Block {
                first: *place,
                len: 1,
            })
        });
    }

    /// A set has its block from now on.
    pub(super) fn take_block(&mut self, block: Block) {
        block.places().for_each(|place| _ = self.slots.remove(&place));
    }
}

/// Reads what is there.
pub async fn read<K: Kernel>(reconciler: &mut Reconciler<K>) -> Result<Recovered, KernelError> {
    let mut recovered = Recovered::default();
    for table in [
        Table::Services,
        Table::ServiceSlots,
        Table::ServiceMembers,
        Table::ServiceRanges,
        Table::Maglev,
        Table::Backends,
    ] {
        reconciler
            .scan(table, &mut |key, value| recovered.take(table, key, value))
            .await?;
    }
    Ok(recovered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_row_of_any_map_is_something_that_was_left() {
        assert!(Recovered::default().is_empty());
        let rows: [(Table, usize, usize); 6] = [
            (Table::Services, size_of::<ServiceKey>(), size_of::<Service>()),
            (Table::ServiceSlots, 4, size_of::<Slot>()),
            (Table::ServiceMembers, size_of::<MemberKey>(), 4),
            (Table::ServiceRanges, size_of::<SourceRange>(), 4),
            (Table::Maglev, size_of::<MaglevKey>(), size_of::<MaglevChunk>()),
            (Table::Backends, 4, size_of::<Backend>()),
        ];
        for (table, key, value) in rows {
            let mut recovered = Recovered::default();
            recovered.take(table, &vec![1; key], &vec![1; value]);
            assert!(!recovered.is_empty(), "{table:?}");
        }
    }
}
