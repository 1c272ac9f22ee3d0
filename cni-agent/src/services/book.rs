//! Every Service as it stands in the maps.

mod backends;
mod describe;
mod maglev;
#[cfg(test)]
mod tests;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use cni_ebpf::abi::{Prefix, Service, ServiceKey, SlotKey, SourceRange};
use roaring::RoaringBitmap;

use super::{Edits, Numbers, Recovered, Rows};
use crate::{
    compile::service::{Compiled, Health, HintsUsed, SetName, SlotSet, Target},
    model::NamespacedName,
};

use backends::{Backends, Known};
pub use describe::{Answer, Back, Clients, Description, Front};
use maglev::{Places, Room};
pub(super) use view::Verdict;

/// What Services have in the kernel, and how many of them name each backend.
#[derive(Debug)]
pub struct Book {
    entries: BTreeMap<Arc<NamespacedName>, Box<Entry>>,
    backends: Backends,
    owners: HashMap<ServiceKey, Arc<NamespacedName>>,
    /// Services that wanted a frontend that another one has.
    contenders: BTreeMap<ServiceKey, BTreeSet<Arc<NamespacedName>>>,
    numbers: Numbers,
    recovered: Recovered,
    slots: usize,
    ranges: usize,
    health: BTreeMap<Arc<NamespacedName>, Health>,
    troubled: BTreeSet<Arc<NamespacedName>>,
    room: Room,
}

#[derive(Debug, Default)]
struct Entry {
    frontends: Box<[(ServiceKey, Service)]>,
    sets: Box<[Set]>,
    /// Numbers of backends.
    serving: Box<[u32]>,
    ranges: Box<[SourceRange]>,
    ranges_number: u32,
    problems: Box<[String]>,
}

#[derive(Debug)]
struct Set {
    name: SetName,
    number: u32,
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
    /// `maglev`: how many parts of tables there is room for.
    pub fn new(numbers: Numbers, maglev: u32) -> Self {
        Self {
            entries: BTreeMap::new(),
            backends: Backends::default(),
            owners: HashMap::new(),
            contenders: BTreeMap::new(),
            numbers,
            recovered: Recovered::default(),
            slots: 0,
            ranges: 0,
            health: BTreeMap::new(),
            troubled: BTreeSet::new(),
            room: Room::new(maglev),
        }
    }

    /// Services that come now get the numbers that they have in the maps.
    pub fn recover(&mut self, recovered: Recovered) {
        recovered
            .backends
            .values()
            .for_each(|number| self.numbers.claim(*number));
        for service in recovered.sets.values() {
            self.numbers.claim(service.id);
            self.numbers.claim(service.ranges);
        }
        recovered.tables().for_each(|number| self.numbers.claim(number));
        recovered
            .slots
            .keys()
            .for_each(|key| self.numbers.claim(key.service));
        self.recovered = recovered;
    }

