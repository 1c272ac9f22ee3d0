//! What the agent keeps of Services, byte by byte: a hundred thousand endpoints must fit into a small node agent.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on panics"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use cni_agent::{
    compile::service::{Place, compile},
    config::MapSizes,
    model::{
        EndpointSlice, Event, Locality, NamespacedName, Object, Protocol, Service, ServicePort,
        SliceEndpoint, SlicePort, Source,
    },
    services::{Book, Capacity, Numbers},
    state::State,
};

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 10;
/// Bytes of each of these Services with its endpoints, in the state and in the book. It does not jitter.
const MOST: usize = 2_300;

/// Counts what is kept, with what glibc's allocator adds to each piece.
struct Counting;

static KEPT: AtomicUsize = AtomicUsize::new(0);

fn chunk(size: usize) -> usize {
    (size + 8).next_multiple_of(16).max(32)
}

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        KEPT.fetch_add(chunk(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promises are those that this asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        KEPT.fetch_sub(chunk(layout.size()), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn name(name: String) -> NamespacedName {
    NamespacedName {
        namespace: "default".into(),
        name,
    }
}

fn service(number: u32) -> Service {
    Service {
        name: Arc::new(name(format!("service-{number}"))),
        uid: format!("00000000-0000-4000-8000-{number:012}").into(),
        cluster_ips: [std::net::Ipv4Addr::from(0x0a60_0000 + number).into()].into(),
        ports: [ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
        }]
        .into(),
        ..Service::default()
    }
}

fn slice(number: u32) -> EndpointSlice {
    let endpoints = (0..ENDPOINTS).map(|endpoint| {
        let pod = number * ENDPOINTS + endpoint;
        SliceEndpoint {
            address: std::net::Ipv4Addr::from(0x0a80_0000 + pod).into(),
            ready: true,
            serving: true,
            terminating: false,
            locality: Arc::new(Locality {
                node: Some(format!("worker-{}", pod % 5_000).into()),
                ..Locality::default()
            }),
        }
    });
    EndpointSlice {
        name: name(format!("service-{number}-abcde")),
        service: Arc::new(name(format!("service-{number}"))),
        v4: true,
        ports: [SlicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }]
        .into(),
        endpoints: endpoints.collect(),
        ..EndpointSlice::default()
    }
}

#[test]
fn ten_thousand_services_of_ten_endpoints_are_kept_in_little_memory() {
    let begin = KEPT.load(Ordering::Relaxed);
    let since = |before: usize| (KEPT.load(Ordering::Relaxed) - before) / SERVICES as usize;
    let mut state = State::new([Source::Kubernetes]);
    for number in 0..SERVICES {
        state.handle(Event::Set(Object::Service(Box::new(service(number)))));
    }
    state.services.take_changed();
    let objects = since(begin);
    for number in 0..SERVICES {
        state.handle(Event::Set(Object::EndpointSlice(slice(number))));
    }
    state.services.take_changed();
    let slices = since(begin) - objects;
    let folder = tempfile::tempdir().unwrap();
    let before = KEPT.load(Ordering::Relaxed);
    let mut book = Book::new(
        Numbers::open(folder.path().join("numbers")).unwrap(),
        Capacity::of(&MapSizes::default()),
    );
    let place = Place::default();
    let names: Vec<_> = state.services.names().cloned().collect();
    for name in &names {
        let slices: Vec<_> = state.services.slices_of(name).collect();
        book.set(name, compile(&place, state.services.get(name).unwrap(), &slices));
    }
    drop(names);
    let rows = since(before);
    assert_eq!(book.summary().backends, (SERVICES * ENDPOINTS) as usize);
    let all = objects + slices + rows;
    println!("bytes of each Service: {objects} of the object, {slices} of its endpoints, {rows} of its rows");
    assert!(
        all <= MOST,
        "{all} bytes of each Service, {objects} + {slices} + {rows}"
    );
}
