//! The datapath's world in memory: the second implementation of [`Tables`] and [`Packet`](cni_ebpf::datapath::Packet).

mod frame;

mod map;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use cni_ebpf::abi::*;
use cni_ebpf::datapath::{NotInserted, Table, Tables};

pub use frame::Frame;

use map::same_bits;
pub use map::{Lpm, Room, Slab};

/// The rules of one port prefix: leading bits that count, port, list.
pub type PortRules = (u32, u16, RuleList);

/// The maps.
#[derive(Default)]
pub struct Memory {
    pub config: Config,
    pub settings: Settings,
    pub secrets: Secrets,
    pub exhausted: Failures,
    pub clock: Cell<u64>,
    pub dice: Cell<u32>,
    pub addresses: Slab<Addr, u32>,
    pub endpoints: Slab<u32, Endpoint>,
    pub peers: Slab<Addr, Peer>,
    pub routes: Lpm<Route>,
    pub devices: Slab<u32, Device>,
    pub flows: [Slab<FlowKey, Flow>; 2],
    pub aliases: [Slab<Tuple, Alias>; 2],
    pub fragments: Slab<FragmentKey, Fragment>,
    pub rule_sets: Slab<u32, RuleSet>,
    /// By rule set, generation, direction and protocol: leading bits that count, port, list.
    pub rules: HashMap<(u32, u32, u8, u8), Vec<PortRules>>,
    pub groups: Slab<GroupKey, GroupChunk>,
    pub classes: Slab<ClassKey, ClassBits>,
    pub cidrs: Lpm<u32>,
    pub grants: Slab<GrantKey, Grant>,
    pub services: Slab<ServiceKey, Service>,
    pub slots: Slab<u32, Slot>,
    pub members: Slab<MemberKey, u32>,
    pub backends: Slab<u32, Backend>,
    pub maglev: Slab<MaglevKey, MaglevChunk>,
    /// By the number of the ranges.
    pub source_ranges: HashMap<u32, Lpm<u32>>,
    pub affinity: Slab<AffinityKey, Affinity>,
    pub sockets: Slab<SocketKey, Dialled>,
    pub opened: Slab<u32, Racy<u64>>,
    pub buckets: Slab<u32, Bucket>,
    pub counts: RefCell<HashMap<(u8, u8), u64>>,
    pub events: RefCell<Vec<Event>>,
}

/// Those of the array, which are all there.
const PLACES: std::ops::Range<u32> = 0..262_144;
const NOBODYS: Slot = Slot {
    addr: Addr::UNSPECIFIED,
    port: Port::ZERO,
    pad: 0,
    backend: 0,
    service: 0,
    seal: 0,
};

/// When searches for a port failed.
pub struct Failures(Box<[Racy<u64>]>);

impl Default for Failures {
    fn default() -> Self {
        Self((0..EXHAUSTED_PLACES).map(|_| Racy::new(0)).collect())
    }
}

impl Memory {
    /// Puts `endpoint` behind an address.
    pub fn put_endpoint(&self, addr: Addr, endpoint: Endpoint) {
        self.addresses.put(addr, endpoint.id);
        self.endpoints.put(Endpoint::slot(endpoint.id), endpoint);
    }

    /// Forgets connections, fragments, counts and events.
    pub fn forget(&mut self) {
        for table in &mut self.flows {
            table.clear();
        }
        for table in &mut self.aliases {
            table.clear();
        }
        self.fragments.clear();
        self.affinity.clear();
        self.opened.clear();
        self.exhausted = Failures::default();
        self.counts.get_mut().clear();
        self.events.get_mut().clear();
    }

    /// Frees what the last run removed.
    pub fn settle(&mut self) {
        for table in &mut self.flows {
            table.settle();
        }
        for table in &mut self.aliases {
            table.settle();
        }
        self.fragments.settle();
        self.affinity.settle();
        self.opened.settle();
        self.services.settle();
        self.slots.settle();
        self.members.settle();
        self.backends.settle();
        self.maglev.settle();
        self.events.get_mut().clear();
    }
}

fn at(table: Table) -> usize {
    match table {
        Table::Established => 0,
        Table::New => 1,
    }
}

fn inserted(done: bool) -> Result<(), NotInserted> {
    done.then_some(()).ok_or(NotInserted)
}

