mod claims;
mod room;

use std::collections::{BTreeMap, BTreeSet};

use cni_ebpf::abi::{
    Addr, Backend, MaglevChunk, MaglevKey, Plain, Port, Slot, as_bytes, service_flags, service_scope,
};
use proptest::prelude::*;

use super::{slots::arrange, *};
use crate::{
    compile::service::{Frontend, HintsUsed, SlotSet},
    desired::Table,
    services::Keys,
};

/// What a program would see, with every write and removal a step of its own.
#[derive(Default)]
struct Maps {
    services: BTreeMap<ServiceKey, Service>,
    slots: BTreeMap<u32, Slot>,
    members: BTreeMap<MemberKey, u32>,
    backends: BTreeMap<u32, Backend>,
    maglev: BTreeMap<MaglevKey, MaglevChunk>,
}

impl Maps {
    fn apply(&mut self, edits: &Edits) {
        for (number, backend) in &edits.put.backends {
            self.backends.insert(*number, *backend);
            self.check();
        }
        for (place, slot) in &edits.put.slots {
            self.slots.insert(*place, *slot);
            self.check();
        }
        self.members.extend(edits.put.members.iter().copied());
        for (key, chunk) in &edits.put.maglev {
            let before = self.maglev.insert(*key, *chunk);
            assert!(
                before.is_none_or(|before| before == *chunk),
                "{key:?} is rewritten"
            );
            self.check();
        }
        for (key, service) in &edits.put.services {
            self.services.insert(*key, *service);
            self.check();
        }
        self.remove(&edits.gone);
    }

    fn remove(&mut self, keys: &Keys) {
        for key in &keys.services {
            self.services.remove(key);
            self.check();
        }
        for key in &keys.maglev {
            self.maglev.remove(key);
            self.check();
        }
        keys.members.iter().for_each(|key| _ = self.members.remove(key));
        for place in &keys.slots {
            self.slots.remove(place);
            self.check();
        }
        for number in &keys.backends {
            self.backends.remove(number);
            self.check();
        }
    }

    /// Every frontend leads to a backend, by whichever slot or place.
    fn check(&self) {
        for service in self.services.values() {
            let places = self.places(service);
            assert_eq!(
                places.len(),
                service.maglev_size as usize,
                "{service:?}: all of the table is there"
            );
            assert!(
                places.iter().all(|backend| self.backends.contains_key(backend)),
                "{service:?}"
            );
            for place in service.first..service.first + service.slots {
                let slot = self.slots.get(&place);
                let slot = slot.unwrap_or_else(|| panic!("{service:?}: nothing is in place {place}"));
                let backend = self.backends.get(&slot.backend);
                let backend = backend.unwrap_or_else(|| panic!("{service:?}: {slot:?} has no backend"));
                assert_eq!(
                    *slot,
                    Slot::new(service.id, slot.backend, backend.addr, backend.port)
                );
            }
        }
    }

    fn places(&self, service: &Service) -> Vec<u32> {
        let table = service.maglev;
        let parts = self.maglev.range(
            MaglevKey { table, chunk: 0 }..=MaglevKey {
                table,
                chunk: u32::MAX,
            },
        );
        let places = parts.flat_map(|(_, chunk)| chunk.backends);
        places.take(service.maglev_size as usize).collect()
    }

    /// Whom the table leads to.
    fn tabulated(&self, key: &ServiceKey) -> BTreeSet<u8> {
        let places = self.places(&self.services[key]).into_iter();
        places
            .map(|backend| self.backends[&backend].addr.octets()[15])
            .collect()
    }

    fn targets(&self, key: &ServiceKey) -> Vec<u8> {
        let service = self.services[key];
        let places = service.first..service.first + service.slots;
        let mut targets: Vec<u8> = places.map(|place| self.slots[&place].addr.octets()[15]).collect();
        targets.sort_unstable();
        targets
    }
}

fn ample(maglev: usize) -> Capacity {
    let rows = Counts {
        backends: 1_000,
        slots: 1_000,
        members: 1_000,
        ranges: 1_000,
        services: 1_000,
    };
    Capacity { rows, maglev }
}

fn book_of(folder: &tempfile::TempDir, capacity: Capacity) -> Book {
    Book::new(Numbers::open(folder.path().join("numbers")).unwrap(), capacity)
}

fn book(folder: &tempfile::TempDir) -> Book {
    book_of(folder, ample(64))
}

fn name(number: u8) -> Arc<NamespacedName> {
    Arc::new(NamespacedName {
        namespace: "n".into(),
        name: format!("s{number}"),
    })
}

fn key(number: u8) -> ServiceKey {
    ServiceKey {
        addr: Addr::v4([10, 96, 0, number]),
        port: Port::new(80),
        proto: 6,
        scope: 0,
        pad: 0,
    }
}

