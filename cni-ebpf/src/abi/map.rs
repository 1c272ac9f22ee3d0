//! The maps: name, kind, sizes, and the version of their layout.

use super::*;

/// The part of a pin's name behind the dot: `conntrack.v1`. It moves when the layout of the key or value moves.
pub const fn version(map: &str) -> u32 {
    let mut i = 0;
    while i < MAPS.len() {
        if same(MAPS[i].name, map) {
            return MAPS[i].version;
        }
        i += 1;
    }
    0
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapType {
    Hash,
    LruHash,
    Lpm,
    Array,
    PerCpuArray,
    RingBuf,
    ProgramArray,
}

/// What a map must look like; the loader checks an existing pin against it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapSpec {
    pub name: &'static str,
    pub map_type: MapType,
    pub key: usize,
    pub value: usize,
    /// Entries unless configured otherwise (a ring buffer: bytes).
    pub entries: u32,
    pub version: u32,
    /// The state of live connections: a new agent must carry it over.
    pub keep: bool,
}

const fn spec<K: Plain, V: Plain>(name: &'static str, map_type: MapType, entries: u32) -> MapSpec {
    MapSpec {
        name,
        map_type,
        key: size_of::<K>(),
        value: size_of::<V>(),
        entries,
        version: 1,
        keep: false,
    }
}

const fn keep(spec: MapSpec) -> MapSpec {
    MapSpec { keep: true, ..spec }
}

/// The version of the layout of [`Flow`].
const FLOW: u32 = if cfg!(feature = "next-layout") { 2 } else { 1 };

const fn flows(name: &'static str, entries: u32) -> MapSpec {
    MapSpec {
        version: FLOW,
        ..keep(spec::<FlowKey, Flow>(name, LruHash, entries))
    }
}

use MapType::{Array, Hash, Lpm, LruHash, PerCpuArray, ProgramArray};

/// How many destinations are remembered to which no translated port was free.
pub const EXHAUSTED_PLACES: u32 = 256;

/// Programs of tc, one for each of the first [`hook`]s.
const PROGRAMS_OF_SIDE: u32 = 4;

/// The place of a program of tc in the map `programs`. Two loads have a side each, so that each can hand to the other what
/// it does not know ([`Settings::unsettled_until`]).
pub const fn program_place(side: u32, hook: u8) -> u32 {
    side * PROGRAMS_OF_SIDE + hook as u32 - hook::FROM_POD as u32
}

/// Every map that is pinned.
pub const MAPS: &[MapSpec] = &[
    spec::<Addr, u32>("addresses", Hash, 2 * ENDPOINT_SLOTS),
    spec::<u32, Endpoint>("endpoints", Array, ENDPOINT_SLOTS),
    spec::<Addr, Peer>("peers", Hash, 131_072),
    spec::<Prefix, Route>("routes", Lpm, 16_384),
    spec::<u32, Device>("devices", Hash, 256),
    flows("conntrack", 131_072),
    flows("conntrack_new", 32_768),
    keep(spec::<Tuple, Alias>("nat", LruHash, 131_072)),
    keep(spec::<Tuple, Alias>("nat_new", LruHash, 32_768)),
    spec::<u32, Bucket>("buckets", Hash, 4096),
    spec::<FragmentKey, Fragment>("fragments", LruHash, 8192),
    spec::<u32, RuleSet>("rule_sets", Array, 16_384),
    spec::<RuleKey, RuleList>("rules", Lpm, 65_536),
    spec::<GroupKey, GroupChunk>("rule_groups", Hash, 65_536),
    spec::<ClassKey, ClassBits>("classes", Hash, 65_536),
    spec::<Prefix, u32>("cidrs", Lpm, 16_384),
    keep(spec::<GrantKey, Grant>("grants", Hash, 65_536)),
    spec::<ServiceKey, Service>("services", Hash, 65_536),
    MapSpec {
        // Of the first version it was a hash.
        version: 2,
        ..spec::<u32, Slot>("service_slots", Array, 262_144)
    },
    spec::<MemberKey, u32>("service_members", Hash, 262_144),
    spec::<u32, Backend>("backends", Hash, 131_072),
    spec::<MaglevKey, MaglevChunk>("maglev", Hash, 32_768),
    spec::<SourceRange, u32>("service_ranges", Lpm, 16_384),
    keep(spec::<AffinityKey, Affinity>("affinity", LruHash, 65_536)),
    keep(spec::<SocketKey, Dialled>("sockets", LruHash, 65_536)),
    spec::<u32, Racy<u64>>("service_opened", LruHash, 32_768),
    spec::<u32, Counter>("counters", PerCpuArray, COUNTERS),
    spec::<u32, Settings>("settings", Array, 1),
    spec::<u32, Secrets>("secrets", Array, 1),
    spec::<u32, Racy<u64>>("exhausted", Array, EXHAUSTED_PLACES),
    MapSpec {
        name: "events",
        map_type: MapType::RingBuf,
        key: 0,
        value: 0,
        entries: 1 << 20,
        version: 1,
        keep: false,
    },
    spec::<u32, u64>("events_lost", PerCpuArray, 1),
    spec::<u32, u32>("listeners", Array, 1),
    // From user space a value that is written is a descriptor, one that is read is the program's number.
    spec::<u32, u32>("programs", ProgramArray, 2 * PROGRAMS_OF_SIDE),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_are_unique() {
        for (i, map) in MAPS.iter().enumerate() {
            assert!(
                map.name.len() <= 15,
                "BPF_OBJ_NAME_LEN is 16 with its end: {}",
                map.name
            );
            assert!(
                MAPS[..i].iter().all(|other| other.name != map.name),
                "{}",
                map.name
            );
            assert_eq!(version(map.name), map.version);
        }
        assert_eq!(version("nothing"), 0);
    }

    #[test]
    fn both_sides_have_a_place_for_each_program() {
        let hooks = [hook::FROM_POD, hook::TO_POD, hook::FROM_NETDEV, hook::TO_NETDEV];
        let places: Vec<u32> = (0..2)
            .flat_map(|side| hooks.map(|hook| program_place(side, hook)))
            .collect();
        assert!(places.into_iter().eq(0..2 * PROGRAMS_OF_SIDE));
    }
}