impl Tables for Memory {
    fn config(&self) -> &Config {
        &self.config
    }

    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }

    fn secrets(&self) -> Option<&Secrets> {
        Some(&self.secrets)
    }

    fn exhausted(&self, place: u32) -> Option<&Racy<u64>> {
        self.exhausted.0.get(place as usize)
    }

    fn now(&self) -> u64 {
        self.clock.get()
    }

    fn random(&self) -> u32 {
        // xorshift32: any sequence will do, a repeatable one finds failures again.
        let mut x = self.dice.get().max(1);
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        self.dice.set(x);
        x
    }

    fn endpoint(&self, addr: &Addr) -> Option<&Endpoint> {
        self.endpoint_of(*self.addresses.get(addr)?)
    }

    fn endpoint_of(&self, id: u32) -> Option<&Endpoint> {
        let endpoint = self.endpoints.get(&Endpoint::slot(id));
        endpoint.filter(|endpoint| id != 0 && endpoint.id == id)
    }

    fn peer(&self, addr: &Addr) -> Option<&Peer> {
        self.peers.get(addr)
    }

    fn route(&self, prefix: &Prefix) -> Option<&Route> {
        self.routes.get(prefix)
    }

    fn device(&self, ifindex: u32) -> Option<&Device> {
        self.devices.get(&ifindex)
    }

    fn flow(&self, table: Table, key: &FlowKey) -> Option<&Flow> {
        self.flows[at(table)].get(key)
    }

    fn insert_flow(&self, table: Table, key: &FlowKey, flow: &Flow) -> Result<(), NotInserted> {
        inserted(self.flows[at(table)].insert(*key, flow.clone()))
    }

    fn remove_flow(&self, table: Table, key: &FlowKey) {
        self.flows[at(table)].remove(key);
    }

    fn alias(&self, table: Table, tuple: &Tuple) -> Option<&Alias> {
        self.aliases[at(table)].get(tuple)
    }

    fn insert_alias(&self, table: Table, tuple: &Tuple, alias: &Alias) -> Result<(), NotInserted> {
        if self.aliases[at(table)].get(tuple).is_some() {
            return Err(NotInserted);
        }
        inserted(self.aliases[at(table)].insert(*tuple, alias.clone()))
    }

    fn remove_alias(&self, table: Table, tuple: &Tuple) {
        self.aliases[at(table)].remove(tuple);
    }

    fn fragment(&self, key: &FragmentKey) -> Option<&Fragment> {
        self.fragments.get(key)
    }

    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment) -> Result<(), NotInserted> {
        inserted(self.fragments.insert(*key, *fragment))
    }

    fn rule_set(&self, id: u32) -> Option<&RuleSet> {
        self.rule_sets.get(&id)
    }

    fn rules(&self, key: &RuleKey) -> Option<&RuleList> {
        let ranges = self
            .rules
            .get(&(key.rule_set, key.generation, key.direction, key.proto))?;
        ranges
            .iter()
            .filter(|(len, port, _)| {
                same_bits(u128::from(*port) << 112, u128::from(key.port.get()) << 112, *len)
            })
            .max_by_key(|(len, _, _)| *len)
            .map(|(_, _, list)| list)
    }

    fn groups(&self, key: &GroupKey) -> Option<&GroupChunk> {
        self.groups.get(key)
    }

    fn class_bits(&self, key: &ClassKey) -> Option<&ClassBits> {
        self.classes.get(key)
    }

    fn cidr(&self, prefix: &Prefix) -> Option<&u32> {
        self.cidrs.get(prefix)
    }

    fn grant(&self, key: &GrantKey) -> Option<&Grant> {
        self.grants.get(key)
    }

    fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key)
    }

    fn slot(&self, place: u32) -> Option<&Slot> {
        let nobodys = || PLACES.contains(&place).then_some(&NOBODYS);
        self.slots.get(&place).or_else(nobodys)
    }

    fn member(&self, key: &MemberKey) -> Option<&u32> {
        self.members.get(key)
    }

    fn backend(&self, id: &u32) -> Option<&Backend> {
        self.backends.get(id)
    }

    fn maglev(&self, key: &MaglevKey) -> Option<&MaglevChunk> {
        self.maglev.get(key)
    }

    fn source_range(&self, source: &SourceRange) -> Option<&u32> {
        let host = Prefix {
            len: 128,
            words: source.words,
        };
        self.source_ranges.get(&source.ranges)?.get(&host)
    }

    fn affinity(&self, client: &AffinityKey) -> Option<&Affinity> {
        self.affinity.get(client)
    }

    fn remember_client(&self, client: &AffinityKey, last: &Affinity) {
        self.affinity.insert(*client, last.clone());
    }

    fn socket(&self, key: &SocketKey) -> Option<&Dialled> {
        self.sockets.get(key)
    }

    fn remember_socket(&self, key: &SocketKey, dialled: &Dialled) {
        self.sockets.insert(*key, *dialled);
    }

    fn opened(&self, service: &u32) -> Option<&Racy<u64>> {
        self.opened.get(service)
    }

    fn remember_opened(&self, service: &u32) {
        self.opened.insert(*service, Racy::new(1));
    }

    fn bucket(&self, key: u32) -> Option<&Bucket> {
        self.buckets.get(&key)
    }

    fn count(&self, reason: u8, direction: u8, _: u32) {
        *self.counts.borrow_mut().entry((reason, direction)).or_default() += 1;
    }

    fn listened(&self) -> bool {
        true
    }

    fn event(&self, event: &Event) {
        self.events.borrow_mut().push(*event);
    }

    fn repeat<F: FnMut(u32) -> bool>(&self, times: u32, mut step: F) {
        for round in 0..times {
            if !step(round) {
                return;
            }
        }
    }
}
