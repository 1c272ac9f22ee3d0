//! Maps that are too small.

mod large;

use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

use super::*;
use crate::services::{Pending, book::slots::places_of};

/// A book, and the maps as an agent writes them.
pub(super) struct World {
    _folder: tempfile::TempDir,
    capacity: Capacity,
    pub(super) book: Book,
    services: BTreeMap<ServiceKey, Service>,
    slots: BTreeMap<u32, Slot>,
    members: BTreeMap<MemberKey, u32>,
    ranges: BTreeSet<SourceRange>,
    backends: BTreeMap<u32, Backend>,
    pending: Pending,
    pub(super) wanted: BTreeMap<u8, Compiled>,
}

impl World {
    pub(super) fn new(rows: Counts) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let capacity = Capacity { rows, maglev: 0 };
        Self {
            book: book_of(&folder, capacity),
            _folder: folder,
            capacity,
            services: BTreeMap::new(),
            slots: BTreeMap::new(),
            members: BTreeMap::new(),
            ranges: BTreeSet::new(),
            backends: BTreeMap::new(),
            pending: Pending::default(),
            wanted: BTreeMap::new(),
        }
    }

    fn compile(&mut self, first: BTreeSet<Arc<NamespacedName>>) -> Edits {
        let (mut edits, mut names) = (Edits::default(), first);
        for _ in 0..100 {
            let Some(name) = names.pop_first() else {
                return edits;
            };
            let number: u8 = name.name[1..].parse().unwrap();
            let compiled = self.wanted.get(&number).cloned().unwrap_or_default();
            let more = self.book.set(&name, compiled);
            names.append(&mut self.book.heirs(&more.gone.services));
            edits.append(more);
        }
        panic!("Services look at each other for ever: {names:?}");
    }

    pub(super) fn change(&mut self, names: BTreeSet<Arc<NamespacedName>>) {
        let Edits { put, gone } = self.compile(names);
        self.put(&put);
        gone.services.iter().for_each(|key| _ = self.services.remove(key));
        self.pending.add(gone, Instant::now());
        self.retire();
        self.book.set_leaving(self.pending.counts());
        let next = self.book.take_waiting();
        if !next.is_empty() {
            self.change(next);
        }
    }

    fn retire(&mut self) {
        let retired = self.book.take_retired();
        self.pending.retire(retired, Instant::now());
    }

    fn put(&mut self, put: &Rows) {
        self.pending.keep(put);
        for (place, slot) in &put.slots {
            let before = self.slots.get(place);
            assert!(
                before.is_none_or(|before| before.service == slot.service),
                "{place} is another set's: a reader may be on its way there"
            );
        }
        self.backends.extend(put.backends.iter().copied());
        self.slots.extend(put.slots.iter().copied());
        self.members.extend(put.members.iter().copied());
        self.ranges.extend(put.ranges.iter().map(|(range, _)| *range));
        self.services.extend(put.services.iter().copied());
        let rows = self.rows();
        assert!(
            rows.within(self.capacity.rows),
            "{rows:?} of {:?}",
            self.capacity.rows
        );
    }

    fn rows(&self) -> Counts {
        Counts {
            backends: self.backends.len(),
            slots: self.slots.len(),
            members: self.members.len(),
            ranges: self.ranges.len(),
            services: self.services.len(),
        }
    }

    /// A moment later.
    fn settle(&mut self) {
        while self.pending.due().is_some() {
            let later = Instant::now() + Duration::from_secs(1);
            let due = self.pending.take_due(later);
            due.slots.iter().for_each(|key| _ = self.slots.remove(key));
            due.members.iter().for_each(|key| _ = self.members.remove(key));
            self.book.free_blocks(self.pending.take_blocks(later));
            due.ranges.iter().for_each(|key| _ = self.ranges.remove(key));
            due.backends.iter().for_each(|key| _ = self.backends.remove(key));
            self.book.set_leaving(self.pending.counts());
            let next = self.book.take_waiting();
            self.change(next);
        }
    }

    /// Another agent finds the maps, with whatever is on its way out of them.
    pub(super) fn restart(&mut self) {
        let mut recovered = Recovered::default();
        take(&mut recovered, Table::Services, &self.services);
        take(&mut recovered, Table::ServiceSlots, &self.slots);
        take(&mut recovered, Table::ServiceMembers, &self.members);
        take(&mut recovered, Table::Backends, &self.backends);
        for key in &self.ranges {
            recovered.take(Table::ServiceRanges, as_bytes(key), &[]);
        }
        self.book = book_of(&self._folder, self.capacity);
        self.book.recover(recovered);
        let names: Vec<_> = self.wanted.keys().map(|number| name(*number)).collect();
        names.into_iter().for_each(|name| _ = self.compile([name].into()));
        self.book.recovery_is_over();
        let view = self.book.view();
        let mut missing = Rows::default();
        for table in [
            Table::Backends,
            Table::ServiceSlots,
            Table::ServiceMembers,
            Table::ServiceRanges,
            Table::Services,
        ] {
            missing.append(view.rows(table));
        }
        let keeps = |key: &ServiceKey| missing.services.iter().any(|(other, _)| other == key);
        let mut gone = Keys::default();
        gone.slots.extend(
            self.slots
                .keys()
                .filter(|key| !missing.slots.iter().any(|(other, _)| other == *key)),
        );
        gone.members.extend(
            self.members
                .keys()
                .filter(|key| !missing.members.iter().any(|(other, _)| other == *key)),
        );
        gone.ranges.extend(
            self.ranges
                .iter()
                .filter(|key| !missing.ranges.iter().any(|(other, _)| other == *key)),
        );
        gone.backends.extend(
            self.backends
                .keys()
                .filter(|key| !missing.backends.iter().any(|(other, _)| other == *key)),
        );
        self.services.retain(|key, _| keeps(key));
        self.pending = Pending::default();
        self.put(&missing);
        self.pending.add(gone, Instant::now());
        self.retire();
        self.book.set_leaving(self.pending.counts());
        let next = self.book.take_waiting();
        self.change(next);
    }

    /// The last octets of those behind each frontend.
    pub(super) fn served(&self) -> BTreeMap<ServiceKey, BTreeSet<u8>> {
        let of = |service: &Service| {
            let places = service.first..service.first + service.slots;
            let slots = places.map(|place| &self.slots[&place]);
            slots
                .inspect(|slot| assert_eq!(slot.service, service.id))
                .map(|slot| slot.addr.octets()[15])
                .collect()
        };
        let services = self.services.iter();
        services.map(|(key, service)| (*key, of(service))).collect()
    }

    /// Rows that a Service needs for itself.
    fn needs(compiled: &Compiled) -> Counts {
        let members = compiled.sets.iter().filter(|set| set.affinity);
        Counts {
            backends: compiled.serving.len(),
            slots: compiled.sets.iter().map(|set| set.targets.len()).sum(),
            members: members.map(|set| set.targets.len()).sum(),
            ranges: compiled.ranges.len(),
            services: compiled.frontends.len(),
        }
    }

    /// Who is served as it asks, and that nobody else could be.
    fn check(&self) {
        let troubled: BTreeMap<&NamespacedName, String> = self
            .book
            .troubled()
            .map(|(name, why)| (name, why.join("\n")))
            .collect();
        let served = self.served();
        for (number, wanted) in &self.wanted {
            let asked: BTreeSet<u8> = wanted
                .serving
                .iter()
                .map(|(target, _)| target.addr.octets()[15])
                .collect();
            let Some(why) = troubled.get(&*name(*number)) else {
                assert_eq!(
                    served.get(&key(*number)),
                    Some(&asked),
                    "{number} has no problem and is not served"
                );
                continue;
            };
            assert!(
                why.contains(&format!("n/s{number}: `maps.")) && why.contains("restart"),
                "{why}"
            );
            let nobody = BTreeSet::new();
            let has = served.get(&key(*number)).unwrap_or(&nobody);
            assert!(has.is_subset(&asked), "{number} leads to who is gone");
            let used = self.rows();
            let entry = self.book.entries.get(&name(*number));
            let own = Counts {
                backends: entry.map_or(0, |entry| entry.serving.len()),
                slots: entry.map_or(0, |entry| entry.slots()),
                members: entry.map_or(0, |entry| entry.members()),
                ranges: entry.map_or(0, |entry| entry.ranges.len()),
                services: entry.map_or(0, |entry| entry.frontends.len()),
            };
            let needs = Self::needs(wanted);
            let sets = entry.map_or(&[][..], |entry| &entry.sets);
            let block = |set: &SlotSet| sets.iter().find(|old| old.name == set.name).map(|old| old.block);
            let wants = wanted.sets.iter();
            let wants = wants.map(|set| (block(set).unwrap_or_default(), places_of(set)));
            let fits = self.book.blocks.has(&wants.collect::<Vec<_>>());
            assert!(
                !fits || !used.without(own).plus(needs).within(self.capacity.rows),
                "{number} has room and is not served: {why}"
            );
        }
    }
}