    /// All that was there has been said.
    pub fn recovery_is_over(&mut self) {
        let recovered = std::mem::take(&mut self.recovered);
        let used: RoaringBitmap = self.numbers_in_use().collect();
        let sets = recovered
            .sets
            .values()
            .flat_map(|service| [service.id, service.ranges]);
        let all = sets.chain(recovered.backends.values().copied());
        let all = all.chain(recovered.tables());
        for number in all.chain(recovered.slots.keys().map(|key| key.service)) {
            if !used.contains(number) {
                self.numbers.release(number);
            }
        }
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
    pub fn set(&mut self, name: &Arc<NamespacedName>, compiled: Compiled) -> Edits {
        let (name, old) = match self.entries.remove_entry(&**name) {
            Some(known) => known,
            None => (Arc::clone(name), Box::default()),
        };
        self.slots -= old.slots();
        self.ranges -= old.ranges.len();
        let mut edits = Edits::default();
        let mut problems = compiled.problems;
        // New users before old ones go: what both name stays as it is.
        let serving: Box<[u32]> = compiled
            .serving
            .iter()
            .map(|(target, flags)| self.use_backend(*target, *flags, &mut edits.put))
            .collect();
        let mut old_sets: BTreeMap<SetName, Set> = old.sets.into_iter().map(|set| (set.name, set)).collect();
        let mut sets = Vec::with_capacity(compiled.sets.len());
        for set in compiled.sets {
            let keys = compiled
                .frontends
                .iter()
                .filter(|frontend| frontend.set == Some(set.name));
            let mut old = old_sets
                .remove(&set.name)
                .or_else(|| self.recovered_set(set.name, keys.map(|frontend| frontend.key).collect()));
            let places = old.as_mut().and_then(|old| old.places.take());
            let places = self.tabulate(&name, &set, places, &mut problems, &mut edits);
            let filled = self.fill(set, old, &mut edits);
            sets.push(Set { places, ..filled });
        }
        for set in old_sets.into_values() {
            self.empty(set, &mut edits);
        }
        let restricted = compiled.frontends.iter().filter(|frontend| frontend.restricted);
        let number = match old.ranges_number {
            0 => self.recovered.ranges_of(restricted.map(|frontend| frontend.key)),
            number => number,
        };
        let (ranges, ranges_number) = self.restrict(&compiled.ranges, (&old.ranges, number), &mut edits);
        let mut frontends = Vec::with_capacity(compiled.frontends.len());
        let old_frontends: BTreeMap<ServiceKey, Service> = old.frontends.into_iter().collect();
        for frontend in &compiled.frontends {
            match self.owners.get(&frontend.key) {
                Some(owner) if **owner != *name => {
                    problems.push(collision(&name, owner, &frontend.key));
                    self.contenders
                        .entry(frontend.key)
                        .or_default()
                        .insert(Arc::clone(&name));
                    continue;
                }
                _ => {}
            }
            let set = sets.iter().find(|set| Some(set.name) == frontend.set);
            let mut service = Service {
                id: set.map_or(0, |set| set.number),
                slots: set.map_or(0, |set| u32::try_from(set.slots.len()).unwrap_or(u32::MAX)),
                flags: frontend.flags,
                affinity_seconds: frontend.affinity_seconds,
                ranges: if frontend.restricted { ranges_number } else { 0 },
                ..Service::default()
            };
            set.iter().for_each(|set| set.tell(&frontend.key, &mut service));
            self.owners
                .entry(frontend.key)
                .or_insert_with(|| Arc::clone(&name));
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
        for number in &old.serving {
            self.leave_backend(*number, &mut edits);
        }
        problems.dedup();
        let entry = Box::new(Entry {
            frontends: frontends.into(),
            sets: sets.into(),
            serving,
            ranges,
            ranges_number,
            problems: problems.into(),
        });
        self.slots += entry.slots();
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

    /// Who waits for these frontends, which nobody has any more, or for room that there may be now.
    pub fn heirs(&mut self, freed: &[ServiceKey]) -> Vec<Arc<NamespacedName>> {
        let heirs = freed
            .iter()
            .filter_map(|key| self.contenders.remove(key))
            .flatten()
            .chain(self.room.take_waiting());
        heirs.collect()
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
    fn use_backend(&mut self, target: Target, flags: u32, put: &mut Rows) -> u32 {
        let known = self.backends.number_of(&target);
        let number = known.unwrap_or_else(|| {
            let recovered = self.recovered.backends.get(&target).copied();
            let number = recovered.unwrap_or_else(|| self.numbers.give());
            let users = 0;
            self.backends.insert(number, Known { target, users, flags });
            number
        });
        if let Some(entry) = self.backends.get_mut(number) {
            entry.users += 1;
            if known.is_none() || entry.flags != flags {
                entry.flags = flags;
                put.backends.push((number, entry.row()));
            }
        }
        number
    }

    fn leave_backend(&mut self, number: u32, edits: &mut Edits) {
        let Some(known) = self.backends.get_mut(number) else {
            return;
        };
        known.users -= 1;
        if known.users == 0 {
            self.backends.remove(number);
            self.numbers.release(number);
            edits.gone.backends.push(number);
        }
    }

    fn recovered_set(&mut self, name: SetName, keys: Vec<ServiceKey>) -> Option<Set> {
        let service = self.recovered.set_of(keys.iter())?;
        Some(Set {
            places: self.recovered_places(&keys),
            name,
            number: service.id,
            slots: self.recovered.slots_of(service.id, service.slots).into(),
            members: false,
            hints: HintsUsed::default(),
        })
    }

    /// Puts the endpoints into slots so that as few as possible change, and none is left out on the way.
    fn fill(&mut self, set: SlotSet, old: Option<Set>, edits: &mut Edits) -> Set {
        let (number, before, had_members) = match old {
            Some(old) => (old.number, old.slots, old.members),
            None => (self.numbers.give(), Box::default(), false),
        };
        let wanted: BTreeSet<u32> = set
            .targets
            .iter()
            .filter_map(|target| self.backends.number_of(target))
            .collect();
        let slots = arrange(&before, &wanted);
        for (slot, backend) in slots.iter().enumerate() {
            if before.get(slot) != Some(backend) {
                edits.put.slots.push((slot_key(number, slot), *backend));
            }
        }
        edits
            .gone
            .slots
            .extend((slots.len()..before.len()).map(|slot| slot_key(number, slot)));
        let old_members: BTreeSet<u32> = if had_members {
            before.iter().copied().collect()
        } else {
            BTreeSet::new()
        };
        let members = if set.affinity { wanted } else { BTreeSet::new() };
        let member = |backend: &u32| SlotKey::member(number, *backend);
        edits.put.slots.extend(
            members
                .difference(&old_members)
                .map(|backend| (member(backend), *backend)),
        );
        edits
            .gone
            .slots
            .extend(old_members.difference(&members).map(member));
        Set {
            name: set.name,
            number,
            slots: slots.into(),
            members: set.affinity,
            hints: set.hints,
            places: None,
        }
    }

    fn empty(&mut self, set: Set, edits: &mut Edits) {
        edits
            .gone
            .slots
            .extend((0..set.slots.len()).map(|slot| slot_key(set.number, slot)));
        if set.members {
            edits.gone.slots.extend(
                set.slots
                    .iter()
                    .map(|backend| SlotKey::member(set.number, *backend)),
            );
        }
        self.numbers.release(set.number);
        self.forget(set.places, &mut edits.gone);
    }

    /// The rows of the source ranges, and their number.
    fn restrict(
        &mut self,
        ranges: &[ipnetwork::IpNetwork],
        (old, old_number): (&[SourceRange], u32),
        edits: &mut Edits,
    ) -> (Box<[SourceRange]>, u32) {
        let number = match (ranges.is_empty(), old_number) {
            (false, 0) => self.numbers.give(),
            (false, number) => number,
            (true, number) => {
                if number != 0 {
                    self.numbers.release(number);
                }
                0
            }
        };
        let rows: Box<[SourceRange]> = ranges
            .iter()
            .filter_map(|range| Prefix::new(range.network(), range.prefix()))
            .map(|prefix| SourceRange {
                len: 32 + prefix.len,
                ranges: number,
                words: prefix.words,
            })
            .collect();
        let new = rows.iter().filter(|range| !old.contains(range));
        edits.put.ranges.extend(new.map(|range| (*range, 1)));
        let gone = old.iter().filter(|range| !rows.contains(range));
        edits.gone.ranges.extend(gone);
        (rows, number)
    }
}

impl Set {
    fn rows(&self) -> usize {
        self.slots.len() * if self.members { 2 } else { 1 }
    }
}

impl Entry {
    fn slots(&self) -> usize {
        self.sets.iter().map(Set::rows).sum()
    }

    fn is_empty(&self) -> bool {
        self.frontends.is_empty()
            && self.sets.is_empty()
            && self.serving.is_empty()
            && self.problems.is_empty()
    }
}

fn slot_key(service: u32, slot: usize) -> SlotKey {
    SlotKey {
        service,
        slot: u32::try_from(slot).unwrap_or(u32::MAX),
    }
}

fn collision(name: &NamespacedName, owner: &NamespacedName, key: &ServiceKey) -> String {
    format!(
        "Service {name}: {} port {} is Service {owner}'s already, which keeps it; change one of them",
        key.addr, key.port
    )
}

/// Those that stay keep their slots, new ones take the places of those that go, the last ones fill what is left: so every
/// slot below the lower count holds a good backend at each step.
fn arrange(before: &[u32], wanted: &BTreeSet<u32>) -> Vec<u32> {
    let known: BTreeSet<u32> = before.iter().copied().collect();
    let mut new = wanted.difference(&known);
    let mut seen = BTreeSet::new();
    // `None`: a hole.
    let mut slots: Vec<Option<u32>> = before
        .iter()
        .map(|backend| {
            let stays = wanted.contains(backend) && seen.insert(*backend);
            stays.then_some(*backend).or_else(|| new.next().copied())
        })
        .collect();
    slots.extend(new.map(|backend| Some(*backend)));
    let mut slot = 0;
    while slot < slots.len() {
        if slots[slot].is_none() {
            slots.swap_remove(slot);
        } else {
            slot += 1;
        }
    }
    slots.into_iter().flatten().collect()
}
