//! Every Service as it stands in the maps.

mod backends;
mod claims;
mod describe;
mod fit;
mod maglev;
mod slots;
#[cfg(test)]
mod tests;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cni_ebpf::abi::{MemberKey, Service, ServiceKey, SourceRange};
use hashbrown::HashMap;
use roaring::RoaringBitmap;

use super::{
    Capacity, Counts, Edits, Numbers, Recovered, Rows,
    blocks::{Block, Blocks},
};
use crate::{
    compile::service::{Compiled, Health, HintsUsed, SetName, Target},
    model::NamespacedName,
};

use backends::{Backends, Known};
use claims::Claims;
pub use describe::{Answer, Back, Clients, Description, Front};
use fit::Fit;
use maglev::{Places, Room};
pub(super) use view::Verdict;

/// What Services have in the kernel.
#[derive(Debug)]
pub struct Book {
    entries: BTreeMap<Arc<NamespacedName>, Box<Entry>>,
    backends: Backends,
    /// How many Services there have been.
    counted: u32,
    owners: HashMap<ServiceKey, Arc<NamespacedName>>,
    claims: Claims,
    numbers: Numbers,
    recovered: Recovered,
    /// Where the slots stand.
    blocks: Blocks,
    /// Blocks that nothing written from now on names.
    retired: Vec<Block>,
    slots: usize,
    members: usize,
    ranges: usize,
    health: BTreeMap<Arc<NamespacedName>, Health>,
    troubled: BTreeSet<Arc<NamespacedName>>,
    room: Room,
    fit: Fit,
}

#[derive(Debug, Default)]
struct Entry {
    /// Which one it is, for its backends; 0: none yet.
    owner: u32,
    frontends: Box<[(ServiceKey, Service)]>,
    sets: Box<[Set]>,
    /// Numbers of backends.
    serving: Box<[u32]>,
    ranges: Box<[SourceRange]>,
    ranges_number: u32,
    problems: Box<[String]>,
    kinds: Kinds,
    created: i64,
}

/// What its problems are about.
#[derive(Clone, Copy, Debug, Default)]
struct Kinds {
    object: bool,
    room: bool,
    frontend: bool,
}

/// How many Services have problems of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Troubles {
    /// They ask for what cannot be.
    pub object: usize,
    /// The maps have no room for them.
    pub room: usize,
    /// Another one has a frontend that they ask for.
    pub frontend: usize,
    /// Their objects cannot be read.
    pub unread: usize,
}

#[derive(Debug)]
struct Set {
    name: SetName,
    number: u32,
    block: Block,
    /// Numbers of backends: those of its block, from the first on.
    slots: Box<[u32]>,
    /// Its backends have rows of their own.
    members: bool,
    hints: HintsUsed,
    places: Option<Box<Places>>,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    pub services: usize,
    pub frontends: usize,
    pub backends: usize,
    pub slots: usize,
}

impl Book {
    pub fn new(numbers: Numbers, capacity: Capacity) -> Self {
        Self {
            entries: BTreeMap::new(),
            backends: Backends::default(),
            counted: 0,
            owners: HashMap::new(),
            claims: Claims::default(),
            numbers,
            recovered: Recovered::default(),
            blocks: Blocks::new(capacity.rows.slots),
            retired: Vec::new(),
            slots: 0,
            members: 0,
            ranges: 0,
            health: BTreeMap::new(),
            troubled: BTreeSet::new(),
            room: Room::new(capacity.maglev),
            fit: Fit::new(capacity.rows),
        }
    }

    /// Services that come now get the numbers that they have in the maps.
    pub fn recover(&mut self, mut recovered: Recovered) {
        recovered.backends().for_each(|number| self.numbers.claim(number));
        for service in recovered.sets.values() {
            self.numbers.claim(service.id);
            self.numbers.claim(service.ranges);
        }
        recovered.tables().for_each(|number| self.numbers.claim(number));
        recovered
            .sets_of_slots()
            .for_each(|number| self.numbers.claim(number));
        // Whoever comes new must not get what another one will find to be his.
        recovered.keep_places(|block| self.blocks.claim(block));
        self.fit.leaving = recovered.counts();
        self.recovered = recovered;
    }

    /// All that was there has been said.
    pub fn recovery_is_over(&mut self) {
        let recovered = std::mem::take(&mut self.recovered);
        self.fit.hurry();
        let used: RoaringBitmap = self.numbers_in_use().collect();
        let sets = recovered
            .sets
            .values()
            .flat_map(|service| [service.id, service.ranges]);
        let all = sets.chain(recovered.backends());
        let all = all.chain(recovered.tables());
        for number in all.chain(recovered.sets_of_slots()) {
            if !used.contains(number) {
                self.numbers.release(number);
            }
        }
        recovered.blocks().for_each(|block| self.retire(block));
    }