/// `None`: it is for everybody; none at all: for nobody.
fn with_ranges(mut compiled: Compiled, ranges: Option<u8>) -> Compiled {
    let range = |last| IpNetwork::new([192, 0, 2, last].into(), 32).unwrap();
    compiled.ranges.extend((0..ranges.unwrap_or(0)).map(range));
    compiled
        .frontends
        .iter_mut()
        .for_each(|frontend| frontend.restricted = ranges.is_some());
    compiled
}

proptest! {
    #[test]
    fn who_does_not_fit_waits_alone_and_no_map_ever_overflows(
        most in (2usize..14, 2usize..24, 2usize..20, 1usize..6, 1usize..6),
        steps in proptest::collection::vec(
            (0u8..6, proptest::collection::btree_set(0u8..12, 0..9), any::<bool>(), proptest::option::of(0u8..4), 0u8..10), 1..40,
        ),
    ) {
        let (backends, slots, members, ranges, services) = most;
        let mut world = World::new(Counts { backends, slots, members, ranges, services });
        for (number, endpoints, affinity, ranges, fate) in steps {
            match fate {
                0 => _ = world.wanted.remove(&number),
                _ => _ = world.wanted.insert(number, with_ranges(compiled(number, &endpoints, affinity), ranges)),
            }
            world.change([name(number)].into());
            match fate {
                1..=2 => {
                    world.settle();
                    world.check();
                    let before = world.served();
                    world.restart();
                    world.settle();
                    // Who waits may find room by it: the next agent knows less of what others might need again.
                    let after = world.served();
                    for (key, endpoints) in &before {
                        let keeps = after.get(key).is_some_and(|after| after.is_superset(endpoints));
                        prop_assert!(keeps, "a restart takes nothing: {before:?}, {after:?}");
                    }
                    world.check();
                }
                3 => {
                    // In the middle of a change.
                    world.restart();
                    world.settle();
                    world.check();
                }
                4..=5 => {
                    world.settle();
                    world.check();
                }
                _ => {}
            }
            for (key, service) in &world.services {
                let wanted = world.wanted.get(&key.addr.octets()[15]);
                let restricted = wanted.is_some_and(|wanted| wanted.frontends[0].restricted);
                prop_assert!(!restricted || service.ranges != 0, "a restricted Service is open to everybody");
            }
        }
        world.settle();
        world.check();
        world.wanted.clear();
        world.change((0..6).map(name).collect());
        world.settle();
        prop_assert_eq!(world.rows(), Counts::default(), "nothing is left");
        prop_assert_eq!(world.book.fit.leaving, Counts::default());
        prop_assert_eq!((world.book.blocks.used(), world.book.blocks.longest() as usize), (0, slots));
    }
}

/// It lacked rows when it came, and places when it could have had those.
#[test]
fn places_that_are_kept_to_grow_are_for_who_has_waited_for_rows() {
    let rows = Counts {
        backends: 7,
        slots: 9,
        ..ample(0).rows
    };
    let mut world = World::new(rows);
    let mut ask = |number, endpoints: std::ops::Range<u8>| {
        let endpoints = endpoints.collect();
        world.wanted.insert(number, compiled(number, &endpoints, false));
        world.change([name(number)].into());
        world.settle();
        world.served().get(&key(number)).map_or(0, BTreeSet::len)
    };
    assert_eq!(ask(1, 0..4), 4);
    assert_eq!(ask(1, 0..3), 3, "one place stays for it");
    assert_eq!(ask(2, 4..6), 2);
    assert_eq!(ask(3, 6..9), 0, "a backend too many");
    assert_eq!(ask(4, 9..10), 1);
    assert_eq!(ask(2, 0..0), 0);
    assert_eq!(ask(4, 9..10), 1);
    assert_eq!(world.served()[&key(3)].len(), 3);
    world.check();
}
