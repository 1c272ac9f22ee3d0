//! Maglev: the backend of a connection without a memory of it.
//!
//! A hash of the client says a place in the Service's table, the table a backend. Every node that knows the same endpoints has
//! the same table, so a connection that a router moves to another node is given the backend that it had.

use super::{
    Tables,
    lot::{MIX, mix},
};
use crate::abi::{MaglevChunk, MaglevKey, Service, Tuple, service_flags};

/// The number of a client: of each of its connections, or of all of them. Not of what it dialled: a load balancer before the
/// nodes puts the address of whichever node it chose there. It is the same on every node, of whatever byte order.
#[inline(always)]
pub fn hash(tuple: &Tuple, whole_client: bool) -> u32 {
    let port = if whole_client { 0 } else { tuple.src_port.get() };
    let transport = u64::from(port) << 8 | u64::from(tuple.proto);
    let words = [u64::from_be(tuple.src.hi), u64::from_be(tuple.src.lo), transport];
    (mix(MIX, words) >> 32) as u32
}

/// The backend in the client's place; `None` if the table is not there, and any backend will have to do.
#[inline(always)]
pub(super) fn backend<T: Tables>(tables: &T, service: &Service, tuple: &Tuple) -> Option<u32> {
    let affine = service.flags & service_flags::AFFINITY != 0;
    let place = hash(tuple, affine).checked_rem(service.maglev_size)?;
    let key = MaglevKey {
        table: service.maglev,
        chunk: place / MaglevChunk::PLACES,
    };
    let chunk = tables.maglev(&key)?;
    let within = place & (MaglevChunk::PLACES - 1);
    chunk.backends.get(within as usize).copied()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    use super::*;
    use crate::abi::{Addr, Port};

    fn tuple(src: &str, src_port: u16, proto: u8) -> Tuple {
        Tuple {
            src: Addr::from(src.parse::<IpAddr>().unwrap()),
            src_port: Port::new(src_port),
            proto,
            ..Tuple::default()
        }
    }

    /// A node of another release must give the same client the same endpoint.
    #[test]
    fn a_clients_number_is_what_it_has_always_been() {
        let (v4, v6) = (tuple("203.0.113.2", 50_000, 6), tuple("2001:db8::2", 443, 17));
        let numbers = [&v4, &v6].map(|tuple| (hash(tuple, false), hash(tuple, true)));
        assert_eq!(
            numbers,
            [(3_194_416_908, 4_114_276_815), (3_002_103_737, 3_530_529_587)]
        );
    }

    #[test]
    fn clients_that_differ_in_one_thing_are_spread_evenly() {
        let ports = (0..4096).map(|port| tuple("203.0.113.2", 1024 + port, 6));
        let addresses = (0..4096u16).map(|i| tuple(&format!("198.51.{}.{}", i >> 8, i & 255), 443, 17));
        let alike: [Vec<Tuple>; 2] = [ports.collect(), addresses.collect()];
        for tuples in alike {
            let mut places = [0u32; 16];
            for tuple in &tuples {
                places[hash(tuple, false) as usize % 1021 % 16] += 1;
            }
            // 256 each, give or take five standard deviations.
            assert!(
                places.iter().all(|place| (176..336).contains(place)),
                "{places:?}"
            );
            let numbers: BTreeSet<u32> = tuples.iter().map(|tuple| hash(tuple, false)).collect();
            assert!(numbers.len() > 4090);
        }
    }

    #[test]
    fn what_was_dialled_and_the_port_of_an_affine_client_make_no_difference() {
        let one = tuple("203.0.113.2", 50_000, 6);
        let by_another_node = Tuple {
            dst: Addr::v4([192, 0, 2, 7]),
            dst_port: Port::new(30_080),
            ..one
        };
        assert_eq!(hash(&one, false), hash(&by_another_node, false));
        assert_eq!(hash(&one, true), hash(&tuple("203.0.113.2", 50_001, 6), true));
        assert_ne!(hash(&one, true), hash(&tuple("203.0.113.2", 50_000, 17), true));
    }
}