    fn numbers_in_use(&self) -> impl Iterator<Item = u32> {
        let sets = self.entries.values().flat_map(|entry| {
            let sets = entry.sets.iter().map(|set| set.number);
            sets.chain(entry.tables().map(|places| places.number))
                .chain([entry.ranges_number])
        });
        sets.chain(self.backends.iter().map(|(number, _)| number))
    }

    /// Takes over what a Service needs now, and says which rows that changes. A Service that needs nothing is forgotten.
    pub fn set(&mut self, name: &Arc<NamespacedName>, mut compiled: Compiled) -> Edits {
        let (name, old) = match self.entries.remove_entry(&**name) {
            Some(known) => known,
            None => (Arc::clone(name), Box::default()),
        };
        self.reopen(&old, compiled.created);
        let owner = if old.owner == 0 {
            self.counted += 1;
            self.counted
        } else {
            old.owner
        };
        let keys = compiled.frontends.iter().map(|frontend| &frontend.key);
        self.recovered.look_at(keys);
        // Without room for one of its ranges, or with none of its family, a Service is closed, and not open to everybody.
        let restricts =
            !compiled.ranges.is_empty() || compiled.frontends.iter().any(|frontend| frontend.restricted);
        let of_object = compiled.problems.len();
        self.squeeze(&name, &old, &mut compiled);
        self.slots -= old.slots();
        self.members -= old.members();
        self.ranges -= old.ranges.len();
        let ranges_number = self.ranges_number(&old, &compiled);
        let mut edits = Edits::default();
        let mut problems = compiled.problems;
        let serving: Box<[u32]> = compiled
            .serving
            .iter()
            .map(|(target, flags)| self.use_backend(owner, *target, *flags, &mut edits.put))
            .collect();
        let mut old_sets: BTreeMap<SetName, Set> = old.sets.into_iter().map(|set| (set.name, set)).collect();
        let mut sets = Vec::with_capacity(compiled.sets.len());
        let mut before = Vec::with_capacity(compiled.sets.len());
        for set in &compiled.sets {
            let keys = compiled
                .frontends
                .iter()
                .filter(|frontend| frontend.set == Some(set.name));
            let old = old_sets
                .remove(&set.name)
                .or_else(|| self.recovered_set(set.name, keys.map(|frontend| frontend.key).collect()));
            before.push(old);
        }
        let blocks = self.allot(&compiled.sets, &before);
        for ((set, mut old), block) in compiled.sets.into_iter().zip(before).zip(blocks) {
            let places = old.as_mut().and_then(|old| old.places.take());
            let places = self.tabulate((&name, owner), &set, places, &mut problems, &mut edits);
            let filled = self.fill(owner, (set, block), old, &mut edits);
            sets.push(Set { places, ..filled });
        }
        for set in old_sets.into_values() {
            self.empty(set, &mut edits);
        }
        let ranges = restricts.then_some(&*compiled.ranges);
        let (ranges, ranges_number) = self.restrict(ranges, (&old.ranges, ranges_number), &mut edits);
        let of_room = problems.len();
        let mut frontends = Vec::with_capacity(compiled.frontends.len());
        let old_frontends: BTreeMap<ServiceKey, Service> = old.frontends.into_iter().collect();
        for frontend in &compiled.frontends {
            if let Some(problem) = self.claim(&name, compiled.created, &frontend.key) {
                // An address alone, without anything behind it, may be several Services'. One of them answers for it.
                problems.extend(frontend.set.is_some().then_some(problem));
                continue;
            }
            let set = sets.iter().find(|set| Some(set.name) == frontend.set);
            let mut service = Service {
                id: set.map_or(0, |set| set.number),
                slots: set.map_or(0, |set| u32::try_from(set.slots.len()).unwrap_or(u32::MAX)),
                flags: frontend.flags,
                affinity_seconds: frontend.affinity_seconds,
                ranges: if frontend.restricted { ranges_number } else { 0 },
                first: set.map_or(0, |set| set.block.first),
                ..Service::default()
            };
            set.iter().for_each(|set| set.tell(&frontend.key, &mut service));
            if old_frontends.get(&frontend.key) != Some(&service) {
                edits.put.services.push((frontend.key, service));
            }
            frontends.push((frontend.key, service));
        }
        let kept: BTreeSet<ServiceKey> = frontends.iter().map(|(key, _)| *key).collect();
        for key in old_frontends.keys().filter(|key| !kept.contains(key)) {
            self.owners.remove(key);
            edits.gone.services.push(*key);
        }
        let kept: BTreeSet<u32> = serving.iter().copied().collect();
        let before: BTreeSet<u32> = old.serving.into_iter().collect();
        for number in before.difference(&kept) {
            self.backends.remove(*number);
            self.numbers.release(*number);
            edits.gone.backends.push(*number);
        }
        let kinds = Kinds {
            object: of_object > 0,
            room: of_room > of_object,
            frontend: problems.len() > of_room,
        };
        problems.dedup();
        let entry = Box::new(Entry {
            owner,
            frontends: frontends.into(),
            sets: sets.into(),
            serving,
            ranges,
            ranges_number,
            problems: problems.into(),
            kinds,
            created: compiled.created,
        });
        self.fit.leaving = self.fit.leaving.plus(edits.gone.counts());
        self.recognize(&entry);
        self.slots += entry.slots();
        self.members += entry.members();
        self.ranges += entry.ranges.len();
        match compiled.health {
            Some(health) => _ = self.health.insert(Arc::clone(&name), health),
            None => _ = self.health.remove(&name),
        }
        if entry.problems.is_empty() {
            self.troubled.remove(&name);
        } else {
            self.troubled.insert(Arc::clone(&name));
        }
        if !entry.is_empty() {
            self.entries.insert(name, entry);
        }
        edits
    }