fn compiled(number: u8, endpoints: &BTreeSet<u8>, affinity: bool) -> Compiled {
    let set = SetName {
        port: 80,
        proto: 6,
        v4: true,
        local: false,
    };
    let targets: Vec<Target> = endpoints
        .iter()
        .map(|last| Target {
            addr: Addr::v4([10, 1, 0, *last]),
            port: Port::new(8080),
            proto: 6,
        })
        .collect();
    Compiled {
        frontends: vec![Frontend {
            key: key(number),
            set: Some(set),
            flags: if affinity { service_flags::AFFINITY } else { 0 },
            affinity_seconds: u32::from(affinity),
            restricted: false,
        }],
        serving: targets.iter().map(|target| (*target, 0)).collect(),
        sets: vec![SlotSet {
            name: set,
            targets,
            affinity,
            hints: HintsUsed::Anywhere,
            maglev: None,
        }],
        ..Compiled::default()
    }
}

fn outside(number: u8) -> ServiceKey {
    ServiceKey {
        scope: service_scope::EXTERNAL,
        ..key(number)
    }
}

/// The same for clients outside, who are given theirs by a table.
fn with_table(mut compiled: Compiled, number: u8) -> Compiled {
    let outside = compiled.frontends.first().map(|frontend| Frontend {
        key: outside(number),
        ..*frontend
    });
    compiled.frontends.extend(outside);
    compiled.sets.iter_mut().for_each(|set| set.maglev = Some(251));
    compiled
}

proptest! {
    #[test]
    fn svc_52_no_moment_has_a_half_written_service_and_the_end_is_what_was_asked_for(
        steps in proptest::collection::vec(
            (0u8..3, proptest::collection::btree_set(0u8..12, 0..8), any::<bool>(), 0u8..8), 1..24,
        ),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (mut book, mut maps) = (book(&folder), Maps::default());
        let mut wanted: BTreeMap<u8, BTreeSet<u8>> = BTreeMap::new();
        for (number, endpoints, affinity, fate) in steps {
            let compiled = if fate == 0 {
                wanted.remove(&number);
                Compiled::default()
            } else {
                wanted.insert(number, endpoints.clone());
                let compiled = compiled(number, &endpoints, affinity);
                if number == 1 { compiled } else { with_table(compiled, number) }
            };
            maps.apply(&book.set(&name(number), compiled));
            for (number, endpoints) in &wanted {
                let found = maps.targets(&key(*number));
                prop_assert_eq!(found, endpoints.iter().copied().collect::<Vec<_>>(), "each once, and no other");
                if *number != 1 {
                    prop_assert_eq!(&maps.tabulated(&outside(*number)), endpoints);
                    prop_assert_eq!(maps.services[&key(*number)].maglev, 0, "inside they get any");
                }
            }
            let view = book.view();
            let rows = view.rows(Table::ServiceSlots);
            prop_assert_eq!(maps.slots.clone(), rows.slots.iter().copied().collect());
            prop_assert_eq!(maps.slots.len(), view.expected(Table::ServiceSlots));
            prop_assert_eq!(maps.members.clone(), view.rows(Table::ServiceMembers).members.into_iter().collect());
            prop_assert_eq!(maps.members.len(), view.expected(Table::ServiceMembers));
            prop_assert_eq!(maps.backends.len(), view.expected(Table::Backends));
            prop_assert_eq!(maps.maglev.clone(), view.rows(Table::Maglev).maglev.into_iter().collect());
            prop_assert_eq!(maps.maglev.len(), view.expected(Table::Maglev));
            let both = wanted.keys().map(|number| if *number == 1 { 1 } else { 2 });
            prop_assert_eq!(maps.services.len(), both.sum::<usize>());
        }
    }

    #[test]
    fn slots_that_stay_below_the_end_keep_their_backends(
        before in proptest::collection::vec(0u32..20, 0..12),
        wanted in proptest::collection::btree_set(0u32..20, 0..12),
    ) {
        let mut known = BTreeSet::new();
        let before: Vec<u32> = before.into_iter().filter(|backend| known.insert(*backend)).collect();
        let after = arrange(&before, &wanted);
        prop_assert_eq!(after.iter().copied().collect::<BTreeSet<_>>(), wanted.clone());
        prop_assert_eq!(after.len(), wanted.len());
        let moved = before.iter().enumerate().filter(|(slot, backend)| wanted.contains(backend) && after.get(*slot) != Some(backend));
        let gone = before.iter().filter(|backend| !wanted.contains(backend)).count();
        prop_assert!(moved.count() <= gone, "{before:?} {after:?}");
    }
}

