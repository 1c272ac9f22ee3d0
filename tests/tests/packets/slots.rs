//! Slots of Services in their array, when they are not what the frontend says.

use cni_ebpf::abi::{Port, Reason, Service, Slot};
use cni_tests::world::{Hook, backend, ifindex, place, port, service_id};

use crate::Pair;
use crate::fixtures::{SYN, TO_A, TO_B, families};
use crate::services::{dial, ends, key, vip};

/// A row of a release that knows of no places leads to the first ones, whoever has them; and so may one that was read long ago.
#[test]
fn slots_of_another_service_are_nobodys_and_what_comes_is_to_be_sent_again() {
    families(|pair, v6| {
        let id = service_id(port::TO_B, v6, 0);
        let service = Service {
            id,
            slots: 1,
            ..Service::default()
        };
        let frontend = key(vip(v6), 9996, 6);
        let dialled = dial(v6, 9996);
        let send = |pair: &mut Pair| pair.run(Hook::FromPod, &dialled.tcp(SYN, b""), ifindex::POD_A).0;
        let others = place(service_id(port::TO_A, v6, 0), 0);
        for first in [0, others] {
            pair.put_frontend(frontend, Service { first, ..service });
            assert_eq!(send(pair), Err(Reason::Unsettled));
        }
        let first = u32::MAX;
        pair.put_frontend(frontend, Service { first, ..service });
        assert_eq!(send(pair), Err(Reason::ServiceNoBackend), "no place at all");
        pair.put_service(frontend, service);
        assert_eq!(send(pair), TO_B);
    });
}

/// The kernel does not write the value of an array in one step.
#[test]
fn a_slot_that_is_half_written_leads_to_the_backend_that_it_names() {
    families(|pair, v6| {
        let id = service_id(port::TO_B, v6, 0);
        let at = place(id, 0);
        let before = *pair.memory.slots.get(&at).unwrap();
        let offset = if v6 { backend::V6 } else { 0 };
        let a = *pair.memory.backends.get(&(backend::POD_A + offset)).unwrap();
        let halves = [
            (
                Slot {
                    addr: a.addr,
                    ..before
                },
                TO_B,
            ),
            (
                Slot {
                    port: Port::new(99),
                    ..before
                },
                TO_B,
            ),
            (
                Slot {
                    backend: backend::POD_A + offset,
                    ..before
                },
                TO_A,
            ),
            (
                Slot {
                    seal: !before.seal,
                    ..before
                },
                TO_B,
            ),
        ];
        let mut dialled = dial(v6, port::TO_B);
        for (half, to) in halves {
            pair.put_row(at, half);
            dialled.src_port += 1;
            let (verdict, out) = pair.run(Hook::FromPod, &dialled.tcp(SYN, b""), ifindex::POD_A);
            assert_eq!((verdict, ends(&out).1.1), (to, 8080), "{half:?}");
        }
        pair.put_row(at, before);
    });
}
