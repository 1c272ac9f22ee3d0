//! What an earlier agent has left in the maps: the numbers, and the order of slots.

use std::collections::{HashMap, HashSet};

use cni_ebpf::abi::{self, Backend, MaglevChunk, MaglevKey, Service, ServiceKey, SlotKey, SourceRange};

use super::room::Counts;
use crate::{
    compile::service::Target,
    desired::Table,
    kernel::{Kernel, KernelError},
    reconcile::Reconciler,
};

#[derive(Debug, Default)]
pub struct Recovered {
    pub(super) sets: HashMap<ServiceKey, Service>,
    pub(super) slots: HashMap<SlotKey, u32>,
    pub(super) maglev: HashMap<MaglevKey, MaglevChunk>,
    pub(super) backends: HashMap<Target, u32>,
    pub(super) ranges: HashSet<SourceRange>,
    /// Of backends there may be two rows for the same.
    rows: usize,
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
                if let (Some(key), Some(value)) = (abi::from_bytes(key), abi::from_bytes(value)) {
                    self.slots.insert(key, value);
                }
            }
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
                    // The lower one, should there be two.
                    self.backends
                        .entry(target)
                        .and_modify(|known| *known = id.min(*known))
                        .or_insert(id);
                }
            }
            Table::ServiceRanges => self.ranges.extend(abi::from_bytes::<SourceRange>(key)),
            _ => {}
        }
    }

    /// How much there was.
    pub(super) fn counts(&self) -> Counts {
        Counts {
            backends: self.rows,
            slots: self.slots.len(),
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

    /// The slots of a set in their order.
    pub(super) fn slots_of(&self, set: u32, count: u32) -> Vec<u32> {
        (0..count)
            .map_while(|slot| self.slots.get(&SlotKey { service: set, slot }).copied())
            .collect()
    }
}

/// Reads what is there.
pub async fn read<K: Kernel>(reconciler: &mut Reconciler<K>) -> Result<Recovered, KernelError> {
    let mut recovered = Recovered::default();
    for table in [
        Table::Services,
        Table::ServiceSlots,
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