    /// Whether a Service has this frontend.
    pub fn has(&self, key: &ServiceKey) -> bool {
        self.owners.contains_key(key)
    }

    pub fn names(&self) -> impl Iterator<Item = &NamespacedName> {
        self.entries.keys().map(|name| &**name)
    }

    pub fn problems(&self) -> impl Iterator<Item = &String> {
        self.troubled().flat_map(|(_, problems)| problems)
    }

    /// Services that are not served as they ask, and why.
    pub fn troubled(&self) -> impl Iterator<Item = (&NamespacedName, &[String])> {
        let troubled = self.troubled.iter();
        troubled.filter_map(|name| Some((&**name, &*self.entries.get(name)?.problems)))
    }

    pub fn troubles(&self) -> Troubles {
        let mut troubles = Troubles::default();
        for entry in self.troubled.iter().filter_map(|name| self.entries.get(name)) {
            troubles.object += usize::from(entry.kinds.object);
            troubles.room += usize::from(entry.kinds.room);
            troubles.frontend += usize::from(entry.kinds.frontend);
        }
        troubles
    }

    pub fn health(&self) -> impl Iterator<Item = (&NamespacedName, Health)> {
        self.health.iter().map(|(name, health)| (&**name, *health))
    }

    pub fn summary(&self) -> Summary {
        Summary {
            services: self.entries.len(),
            frontends: self.owners.len(),
            backends: self.backends.len(),
            slots: self.slots,
        }
    }

    /// Its number.
    fn use_backend(&mut self, owner: u32, target: Target, flags: u32, put: &mut Rows) -> u32 {
        let known = self.backends.number_of(owner, &target);
        let number = known.unwrap_or_else(|| {
            let recovered = self.recovered.take_backend(&target);
            let number = recovered.unwrap_or_else(|| self.numbers.give());
            if recovered.is_some() {
                self.fit.leaving.backends = self.fit.leaving.backends.saturating_sub(1);
            }
            let backend = Known { target, owner, flags };
            self.backends.insert(number, backend);
            number
        });
        if let Some(entry) = self.backends.get_mut(number)
            && (known.is_none() || entry.flags != flags)
        {
            entry.flags = flags;
            put.backends.push((number, entry.row()));
        }
        number
    }

    /// Rows that were in the maps already are on their way out no longer.
    fn recognize(&mut self, entry: &Entry) {
        let Recovered { members, ranges, .. } = &mut self.recovered;
        if members.is_empty() && ranges.is_empty() {
            return;
        }
        let keys = entry.sets.iter().flat_map(Set::members);
        let members = keys.filter(|key| members.remove(key)).count();
        let ranges = entry.ranges.iter().filter(|range| ranges.remove(range)).count();
        let recognized = Counts {
            members,
            ranges,
            ..Counts::default()
        };
        self.fit.leaving = self.fit.leaving.without(recognized);
    }

    fn recovered_set(&mut self, name: SetName, keys: Vec<ServiceKey>) -> Option<Set> {
        let service = self.recovered.set_of(keys.iter())?;
        let (block, slots) = self.recovered.slots_of(&service);
        self.recovered.take_block(block);
        Some(Set {
            places: self.recovered_places(&keys),
            name,
            number: service.id,
            block,
            slots: slots.into(),
            members: false,
            hints: HintsUsed::default(),
        })
    }
}

impl Set {
    /// What its rows of backends are found by, if it has any.
    fn members(&self) -> impl Iterator<Item = MemberKey> {
        let members = self.slots.iter().filter(|_| self.members);
        members.map(|backend| MemberKey {
            service: self.number,
            backend: *backend,
        })
    }
}

impl Entry {
    fn slots(&self) -> usize {
        self.sets.iter().map(|set| set.slots.len()).sum()
    }

    fn members(&self) -> usize {
        self.sets.iter().map(|set| set.members().count()).sum()
    }

    /// Places of its blocks.
    fn places(&self) -> usize {
        self.sets.iter().map(|set| set.block.len as usize).sum()
    }

    fn is_empty(&self) -> bool {
        self.frontends.is_empty()
            && self.sets.is_empty()
            && self.serving.is_empty()
            && self.ranges.is_empty()
            && self.problems.is_empty()
    }
}
