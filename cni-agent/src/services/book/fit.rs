//! What of a Service there is room for. One that is too large for the maps is its own problem and nobody else's: it keeps
//! of its rows those that it still wants, gets no more, and waits.

use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use cni_ebpf::abi::{MemberKey, ServiceKey};

use super::{
    Book, Entry,
    slots::{places_of, source_range},
};
use crate::{
    compile::service::{Compiled, SlotSet, Target},
    desired::Table,
    kernel::maps::{capacity_remedy, setting},
    model::NamespacedName,
    services::{
        blocks::{Block, Want},
        room::Counts,
    },
};

#[derive(Debug)]
pub(super) struct Fit {
    most: Counts,
    /// Rows that stand in the maps though no Service has them: they go in a moment.
    pub(super) leaving: Counts,
    /// The same when it was last counted.
    counted: Counts,
    /// Services that found no room.
    waiting: BTreeMap<Arc<NamespacedName>, Lack>,
}

/// What a Service lacked when it was looked at.
#[derive(Clone, Debug)]
struct Lack {
    rows: Counts,
    blocks: Vec<Want>,
    /// There will be room when what is on its way out is gone, unless others take it.
    soon: bool,
    /// Whether they did has to be seen.
    due: bool,
}

/// A set as it is in the maps.
struct Held {
    known: HashSet<u32>,
    members: bool,
}

impl Fit {
    pub(super) fn new(most: Counts) -> Self {
        Self {
            most,
            leaving: Counts::default(),
            counted: Counts::default(),
            waiting: BTreeMap::new(),
        }
    }

    /// Whoever waits for what is on its way out is looked at again.
    pub(super) fn hurry(&mut self) {
        let waiting = self.waiting.values_mut();
        waiting.for_each(|lack| lack.due |= lack.soon);
    }

    /// Whether anybody waits for room: then nobody keeps any to grow, for who waits for rows needs places too.
    pub(super) fn is_short(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Places in blocks aside: whether these are free is not a matter of their count.
    fn has(&self, used: Counts, more: Counts) -> bool {
        let rows = used.plus(self.leaving).plus(more);
        Counts { slots: 0, ..rows }.within(self.most)
    }
}

impl Book {
    pub(super) fn in_use(&self) -> Counts {
        Counts {
            backends: self.backends.len(),
            slots: self.blocks.used(),
            members: self.members,
            ranges: self.ranges,
            services: self.owners.len(),
        }
    }

    /// How many rows are on their way out of the maps.
    pub fn set_leaving(&mut self, leaving: Counts) {
        self.fit.leaving = leaving;
        if self.fit.counted != leaving {
            self.fit.counted = leaving;
            self.fit.hurry();
        }
    }

    /// Whether there is room for all that there should be, and so much of somebody else's.
    pub fn has_room_beside(&self, rows: Counts) -> bool {
        self.in_use().plus(rows).within(self.fit.most)
    }

    /// Services that waited for room that there may be now.
    pub fn take_waiting(&mut self) -> BTreeSet<Arc<NamespacedName>> {
        let used = self.in_use();
        let mut ready = self.room.take_waiting();
        let fit = &self.fit;
        // Whoever lacks nothing but places that others keep to grow has them given up when it is looked at. All sets are asked
        // once, not for each that waits.
        let keeps = LazyCell::new(|| self.keeps_room_to_grow());
        let fits =
            |lack: &Lack| lack.due || fit.has(used, lack.rows) && (self.blocks.has(&lack.blocks) || *keeps);
        let waiting = fit.waiting.iter().filter(|(_, lack)| fits(lack));
        ready.extend(waiting.map(|(name, _)| Arc::clone(name)));
        ready.iter().for_each(|name| _ = self.fit.waiting.remove(name));
        ready
    }

