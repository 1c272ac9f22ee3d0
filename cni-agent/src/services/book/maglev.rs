//! Maglev tables in the kernel: their numbers, their parts, and the room that there is for them.

use std::{collections::BTreeSet, sync::Arc};

use cni_ebpf::abi::{MaglevChunk, MaglevKey, Service, ServiceKey, service_scope};

use super::{Book, Entry, Set};
use crate::{
    compile::service::{SlotSet, Target, maglev},
    model::NamespacedName,
    services::{Edits, Keys},
};

const PLACES: usize = MaglevChunk::PLACES as usize;

/// A table as it stands in the map. Its number stands for this content and no other.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) number: u32,
    /// For each place the number of a backend.
    pub(super) backends: Box<[u32]>,
}

/// Room for tables that are in use. There is as much again for tables that take their place.
#[derive(Debug)]
pub(super) struct Room {
    most: usize,
    pub(super) used: usize,
    /// Services that found none.
    waiting: BTreeSet<Arc<NamespacedName>>,
    /// There may be some now.
    freed: bool,
}

impl Room {
    pub(super) fn new(entries: usize) -> Self {
        Self {
            most: entries / 2,
            used: 0,
            waiting: BTreeSet::new(),
            freed: false,
        }
    }

    pub(super) fn take_waiting(&mut self) -> BTreeSet<Arc<NamespacedName>> {
        if std::mem::take(&mut self.freed) {
            std::mem::take(&mut self.waiting)
        } else {
            BTreeSet::new()
        }
    }

    fn leave(&mut self, parts: usize) {
        self.used -= parts;
        self.freed |= parts > 0;
    }

    fn has(&self, parts: usize) -> bool {
        self.used + parts <= self.most
    }
}

impl Places {
    fn size(&self) -> u32 {
        u32::try_from(self.backends.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn parts(&self) -> usize {
        self.backends.len().div_ceil(PLACES)
    }

    fn key(&self, chunk: usize) -> MaglevKey {
        MaglevKey {
            table: self.number,
            chunk: u32::try_from(chunk).unwrap_or(u32::MAX),
        }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = MaglevKey> {
        (0..self.parts()).map(|chunk| self.key(chunk))
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = (MaglevKey, MaglevChunk)> {
        let chunks = self.backends.chunks(PLACES).map(chunk);
        self.keys().zip(chunks)
    }

    pub(super) fn part(&self, key: &MaglevKey) -> Option<MaglevChunk> {
        self.backends.chunks(PLACES).nth(key.chunk as usize).map(chunk)
    }
}

fn chunk(backends: &[u32]) -> MaglevChunk {
    let mut chunk = MaglevChunk {
        backends: [0; PLACES],
    };
    chunk.backends[..backends.len()].copy_from_slice(backends);
    chunk
}

impl Book {
    /// The table that a set should have, and what changes for it: a table that is another one is written under another
    /// number, and the frontend, which is written behind it, switches. `None` too if there is no room.
    pub(super) fn tabulate(
        &mut self,
        (name, owner): (&Arc<NamespacedName>, u32),
        set: &SlotSet,
        old: Option<Box<Places>>,
        problems: &mut Vec<String>,
        edits: &mut Edits,
    ) -> Option<Box<Places>> {
        let held = old.as_ref().map_or(0, |old| old.parts());
        let wanted = set.maglev.filter(|_| !set.targets.is_empty());
        let Some(size) = wanted else {
            self.forget(old, &mut edits.gone);
            return None;
        };
        let parts = (size as usize).div_ceil(PLACES);
        // Its own old table is gone then.
        self.room.used -= held;
        let fits = self.room.has(parts);
        self.room.used += held;
        if !fits {
            self.forget(old, &mut edits.gone);
            problems.push(self.no_room(name, size));
            self.room.waiting.insert(Arc::clone(name));
            return None;
        }
        let backends = self.place(owner, &set.targets, size);
        if let Some(old) = old {
            if old.backends == backends {
                return Some(old);
            }
            self.forget(Some(old), &mut edits.gone);
        }
        self.room.used += parts;
        let places = Box::new(Places {
            number: self.numbers.give(),
            backends,
        });
        edits.put.maglev.extend(places.rows());
        Some(places)
    }

    fn place(&self, owner: u32, targets: &[Target], size: u32) -> Box<[u32]> {
        let numbers: Vec<u32> = targets
            .iter()
            .map(|target| self.backends.number_of(owner, target).unwrap_or(0))
            .collect();
        let places = maglev::fill(targets, size);
        places.into_iter().map(|place| numbers[place as usize]).collect()
    }

    pub(super) fn forget(&mut self, places: Option<Box<Places>>, gone: &mut Keys) {
        if let Some(places) = places {
            gone.maglev.extend(places.keys());
            self.room.leave(places.parts());
            self.numbers.release(places.number);
        }
    }

    /// The table that an earlier agent gave to one of these frontends.
    pub(super) fn recovered_places(&mut self, keys: &[ServiceKey]) -> Option<Box<Places>> {
        let (number, backends) = self.recovered.table_of(keys)?;
        let places = Box::new(Places { number, backends });
        self.room.used += places.parts();
        Some(places)
    }

    /// How a problem of too little room is told.
    fn no_room(&self, name: &NamespacedName, size: u32) -> String {
        format!(
            "Service {name}: there is no room for its Maglev table of {size} places ({} of {} parts of {PLACES} are in use), \
             and its connections from outside get any endpoint; raise `maps.maglev` in the configuration and restart the \
             agent, or ask for smaller tables with services.maglevTableSize",
            self.room.used, self.room.most
        )
    }
}

impl Set {
    /// The row of a frontend of this set, which tells it its table.
    pub(super) fn tell(&self, key: &ServiceKey, service: &mut Service) {
        if key.scope == service_scope::EXTERNAL
            && let Some(places) = &self.places
        {
            service.maglev = places.number;
            service.maglev_size = places.size();
        }
    }
}

impl Entry {
    pub(super) fn tables(&self) -> impl Iterator<Item = &Places> {
        self.sets.iter().filter_map(|set| set.places.as_deref())
    }
}
