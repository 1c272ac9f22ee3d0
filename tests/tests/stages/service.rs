//! Which backend a new connection is given, while backends come and go.

use std::collections::BTreeMap;

use cni_ebpf::abi::{
    Addr, AffinityKey, Backend, MemberKey, Port, Reason, Service, ServiceKey, Slot, Tuple, client_kind,
    service_flags, service_scope,
};
use cni_ebpf::datapath::{Work, stage::Stage};
use cni_tests::memory::{Frame, Memory};
use cni_tests::world::ifindex;
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

const ID: u32 = 40;
const FIRST: u32 = 7;
const SECOND: u64 = 1_000_000_000;

/// What happens to the Service.
#[derive(Clone, Debug)]
enum Event {
    /// A client opens a connection from this port.
    Dialled(u8, u16),
    /// These serve from now on.
    Endpoints(Vec<u32>),
    /// So many seconds pass.
    Silence(u64),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..3u8, any::<u16>()).prop_map(|(client, port)| Event::Dialled(client, port)),
        2 => btree_set(1..6u32, 0..5).prop_map(|set| Event::Endpoints(set.into_iter().collect())),
        1 => (0..90u64).prop_map(Event::Silence),
    ]
}

fn key(proto: u8, scope: u8) -> ServiceKey {
    ServiceKey {
        addr: Addr::v4([10, 96, 0, 7]),
        port: Port::new(80),
        proto,
        scope,
        pad: 0,
    }
}

/// Two backends may be told apart by their port alone.
fn backend(id: u32) -> Backend {
    Backend {
        addr: Addr::v4([10, 1, 0, (10 + id / 2) as u8]),
        port: Port::new(8000 + id as u16),
        ..Backend::default()
    }
}

/// As the agent leaves it: slots without a gap, a member entry for each, nothing of those that are gone.
fn write(memory: &Memory, frontend: ServiceKey, service: Service, members: &[u32]) {
    let member = |backend| MemberKey { service: ID, backend };
    for id in 1..6 {
        memory.slots.put(FIRST + id - 1, Slot::default());
        memory.members.remove(&member(id));
        memory.backends.remove(&id);
    }
    for (place, id) in (FIRST..).zip(members) {
        let row = backend(*id);
        memory.slots.put(place, Slot::new(ID, *id, row.addr, row.port));
        memory.members.put(member(*id), 1);
        memory.backends.put(*id, row);
    }
    let (slots, first) = (members.len() as u32, FIRST);
    memory.services.put(
        frontend,
        Service {
            slots,
            first,
            ..service
        },
    );
}

fn dial(memory: &Memory, frontend: ServiceKey, client: u8, port: u16) -> (Result<(), Reason>, Work) {
    let src = Addr::v4([10, 2, 0, client]);
    let mut work = Work {
        now: memory.clock.get(),
        tuple: Tuple {
            src,
            dst: frontend.addr,
            src_port: Port::new(port),
            dst_port: frontend.port,
            proto: frontend.proto,
            ..Tuple::default()
        },
        ..Work::default()
    };
    work.choice.scope = frontend.scope;
    work.choice.client = AffinityKey {
        client: src,
        service: 0,
        kind: client_kind::ADDRESS,
    };
    let mut frame = Frame::new(Vec::new(), ifindex::POD_A);
    let outcome = super::run(Stage::Choose, memory, &mut frame, &mut work);
    (outcome, work)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn svc_49_svc_51_a_backend_that_serves_is_chosen_and_kept_as_long_as_it_does(
        members in btree_set(1..6u32, 0..5), events in vec(any_event(), 1..40),
        affine: bool, seconds in 1..60u32, external: bool, proto in prop_oneof![Just(6u8), Just(17), Just(132)],
    ) {
        let mut memory = Memory::default();
        memory.clock.set(1000 * SECOND);
        let scope = if external { service_scope::EXTERNAL } else { service_scope::CLUSTER };
        let frontend = key(proto, scope);
        let service = Service {
            id: ID,
            flags: if affine { service_flags::AFFINITY } else { 0 },
            affinity_seconds: seconds,
            ..Service::default()
        };
        let mut members: Vec<u32> = members.into_iter().collect();
        write(&memory, frontend, service, &members);
        // Whom each client had last, and when.
        let mut last: BTreeMap<u8, (u32, u64)> = BTreeMap::new();
        for event in events {
            let now = memory.clock.get();
            match event {
                Event::Silence(seconds) => memory.clock.set(now + seconds * SECOND),
                Event::Endpoints(set) => {
                    members = set;
                    write(&memory, frontend, service, &members);
                }
                Event::Dialled(client, port) => {
                    let (outcome, work) = dial(&memory, frontend, client, port);
                    let choice = &work.choice;
                    if members.is_empty() {
                        prop_assert_eq!(outcome, Err(Reason::ServiceNoBackend));
                        prop_assert_eq!(choice.found, 0);
                        continue;
                    }
                    prop_assert_eq!(outcome, Ok(()));
                    prop_assert!(choice.found == 1 && members.contains(&choice.backend), "{choice:?}");
                    let wanted = backend(choice.backend);
                    prop_assert_eq!((choice.addr, choice.port), (wanted.addr, wanted.port));
                    let kept = last.get(&client).filter(|(backend, then)| {
                        affine && now - then <= u64::from(seconds) * SECOND && members.contains(backend)
                    });
                    if let Some((backend, _)) = kept {
                        prop_assert_eq!(choice.backend, *backend);
                    }
                    last.insert(client, (choice.backend, now));
                    if external {
                        // Who is asked about twice has one answer.
                        let again = dial(&memory, frontend, client, port).1.choice.backend;
                        prop_assert_eq!(again, choice.backend);
                    }
                }
            }
            memory.settle();
        }
    }

    /// Whoever asks, whatever it has.
    #[test]
    fn svc_25_svc_26_a_service_that_refuses_or_drops_gives_no_backend(
        members in btree_set(1..6u32, 0..5), reject: bool, affine: bool, client in 0..3u8, port: u16,
    ) {
        let memory = Memory::default();
        let frontend = key(6, service_scope::CLUSTER);
        let refused = if reject { service_flags::REJECT } else { service_flags::DROP };
        let affine = if affine { service_flags::AFFINITY } else { 0 };
        let members: Vec<u32> = members.into_iter().collect();
        write(&memory, frontend, Service { id: ID, flags: refused | affine, ..Service::default() }, &members);
        let (outcome, work) = dial(&memory, frontend, client, port);
        let reason = if reject { Reason::ServiceNoBackend } else { Reason::ServiceNotLocal };
        prop_assert_eq!((outcome, work.choice.found), (Err(reason), 0));
        prop_assert!(memory.affinity.is_empty());
        // Another port, protocol or scope is no Service at all.
        for other in [
            ServiceKey { port: Port::new(81), ..frontend },
            ServiceKey { proto: 17, ..frontend },
            ServiceKey { scope: service_scope::EXTERNAL, ..frontend },
        ] {
            let (outcome, work) = dial(&memory, other, client, port);
            prop_assert_eq!((outcome, work.choice.found), (Ok(()), 0));
        }
    }
}
