//! Services: a frontend leads to slots, a slot is an endpoint. Backends are written before the slots that name them,
//! slots before the frontend that counts them.

use core::ptr::read_volatile;

use super::{Addr, Port, Racy};

pub mod service_scope {
    /// What pods and the node itself send.
    pub const CLUSTER: u8 = 0;
    /// What arrives from outside (externalTrafficPolicy applies). A ClusterIP has no such row: its clients from outside
    /// use the other one.
    pub const EXTERNAL: u8 = 1;
}

/// What [`Service::flags`] says.
pub mod service_flags {
    pub const AFFINITY: u32 = 1 << 0;
    /// No usable endpoint anywhere: refuse at once.
    pub const REJECT: u32 = 1 << 1;
    /// No usable endpoint here though there are some elsewhere: drop silently.
    pub const DROP: u32 = 1 << 2;
    /// The source is translated.
    pub const MASQUERADE: u32 = 1 << 3;
    /// Clients from outside keep their address all the same, where the backend's node can answer them itself.
    pub const DSR: u32 = 1 << 5;
    /// Besides, every node leads a client to the same backend: a stream may come here in its middle.
    pub const ANY_NODE: u32 = 1 << 6;
}

/// What [`Backend::flags`] says.
pub mod backend_flags {
    pub const LOCAL: u32 = 1 << 0;
    pub const TERMINATING: u32 = 1 << 1;
}

crate::abi! {
    /// Port 0 of protocol 0 is every other port of a ClusterIP: the address lives, and what is sent there is refused.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub struct ServiceKey: 24 {
        pub addr: Addr,
        pub port: Port,
        pub proto: u8,
        pub scope: u8,
        pub pad: u32,
    }
}

crate::abi! {
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Service: 32 {
        /// Of the slots, which frontends with the same endpoints share.
        pub id: u32,
        /// So many slots are filled, from `first` on.
        pub slots: u32,
        pub flags: u32,
        pub affinity_seconds: u32,
        /// Whose sources may use it, see [`SourceRange`]; 0: everybody.
        pub ranges: u32,
        /// The Maglev table by which a backend is chosen, see [`MaglevKey`]; 0: any slot will do. Releases that know of no
        /// tables write zeros here and read nothing.
        pub maglev: u32,
        /// How many places the table has.
        pub maglev_size: u32,
        /// The place of the first slot. Releases whose slots are a hash write zero here and read nothing.
        pub first: u32,
    }
}

crate::abi! {
    /// A part of a Maglev table. What stands under a table's number never changes: another table has another number, and
    /// the frontend is what switches.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub struct MaglevKey: 8 {
        pub table: u32,
        pub chunk: u32,
    }
}

crate::abi! {
    /// The backends of so many places, one after the other; zeros behind the table's end.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct MaglevChunk: 256 {
        pub backends: [u32; 64],
    }
}

impl MaglevChunk {
    pub const PLACES: u32 = 64;
}

crate::abi! {
    /// A source that may use a frontend with restrictions: the key of a longest-prefix map.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub struct SourceRange: 24 {
        /// 32, for the number, and the bits of the address that count, of 128.
        pub len: u32,
        /// [`Service::ranges`].
        pub ranges: u32,
        pub words: [u32; 4],
    }
}

crate::abi! {
    /// An endpoint in its place of the array, so that who has a frontend is one look-up away from where the packet goes.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Slot: 32 {
        pub addr: Addr,
        pub port: Port,
        pub pad: u16,
        /// The backend's number.
        pub backend: u32,
        /// [`Service::id`]. Of another Service, or of none, this slot is nobody's who came here by that Service.
        pub service: u32,
        /// See [`Slot::sealed`].
        pub seal: u32,
    }
}

impl Slot {
    pub fn new(service: u32, backend: u32, addr: Addr, port: Port) -> Self {
        let slot = Self {
            addr,
            port,
            pad: 0,
            backend,
            service,
            seal: 0,
        };
        Self {
            seal: slot.sealed(),
            ..slot
        }
    }

