//! [`Tables`] over maps.

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_loop};
use aya_ebpf::maps::lpm_trie::Key;
use cni_ebpf::abi::*;
use cni_ebpf::datapath::{NotInserted, Table, Tables};

use super::maps::*;

pub(super) struct Maps;

const ANY: u64 = 0;
const NO_EXIST: u64 = 1;

/// A longest-prefix key as aya wants it: the length, and the data right behind it.
fn lpm<K, const SIZE: usize, D>(key: &K) -> &Key<D> {
    const { assert!(size_of::<K>() == SIZE && size_of::<Key<D>>() == SIZE) };
    // SAFETY: both are a length and the data without padding (sizes asserted), `Key` is packed, so any alignment will do.
    unsafe { &*core::ptr::from_ref(key).cast() }
}

macro_rules! get {
    ($map:ident, $key:expr) => {
        // SAFETY: entries live until the end of the RCU section, which is the program's; what other CPUs change
        // meanwhile is `Racy`, and the agent replaces whole values.
        unsafe { $map.get($key) }
    };
}

impl Tables for Maps {
    #[inline(always)]
    fn config(&self) -> &Config {
        &CONFIG
    }

    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        SETTINGS.get(0)
    }

    #[inline(always)]
    fn secrets(&self) -> Option<&Secrets> {
        SECRETS.get(0)
    }

    #[inline(always)]
    fn exhausted(&self, place: u32) -> Option<&Racy<u64>> {
        EXHAUSTED.get(place)
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn endpoint(&self, addr: &Addr) -> Option<&Endpoint> {
        self.endpoint_of(*get!(ADDRESSES, addr)?)
    }

    #[inline(always)]
    fn endpoint_of(&self, id: u32) -> Option<&Endpoint> {
        let endpoint = ENDPOINTS
            .get(Endpoint::slot(id))
            .filter(|endpoint| id != 0 && endpoint.id == id);
        // Opaque: a decision that the compiler keeps beside the pointer, and joins with others, is lost to the verifier.
        core::hint::black_box(endpoint)
    }

    #[inline(always)]
    fn peer(&self, addr: &Addr) -> Option<&Peer> {
        get!(PEERS, addr)
    }

    #[inline(always)]
    fn route(&self, prefix: &Prefix) -> Option<&Route> {
        ROUTES.get(lpm::<_, 20, _>(prefix))
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<&Device> {
        get!(DEVICES, &ifindex)
    }

    #[inline(always)]
    fn flow(&self, table: Table, key: &FlowKey) -> Option<&Flow> {
        match table {
            Table::Established => get!(CONNTRACK, key),
            Table::New => get!(CONNTRACK_NEW, key),
        }
    }

    #[inline(always)]
    fn insert_flow(&self, table: Table, key: &FlowKey, flow: &Flow) -> Result<(), NotInserted> {
        match table {
            Table::Established => CONNTRACK.insert(key, flow, ANY),
            Table::New => CONNTRACK_NEW.insert(key, flow, ANY),
        }
        .map_err(|_| NotInserted)
    }

    #[inline(always)]
    fn remove_flow(&self, table: Table, key: &FlowKey) {
        // An entry that is gone already is what was wanted.
        let _ = match table {
            Table::Established => CONNTRACK.remove(key),
            Table::New => CONNTRACK_NEW.remove(key),
        };
    }

    #[inline(always)]
    fn alias(&self, table: Table, tuple: &Tuple) -> Option<&Alias> {
        match table {
            Table::Established => get!(NAT, tuple),
            Table::New => get!(NAT_NEW, tuple),
        }
    }

    #[inline(always)]
    fn insert_alias(&self, table: Table, tuple: &Tuple, alias: &Alias) -> Result<(), NotInserted> {
        match table {
            Table::Established => NAT.insert(tuple, alias, NO_EXIST),
            Table::New => NAT_NEW.insert(tuple, alias, NO_EXIST),
        }
        .map_err(|_| NotInserted)
    }

    #[inline(always)]
    fn remove_alias(&self, table: Table, tuple: &Tuple) {
        let _ = match table {
            Table::Established => NAT.remove(tuple),
            Table::New => NAT_NEW.remove(tuple),
        };
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<&Fragment> {
        get!(FRAGMENTS, key)
    }

    #[inline(always)]
    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment) -> Result<(), NotInserted> {
        FRAGMENTS.insert(key, fragment, ANY).map_err(|_| NotInserted)
    }

    #[inline(always)]
    fn rule_set(&self, id: u32) -> Option<&RuleSet> {
        RULE_SETS.get(id)
    }

    #[inline(always)]
    fn rules(&self, key: &RuleKey) -> Option<&RuleList> {
        RULES.get(lpm::<_, 16, _>(key))
    }

    #[inline(always)]
    fn groups(&self, key: &GroupKey) -> Option<&GroupChunk> {
        get!(RULE_GROUPS, key)
    }

    #[inline(always)]
    fn class_bits(&self, key: &ClassKey) -> Option<&ClassBits> {
        get!(CLASSES, key)
    }

    #[inline(always)]
    fn cidr(&self, prefix: &Prefix) -> Option<&u32> {
        CIDRS.get(lpm::<_, 20, _>(prefix))
    }

    #[inline(always)]
    fn grant(&self, key: &GrantKey) -> Option<&Grant> {
        get!(GRANTS, key)
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<&Service> {
        get!(SERVICES, key)
    }

    #[inline(always)]
    fn slot(&self, place: u32) -> Option<&Slot> {
        SLOTS.get(place)
    }

    #[inline(always)]
    fn member(&self, key: &MemberKey) -> Option<&u32> {
        get!(MEMBERS, key)
    }

    #[inline(always)]
    fn backend(&self, id: &u32) -> Option<&Backend> {
        get!(BACKENDS, id)
    }

    #[inline(always)]
    fn maglev(&self, key: &MaglevKey) -> Option<&MaglevChunk> {
        get!(MAGLEV, key)
    }

    #[inline(always)]
    fn source_range(&self, source: &SourceRange) -> Option<&u32> {
        SERVICE_RANGES.get(lpm::<_, 24, _>(source))
    }

    #[inline(always)]
    fn affinity(&self, client: &AffinityKey) -> Option<&Affinity> {
        get!(AFFINITY, client)
    }

    #[inline(always)]
    fn remember_client(&self, client: &AffinityKey, last: &Affinity) {
        let _ = AFFINITY.insert(client, last, ANY);
    }

    #[inline(always)]
    fn socket(&self, key: &SocketKey) -> Option<&Dialled> {
        get!(SOCKETS, key)
    }

    #[inline(always)]
    fn remember_socket(&self, key: &SocketKey, dialled: &Dialled) {
        let _ = SOCKETS.insert(key, dialled, ANY);
    }

    #[inline(always)]
    fn opened(&self, service: &u32) -> Option<&Racy<u64>> {
        get!(OPENED, service)
    }

    #[inline(always)]
    fn remember_opened(&self, service: &u32) {
        if OPENED.insert(service, Racy::new(1), NO_EXIST).is_err()
            && let Some(opened) = get!(OPENED, service)
        {
            // Of two that begin at one moment, one is the first.
            opened.count();
        }
    }

    #[inline(always)]
    fn bucket(&self, key: u32) -> Option<&Bucket> {
        get!(BUCKETS, &key)
    }

    #[inline(always)]
    fn count(&self, reason: u8, direction: u8, bytes: u32) {
        let index = u32::from(reason) * 2 + u32::from(direction & 1);
        if let Some(counter) = COUNTS.get_ptr_mut(index) {
            // SAFETY: a value of this CPU alone, and programs on one CPU do not interrupt each other.
            unsafe {
                (*counter).packets += 1;
                (*counter).bytes += u64::from(bytes);
            }
        }
    }

    #[inline(always)]
    fn listened(&self) -> bool {
        LISTENERS.get(0).is_some_and(|listeners| *listeners != 0)
    }

    /// Wakes nobody: that would cost a connection more than everything else here. The reader comes by itself.
    #[inline(always)]
    fn event(&self, event: &Event) {
        if EVENTS
            .output::<Event>(event, u64::from(BPF_RB_NO_WAKEUP))
            .is_err()
            && let Some(lost) = EVENTS_LOST.get_ptr_mut(0)
        {
            // SAFETY: as in `count`.
            unsafe { *lost += 1 };
        }
    }

    #[inline(always)]
    fn repeat<F: FnMut(u32) -> bool>(&self, times: u32, step: F) {
        let mut step = step;
        // SAFETY: `step` outlives the call, and `trampoline::<F>` takes exactly its address.
        unsafe {
            bpf_loop(times, trampoline::<F> as *mut c_void, (&raw mut step).cast(), 0);
        }
    }
}

/// Called by the kernel for each round; 1 ends the loop.
unsafe extern "C" fn trampoline<F: FnMut(u32) -> bool>(round: u64, step: *mut c_void) -> i64 {
    // SAFETY: `repeat` gave the address of an `F`.
    let step = unsafe { &mut *step.cast::<F>() };
    // The verifier wants to see 0 or 1: a boolean out of memory is any byte to it, and the mask would be optimised away.
    core::hint::black_box(i64::from(!step(round as u32))) & 1
}