/// What another agent reads.
fn take<K: Plain, V: Plain>(recovered: &mut Recovered, table: Table, rows: &BTreeMap<K, V>) {
    for (key, value) in rows {
        recovered.take(table, as_bytes(key), as_bytes(value));
    }
}

#[test]
fn the_next_agent_gives_the_same_numbers_and_changes_no_row() {
    let folder = tempfile::tempdir().unwrap();
    let (mut book, mut maps) = (book(&folder), Maps::default());
    for number in 0..3 {
        let compiled = compiled(number, &(0..9).collect(), number == 1);
        maps.apply(&book.set(&name(number), with_table(compiled, number)));
    }
    // Holes and another order, as time makes them.
    maps.apply(&book.set(
        &name(0),
        with_table(compiled(0, &BTreeSet::from([1, 3, 8, 7]), false), 0),
    ));
    let mut recovered = Recovered::default();
    take(&mut recovered, Table::Services, &maps.services);
    take(&mut recovered, Table::ServiceSlots, &maps.slots);
    take(&mut recovered, Table::ServiceMembers, &maps.members);
    take(&mut recovered, Table::Backends, &maps.backends);
    take(&mut recovered, Table::Maglev, &maps.maglev);
    let mut next = tests::book(&folder);
    next.recover(recovered);
    for number in (0..3).rev() {
        let endpoints = if number == 0 {
            BTreeSet::from([1, 3, 8, 7])
        } else {
            (0..9).collect()
        };
        let compiled = compiled(number, &endpoints, number == 1);
        next.set(&name(number), with_table(compiled, number));
    }
    next.recovery_is_over();
    let view = next.view();
    let rows = |table| view.rows(table);
    assert_eq!(
        rows(Table::Services)
            .services
            .into_iter()
            .collect::<BTreeMap<_, _>>(),
        maps.services
    );
    assert_eq!(
        rows(Table::ServiceSlots)
            .slots
            .into_iter()
            .collect::<BTreeMap<_, _>>(),
        maps.slots
    );
    assert_eq!(
        rows(Table::ServiceMembers)
            .members
            .into_iter()
            .collect::<BTreeMap<_, _>>(),
        maps.members
    );
    assert_eq!(
        rows(Table::Backends)
            .backends
            .into_iter()
            .collect::<BTreeMap<_, _>>(),
        maps.backends
    );
    assert_eq!(
        rows(Table::Maglev).maglev.into_iter().collect::<BTreeMap<_, _>>(),
        maps.maglev
    );
    // What is new gets a number that nobody has had.
    let highest = maps
        .backends
        .keys()
        .chain(maps.services.values().map(|service| &service.id))
        .max()
        .copied();
    let edits = next.set(&name(3), compiled(3, &BTreeSet::from([100]), false));
    assert!(Some(edits.put.backends[0].0) > highest);
}

#[test]
fn a_frontend_that_another_service_has_is_said_and_inherited() {
    let folder = tempfile::tempdir().unwrap();
    let mut book = book(&folder);
    let endpoints = BTreeSet::from([1]);
    book.set(&name(1), compiled(1, &endpoints, false));
    let second = |book: &mut Book| book.set(&name(2), compiled(1, &BTreeSet::from([2]), false));
    let edits = second(&mut book);
    assert_eq!(edits.put.services, []);
    let problems: Vec<&String> = book.problems().collect();
    assert!(
        problems[0].contains("n/s2") && problems[0].contains("n/s1"),
        "{problems:?}"
    );
    let edits = book.set(&name(1), Compiled::default());
    assert_eq!(edits.gone.services, [key(1)]);
    assert_eq!(book.heirs(&edits.gone.services), [name(2)].into());
    assert_eq!(second(&mut book).put.services[0].0, key(1));
    assert_eq!(book.problems().count(), 0);
}

#[test]
fn a_change_of_one_endpoint_costs_one_row_of_each_kind() {
    let folder = tempfile::tempdir().unwrap();
    let mut book = book(&folder);
    book.set(&name(1), compiled(1, &(0..200).collect(), false));
    book.set(&name(2), compiled(2, &(0..200).collect(), false));
    let edits = book.set(&name(1), compiled(1, &(0..201).collect(), false));
    let put = (
        edits.put.backends.len(),
        edits.put.slots.len(),
        edits.put.services.len(),
    );
    assert_eq!((put, edits.gone), ((1, 1, 1), Keys::default()));
    let edits = book.set(&name(1), compiled(1, &(0..200).collect(), false));
    let put = (
        edits.put.backends.len(),
        edits.put.slots.len(),
        edits.put.services.len(),
    );
    assert_eq!(put, (0, 0, 1), "the last one went: the count is all that changes");
    assert_eq!((edits.gone.slots.len(), edits.gone.backends.len()), (1, 1));
}