    /// What a whole slot bears as its seal. The kernel writes an array's value byte by byte under its readers: of one endpoint's
    /// address and another one's port the seal is a third one's.
    #[inline(always)]
    pub const fn sealed(&self) -> u32 {
        const MIX: [u64; 3] = [
            0x9e37_79b9_7f4a_7c15,
            0xbf58_476d_1ce4_e5b9,
            0x94d0_49bb_1331_11eb,
        ];
        let rest = ((self.backend as u64) << 32 | self.port.wire() as u64).wrapping_mul(MIX[0]);
        let hash = (self.addr.lo ^ rest).wrapping_mul(MIX[1]) ^ self.addr.hi.wrapping_mul(MIX[2]);
        (hash >> 32) as u32
    }

    /// The slot as it is at this moment: each word is read once, so what was looked at is what is used.
    #[inline(always)]
    pub fn read(&self) -> Self {
        // SAFETY: references are valid and aligned; any bytes are a valid slot.
        unsafe {
            Self {
                addr: Addr {
                    hi: read_volatile(&raw const self.addr.hi),
                    lo: read_volatile(&raw const self.addr.lo),
                },
                port: read_volatile(&raw const self.port),
                pad: 0,
                backend: read_volatile(&raw const self.backend),
                service: read_volatile(&raw const self.service),
                seal: read_volatile(&raw const self.seal),
            }
        }
    }
}

crate::abi! {
    /// A backend that is among the Service's slots. Services with affinity have one such row for each of their backends, so
    /// that a client is not kept at one that left.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub struct MemberKey: 8 {
        pub service: u32,
        pub backend: u32,
    }
}

crate::abi! {
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Backend: 32 {
        pub addr: Addr,
        pub port: Port,
        pub proto: u8,
        pub zone: u8,
        pub flags: u32,
        pub reserved: u64,
    }
}

/// What [`AffinityKey::kind`] says a client is known by.
pub mod client_kind {
    pub const ADDRESS: u32 = 0;
    /// The cookie of its network namespace, in [`Addr::lo`](super::Addr::lo).
    pub const NETNS: u32 = 1;
}

crate::abi! {
    /// A client of a Service with affinity.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
    pub struct AffinityKey: 24 {
        pub client: Addr,
        pub service: u32,
        pub kind: u32,
    }
}

crate::abi! {
    /// The backend that a client had last, and when it last began a connection.
    #[derive(Clone, PartialEq, Eq, Debug, Default)]
    pub struct Affinity: 16 {
        pub seen: Racy<u64>,
        pub backend: u32,
        pub pad: u32,
    }
}

crate::abi! {
    /// A socket whose destination was translated, and the backend that it sends to.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
    pub struct SocketKey: 32 {
        pub cookie: u64,
        pub addr: Addr,
        pub port: Port,
        pub proto: u8,
        pub pad: u8,
        pub reserved: u32,
    }
}

crate::abi! {
    /// What the socket dialled.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Dialled: 32 {
        pub addr: Addr,
        pub port: Port,
        pub pad: u16,
        pub service: u32,
        pub backend: u32,
        pub reserved: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{as_bytes, from_bytes};

    #[test]
    fn a_slot_that_is_half_another_ones_is_not_sealed() {
        let slot = |number: u8| {
            let last = u32::from(number);
            Slot::new(
                7,
                100 + last,
                Addr::v4([10, 1, 0, number]),
                Port::new(8000 + u16::from(number)),
            )
        };
        let (before, after) = (slot(1), slot(2));
        for torn in 1..31u8 {
            let words = as_bytes(&before).chunks(4).zip(as_bytes(&after).chunks(4));
            // The seal is the eighth, the Service the seventh and the same.
            let mixed = words.enumerate().flat_map(|(at, (before, after))| {
                let new = [2, 3, 4, 5, 7].iter().position(|word| *word == at);
                if new.is_some_and(|bit| torn & 1 << bit != 0) {
                    after
                } else {
                    before
                }
            });
            let bytes: Vec<u8> = mixed.copied().collect();
            let mixed: Slot = from_bytes(&bytes).unwrap();
            if mixed != before && mixed != after {
                assert_ne!(mixed.sealed(), mixed.seal, "{mixed:?}");
            }
        }
        assert_eq!(after.read(), after);
        assert_eq!(after.sealed(), after.seal);
    }
}