    /// Leaves of what a Service asks for what there is room for.
    pub(super) fn squeeze(&mut self, name: &Arc<NamespacedName>, old: &Entry, compiled: &mut Compiled) {
        self.fit.waiting.remove(name);
        let used = self.in_use();
        let members = compiled.sets.iter().filter(|set| set.affinity);
        let new = Counts {
            backends: compiled.serving.len(),
            slots: compiled.sets.iter().map(|set| set.targets.len()).sum(),
            members: members.map(|set| set.targets.len()).sum(),
            ranges: compiled.ranges.len(),
            services: compiled.frontends.len(),
        };
        let blocks = self.wants(old, compiled);
        let has_blocks = self.blocks.has(&blocks);
        if has_blocks && self.fit.has(used, new) {
            return;
        }
        let mut found = HashSet::new();
        let held: Vec<Held> = compiled
            .sets
            .iter()
            .map(|set| self.held(set, old, compiled, &mut found))
            .collect();
        let mut lack = self.lack(name, old, &held, compiled);
        if has_blocks && !self.fit.has(used, lack) {
            // No endpoint is given up for a sign of life.
            let held_keys = self.held_keys(old);
            compiled
                .frontends
                .retain(|frontend| !frontend.only_answers_pings() || held_keys(&frontend.key));
            drop(held_keys);
            lack = self.lack(name, old, &held, compiled);
        }
        if has_blocks && self.fit.has(used, lack) {
            return;
        }
        if !has_blocks {
            self.give_up_room_to_grow();
        }
        // What is on its way out makes room by itself: that is nothing to talk about.
        let alone = Self::alone(old);
        let others = used.without(alone);
        let wanted = Counts {
            services: self.own_frontends(name, compiled),
            ..new
        };
        self.trim(old, &held, compiled);
        let problems = self.too_little(name, others, wanted, &blocks, compiled);
        let lack = Lack {
            rows: lack,
            blocks,
            soon: problems.is_empty(),
            due: false,
        };
        compiled.problems.extend(problems);
        self.fit.waiting.insert(Arc::clone(name), lack);
    }

    /// The blocks that its sets have, and how many places they need.
    fn wants(&self, old: &Entry, compiled: &Compiled) -> Vec<Want> {
        // What an earlier agent left is the first set's that comes for it.
        let mut others = HashSet::new();
        let mut block = |set: &SlotSet| {
            if let Some(known) = old.sets.iter().find(|old| old.name == set.name) {
                return known.block;
            }
            let of_set = compiled.frontends.iter();
            let of_set = of_set.filter(|frontend| frontend.set == Some(set.name));
            let found = self.recovered.find_set(of_set.map(|frontend| &frontend.key));
            let found = found.filter(|service| others.insert(service.id));
            found.map_or(Block::NONE, |service| self.recovered.slots_of(&service).0)
        };
        let sets = compiled.sets.iter();
        sets.map(|set| (block(set), places_of(set))).collect()
    }

    fn held(&self, set: &SlotSet, old: &Entry, compiled: &Compiled, others: &mut HashSet<u32>) -> Held {
        let known = old.sets.iter().find(|old| old.name == set.name);
        let (slots, members) = if let Some(known) = known {
            (known.slots.to_vec(), known.members)
        } else {
            let frontends = compiled.frontends.iter();
            let of_set = frontends.filter(|frontend| frontend.set == Some(set.name));
            let found = self.recovered.find_set(of_set.map(|frontend| &frontend.key));
            let found = found.filter(|service| others.insert(service.id));
            let slots = found.map(|service| self.recovered.slots_of(&service).1);
            let slots = slots.unwrap_or_default();
            let has_member = |backend: &u32| {
                let member = found.map(|service| MemberKey {
                    service: service.id,
                    backend: *backend,
                });
                member.is_some_and(|member| self.recovered.members.contains(&member))
            };
            let members = slots.iter().all(has_member);
            (slots, members)
        };
        Held {
            known: slots.into_iter().collect(),
            members,
        }
    }

    /// A backend that needs no new row.
    fn number_of(&self, old: &Entry, target: &Target) -> Option<u32> {
        let recovered = || self.recovered.backend(target);
        self.backends.number_of(old.owner, target).or_else(recovered)
    }

