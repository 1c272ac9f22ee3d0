mod claims;
mod room;

use std::collections::{BTreeMap, BTreeSet};

use cni_ebpf::abi::{Addr, Backend, MaglevChunk, MaglevKey, Port, service_flags, service_scope};
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
    slots: BTreeMap<SlotKey, u32>,
    backends: BTreeMap<u32, Backend>,
    maglev: BTreeMap<MaglevKey, MaglevChunk>,
}

impl Maps {
    fn apply(&mut self, edits: &Edits) {
        for (number, backend) in &edits.put.backends {
            self.backends.insert(*number, *backend);
            self.check();
        }
        for (key, backend) in &edits.put.slots {
            self.slots.insert(*key, *backend);
            self.check();
        }
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
        for key in &keys.slots {
            self.slots.remove(key);
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
            for slot in 0..service.slots {
                let key = SlotKey {
                    service: service.id,
                    slot,
                };
                let backend = self
                    .slots
                    .get(&key)
                    .unwrap_or_else(|| panic!("{service:?} has no slot {slot}"));
                assert!(
                    self.backends.contains_key(backend),
                    "{service:?}: slot {slot} has no backend"
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
        let slots = (0..service.slots).map(|slot| SlotKey {
            service: service.id,
            slot,
        });
        let mut targets: Vec<u8> = slots
            .map(|key| self.backends[&self.slots[&key]].addr.octets()[15])
            .collect();
        targets.sort_unstable();
        targets
    }
}

fn ample(maglev: usize) -> Capacity {
    let rows = Counts {
        backends: 1_000,
        slots: 1_000,
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
    let bytes = |value: &[u8]| value.to_vec();
    for (key, value) in &maps.services {
        let (key, value) = (cni_ebpf::abi::as_bytes(key), cni_ebpf::abi::as_bytes(value));
        recovered.take(Table::Services, &bytes(key), &bytes(value));
    }
    for (key, value) in &maps.slots {
        recovered.take(
            Table::ServiceSlots,
            cni_ebpf::abi::as_bytes(key),
            cni_ebpf::abi::as_bytes(value),
        );
    }
    for (key, value) in &maps.backends {
        recovered.take(
            Table::Backends,
            cni_ebpf::abi::as_bytes(key),
            cni_ebpf::abi::as_bytes(value),
        );
    }
    for (key, value) in &maps.maglev {
        recovered.take(
            Table::Maglev,
            cni_ebpf::abi::as_bytes(key),
            cni_ebpf::abi::as_bytes(value),
        );
    }
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