#[test]
fn a_service_that_outgrows_its_block_moves_and_its_frontend_switches_in_one_write() {
    let folder = tempfile::tempdir().unwrap();
    let (mut book, mut maps) = (book(&folder), Maps::default());
    maps.apply(&book.set(&name(1), compiled(1, &(0..4).collect(), false)));
    // Somebody is right behind it.
    maps.apply(&book.set(&name(2), compiled(2, &(0..4).collect(), false)));
    let before = maps.services[&key(1)];
    let edits = book.set(&name(1), compiled(1, &(1..7).collect(), false));
    let after = edits.put.services[0].1;
    assert_eq!((before.id, before.slots, after.slots), (after.id, 4, 6));
    let places: Vec<u32> = edits.put.slots.iter().map(|(place, _)| *place).collect();
    assert_eq!(places, (after.first..after.first + 6).collect::<Vec<_>>());
    let old = before.first..before.first + before.slots;
    assert!(
        places.iter().all(|place| !old.contains(place)),
        "who reads the old ones finds them as they were"
    );
    assert_eq!(edits.gone.slots, old.clone().collect::<Vec<_>>());
    maps.apply(&edits);
    // Nobody gets them before they are free.
    let retired = book.take_retired();
    let blocks: Vec<u32> = retired.iter().flat_map(|block| block.places()).collect();
    assert_eq!(blocks, old.clone().collect::<Vec<_>>());
    let first = |edits: &Edits| edits.put.services[0].1.first;
    let third = book.set(&name(3), compiled(3, &(0..4).collect(), false));
    assert!(!old.contains(&first(&third)));
    book.free_blocks(retired);
    let fourth = book.set(&name(4), compiled(4, &(0..4).collect(), false));
    assert_eq!(first(&fourth), old.start);
}

#[test]
fn a_table_without_room_is_said_and_comes_when_there_is_some() {
    let folder = tempfile::tempdir().unwrap();
    // Tables of four parts, two of them and as much for those that take their place.
    let mut book = book_of(&folder, ample(16));
    let endpoints = BTreeSet::from([1, 2]);
    let wanted = |number| with_table(compiled(number, &endpoints, false), number);
    let table = |edits: &Edits, number| {
        let mut rows = edits.put.services.iter();
        rows.find(|(key, _)| *key == outside(number))
            .map(|(_, service)| service.maglev)
    };
    for number in [1, 2] {
        assert_ne!(table(&book.set(&name(number), wanted(number)), number), Some(0));
    }
    let edits = book.set(&name(3), wanted(3));
    assert_eq!(table(&edits, 3), Some(0), "any endpoint will do");
    let problems: Vec<String> = book.problems().cloned().collect();
    assert!(
        problems[0].contains("n/s3") && problems[0].contains("maps.maglev"),
        "{problems:?}"
    );
    // One that is there may change all the same.
    let changed = with_table(compiled(2, &BTreeSet::from([2, 3]), false), 2);
    assert_eq!(book.set(&name(2), changed).put.maglev.len(), 4);
    let _ = book.heirs(&[]);
    book.set(&name(3), wanted(3));
    let edits = book.set(&name(1), Compiled::default());
    assert_eq!(edits.gone.maglev.len(), 4);
    assert_eq!(book.heirs(&edits.gone.services), [name(3)].into());
    let edits = book.set(&name(3), wanted(3));
    assert!(table(&edits, 3).is_some_and(|number| number != 0));
    assert_eq!((book.problems().count(), edits.put.services.len()), (0, 1));
}

/// By its row a program sees it, whoever else has the endpoint.
#[test]
fn svc_53_svc_55_an_endpoint_that_one_service_loses_is_gone_for_it_and_stays_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let (mut book, mut maps) = (book(&folder), Maps::default());
    let both = BTreeSet::from([1, 2]);
    maps.apply(&book.set(&name(1), compiled(1, &both, false)));
    let first: BTreeSet<u32> = maps.backends.keys().copied().collect();
    maps.apply(&book.set(&name(2), compiled(2, &both, false)));
    let second = |number: &u32| !first.contains(number);
    assert_eq!(maps.backends.keys().filter(|number| second(number)).count(), 2);
    let edits = book.set(&name(1), compiled(1, &BTreeSet::from([2]), false));
    assert_eq!(edits.gone.backends.len(), 1);
    assert!(edits.gone.backends.iter().all(|number| first.contains(number)));
    maps.apply(&edits);
    assert_eq!(maps.backends.keys().filter(|number| second(number)).count(), 2);
    assert_eq!(maps.targets(&key(2)), [1, 2]);
}
