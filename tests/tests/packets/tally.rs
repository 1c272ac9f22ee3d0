//! What is counted for a Service.

use cni_ebpf::abi::{Racy, service_scope};
use cni_tests::frames::Ends;
use cni_tests::world::{Hook, ifindex, pod, port, service_id};

use crate::external::{arrive, outside};
use crate::fixtures::{SYN, families, from_a};
use crate::services::dial;

#[test]
fn a_connection_is_counted_for_its_service_when_it_begins() {
    families(|pair, v6| {
        let service = service_id(port::TO_B, v6, service_scope::CLUSTER);
        let mut send = |bytes: &[u8]| {
            pair.run(Hook::FromPod, bytes, ifindex::POD_A).0.unwrap();
            let in_memory = pair.memory.opened.get(&service).map(Racy::get);
            assert_eq!(pair.kernel.opened().unwrap().get(&service).copied(), in_memory);
            in_memory
        };
        let first = dial(v6, port::TO_B);
        let second = Ends {
            src_port: first.src_port + 1,
            ..first
        };
        // Sent again, and what follows, is of the same one.
        assert_eq!(send(&first.tcp(SYN, b"")), Some(1));
        assert_eq!(send(&first.tcp(SYN, b"")), Some(1));
        assert_eq!(send(&second.tcp(SYN, b"")), Some(2));
        assert_eq!(send(&second.udp(b"query")), Some(3));
        assert_eq!(send(&second.udp(b"query")), Some(3));
        // To the endpoint itself, it is nobody's.
        assert_eq!(send(&from_a(pod(2, v6)).tcp(SYN, b"")), Some(3));
    });
}

#[test]
fn a_client_from_outside_is_counted_where_it_asks() {
    families(|pair, v6| {
        let service = service_id(port::NODE_LOCAL, v6, service_scope::EXTERNAL);
        for (number, src_port) in [(1, 50_001), (2, 50_002), (2, 50_002)] {
            let dialled = Ends {
                src_port,
                ..outside(v6, port::NODE_LOCAL)
            };
            arrive(pair, &dialled.tcp(SYN, b"")).0.unwrap();
            assert_eq!(pair.kernel.opened().unwrap().get(&service), Some(&number));
        }
        // Who is refused begins nothing.
        let refused = service_id(port::NODE_REFUSED, v6, service_scope::EXTERNAL);
        arrive(pair, &outside(v6, port::NODE_REFUSED).tcp(SYN, b""))
            .0
            .unwrap_err();
        assert_eq!(pair.kernel.opened().unwrap().get(&refused), None);
    });
}
