//! The maps. Names, kinds and sizes are those of [`cni_ebpf::abi::MAPS`]; a test compares the object with it.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use cni_ebpf::abi::*;
use cni_ebpf::datapath::Work;

/// Longest-prefix maps cannot be preallocated.
const LPM: u32 = BPF_F_NO_PREALLOC;

#[map(name = "addresses")]
pub(super) static ADDRESSES: HashMap<Addr, u32> = HashMap::with_max_entries(2 * ENDPOINT_SLOTS, 0);
#[map(name = "endpoints")]
pub(super) static ENDPOINTS: Array<Endpoint> = Array::with_max_entries(ENDPOINT_SLOTS, 0);
#[map(name = "peers")]
pub(super) static PEERS: HashMap<Addr, Peer> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);
#[map(name = "routes")]
pub(super) static ROUTES: LpmTrie<[u32; 4], Route> = LpmTrie::with_max_entries(16_384, LPM);
#[map(name = "devices")]
pub(super) static DEVICES: HashMap<u32, Device> = HashMap::with_max_entries(256, 0);
#[map(name = "conntrack")]
pub(super) static CONNTRACK: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(131_072, 0);
#[map(name = "conntrack_new")]
pub(super) static CONNTRACK_NEW: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(32_768, 0);
#[map(name = "nat")]
pub(super) static NAT: LruHashMap<Tuple, Alias> = LruHashMap::with_max_entries(131_072, 0);
#[map(name = "nat_new")]
pub(super) static NAT_NEW: LruHashMap<Tuple, Alias> = LruHashMap::with_max_entries(32_768, 0);
#[map(name = "buckets")]
pub(super) static BUCKETS: HashMap<u32, Bucket> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
#[map(name = "fragments")]
pub(super) static FRAGMENTS: LruHashMap<FragmentKey, Fragment> = LruHashMap::with_max_entries(8192, 0);
#[map(name = "rule_sets")]
pub(super) static RULE_SETS: Array<RuleSet> = Array::with_max_entries(16_384, 0);
#[map(name = "rules")]
pub(super) static RULES: LpmTrie<[u8; 12], RuleList> = LpmTrie::with_max_entries(65_536, LPM);
#[map(name = "rule_groups")]
pub(super) static RULE_GROUPS: HashMap<GroupKey, GroupChunk> =
    HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);
#[map(name = "classes")]
pub(super) static CLASSES: HashMap<ClassKey, ClassBits> =
    HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);
#[map(name = "cidrs")]
pub(super) static CIDRS: LpmTrie<[u32; 4], u32> = LpmTrie::with_max_entries(16_384, LPM);
#[map(name = "grants")]
pub(super) static GRANTS: HashMap<GrantKey, Grant> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);
#[map(name = "services")]
pub(super) static SERVICES: HashMap<ServiceKey, Service> =
    HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);
#[map(name = "service_slots")]
pub(super) static SLOTS: Array<Slot> = Array::with_max_entries(262_144, 0);
#[map(name = "service_members")]
pub(super) static MEMBERS: HashMap<MemberKey, u32> = HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);
#[map(name = "backends")]
pub(super) static BACKENDS: HashMap<u32, Backend> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);
#[map(name = "maglev")]
pub(super) static MAGLEV: HashMap<MaglevKey, MaglevChunk> =
    HashMap::with_max_entries(32_768, BPF_F_NO_PREALLOC);
#[map(name = "service_ranges")]
pub(super) static SERVICE_RANGES: LpmTrie<[u32; 5], u32> = LpmTrie::with_max_entries(16_384, LPM);
#[map(name = "affinity")]
pub(super) static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::with_max_entries(65_536, 0);
#[map(name = "sockets")]
pub(super) static SOCKETS: LruHashMap<SocketKey, Dialled> = LruHashMap::with_max_entries(65_536, 0);
#[map(name = "service_opened")]
pub(super) static OPENED: LruHashMap<u32, Racy<u64>> = LruHashMap::with_max_entries(32_768, 0);
#[map(name = "counters")]
pub(super) static COUNTS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(COUNTERS, 0);
#[map(name = "settings")]
pub(super) static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map(name = "secrets")]
pub(super) static SECRETS: Array<Secrets> = Array::with_max_entries(1, 0);
#[map(name = "exhausted")]
pub(super) static EXHAUSTED: Array<Racy<u64>> = Array::with_max_entries(EXHAUSTED_PLACES, 0);
#[map(name = "events")]
pub(super) static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
#[map(name = "events_lost")]
pub(super) static EVENTS_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Not 0 while somebody reads events.
#[map(name = "listeners")]
pub(super) static LISTENERS: Array<u32> = Array::with_max_entries(1, 0);

/// The programs of two loads ([`program_place`]); neither has those of the other where nothing is being replaced.
#[map(name = "programs")]
pub(super) static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(8, 0);

/// The state of a run; never pinned, one for each object.
#[map(name = "work")]
pub(super) static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

/// Set by the loader.
#[unsafe(no_mangle)]
pub(super) static CONFIG: Config = Config::DEFAULT;