    /// Those that it gets.
    fn frontends<'a>(
        &'a self,
        name: &'a NamespacedName,
        compiled: &'a Compiled,
    ) -> impl Iterator<Item = ServiceKey> + 'a {
        let keys = compiled.frontends.iter().map(|frontend| frontend.key);
        keys.filter(move |key| self.better_owner(name, compiled.created, key).is_none())
    }

    /// Those that it would have and no other Service has.
    fn own_frontends(&self, name: &NamespacedName, compiled: &Compiled) -> usize {
        let is_own = |key: &ServiceKey| self.owners.get(key).is_none_or(|owner| **owner == *name);
        self.frontends(name, compiled).filter(is_own).count()
    }

    /// The rows that would be new.
    fn lack(&self, name: &NamespacedName, old: &Entry, held: &[Held], compiled: &Compiled) -> Counts {
        let members = |(set, held): (&SlotSet, &Held)| {
            let is_member = |target: &&Target| {
                let number = self.number_of(old, target);
                held.members && number.is_some_and(|number| held.known.contains(&number))
            };
            let members = set.targets.iter().filter(|target| !is_member(target)).count();
            if set.affinity { members } else { 0 }
        };
        let unknown = compiled.serving.iter();
        let held_keys = self.held_keys(old);
        let held_range = self.held_range(old, compiled);
        Counts {
            backends: unknown
                .filter(|(target, _)| self.number_of(old, target).is_none())
                .count(),
            slots: 0,
            members: compiled.sets.iter().zip(held).map(members).sum(),
            ranges: compiled.ranges.iter().filter(|range| !held_range(range)).count(),
            services: self
                .frontends(name, compiled)
                .filter(|key| !held_keys(key) && !self.owners.contains_key(key))
                .count(),
        }
    }

    fn held_keys(&self, old: &Entry) -> impl Fn(&ServiceKey) -> bool {
        let keys: HashSet<ServiceKey> = old.frontends.iter().map(|(key, _)| *key).collect();
        move |key| keys.contains(key) || self.recovered.sets.contains_key(key)
    }

    fn held_range<'a>(
        &'a self,
        old: &'a Entry,
        compiled: &Compiled,
    ) -> impl Fn(&ipnetwork::IpNetwork) -> bool + 'a {
        let number = self.ranges_number(old, compiled);
        move |range| {
            let row = source_range(range, number);
            row.is_some_and(|row| old.ranges.contains(&row) || self.recovered.ranges.contains(&row))
        }
    }

    /// The rows that nobody but this Service has.
    fn alone(old: &Entry) -> Counts {
        Counts {
            backends: old.serving.len(),
            slots: old.places(),
            members: old.members(),
            ranges: old.ranges.len(),
            services: old.frontends.len(),
        }
    }

    /// Leaves what stands in the maps already. Nothing of it is wider than what is asked for: an endpoint that is gone gets
    /// nothing more, and no client comes in whom the source ranges keep out.
    fn trim(&self, old: &Entry, held: &[Held], compiled: &mut Compiled) {
        for (set, held) in compiled.sets.iter_mut().zip(held) {
            let is_held = |target: &Target| matches!(self.number_of(old, target), Some(number) if held.known.contains(&number));
            set.targets.retain(is_held);
            set.affinity &= held.members;
        }
        let held_range = self.held_range(old, compiled);
        let ranges = compiled.ranges.iter().filter(|range| held_range(range));
        let ranges = ranges.copied().collect();
        drop(held_range);
        compiled.ranges = ranges;
        compiled
            .serving
            .retain(|(target, _)| self.number_of(old, target).is_some());
        let held_keys = self.held_keys(old);
        compiled.frontends.retain(|frontend| held_keys(&frontend.key));
        if compiled.frontends.is_empty() {
            compiled.sets.clear();
            compiled.serving.clear();
        }
        if let Some(health) = &mut compiled.health {
            for (ready, v4) in health.local_ready.iter_mut().zip([true, false]) {
                let sets = compiled.sets.iter();
                let local = sets.filter(|set| set.name.local && set.name.v4 == v4);
                let left: BTreeSet<_> = local
                    .flat_map(|set| &set.targets)
                    .map(|target| target.addr)
                    .collect();
                *ready = ready.map(|ready| ready.min(left.len()));
            }
        }
    }

    /// How too little room is told, for each map. What changes with other Services is not: it would be told each time.
    fn too_little(
        &self,
        name: &NamespacedName,
        others: Counts,
        wanted: Counts,
        blocks: &[Want],
        left: &Compiled,
    ) -> Vec<String> {
        let what = if left.frontends.is_empty() {
            "it is not served"
        } else {
            "it keeps the frontends, endpoints and ranges that it has and still wants, and gets no others"
        };
        let counts = wanted.each().into_iter().zip(others.each());
        let mut problems = Vec::new();
        for (((table, wanted), (_, others)), (_, most)) in counts.zip(self.fit.most.each()) {
            let mut pieces = String::new();
            let mut is_short = wanted + others > most;
            if table == Table::ServiceSlots && !is_short && !self.blocks.will_have(blocks) {
                is_short = true;
                let largest = blocks.iter().map(|(_, count)| count).max().unwrap_or(&0);
                pieces = format!(
                    ", each port's in one piece, the longest of {largest}, beside what it has until then, and none that is free is \
                     as long"
                );
            }
            if is_short {
                let map = table.name();
                let beside = if others > 0 {
                    "other Services need some of that and "
                } else {
                    ""
                };
                problems.push(format!(
                    "Service {name}: `{}` is {most}, {beside}this one {wanted}{pieces}: {what} until there is room; {}",
                    setting(map).unwrap_or(map),
                    capacity_remedy(map)
                ));
            }
        }
        problems
    }
}
