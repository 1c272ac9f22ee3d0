//! The datapath's world in memory: the second implementation of [`Tables`] and [`Packet`].
//!
//! Checksum arithmetic repeats what the kernel's helpers do step by step (`include/net/checksum.h`), so that results are
//! equal bit for bit, both zeros included.

mod map;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use cni_ebpf::abi::*;
use cni_ebpf::datapath::{Fib, NotInserted, NotRewritten, Packet, Table, Tables};

use map::same_bits;
pub use map::{Lpm, Slab};

/// The rules of one port prefix: leading bits that count, port, list.
pub type PortRules = (u32, u16, RuleList);

/// The maps.
#[derive(Default)]
pub struct Memory {
    pub config: Config,
    pub settings: Settings,
    pub clock: Cell<u64>,
    pub dice: Cell<u32>,
    pub endpoints: Slab<Addr, Endpoint>,
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
    pub slots: Slab<SlotKey, u32>,
    pub backends: Slab<u32, Backend>,
    pub buckets: Slab<u32, Bucket>,
    pub counts: RefCell<HashMap<(u8, u8), u64>>,
    pub events: RefCell<Vec<Event>>,
}

impl Memory {
    /// Forgets connections, fragments, counts and events.
    pub fn forget(&mut self) {
        for table in &mut self.flows {
            table.clear();
        }
        for table in &mut self.aliases {
            table.clear();
        }
        self.fragments.clear();
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
        self.events.get_mut().clear();
    }
}

fn at(table: Table) -> usize {
    match table {
        Table::Established => 0,
        Table::New => 1,
    }
}

impl Tables for Memory {
    fn config(&self) -> &Config {
        &self.config
    }

    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
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
        self.endpoints.get(addr)
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
        self.flows[at(table)].put(*key, flow.clone());
        Ok(())
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
        self.aliases[at(table)].put(*tuple, alias.clone());
        Ok(())
    }

    fn remove_alias(&self, table: Table, tuple: &Tuple) {
        self.aliases[at(table)].remove(tuple);
    }

    fn fragment(&self, key: &FragmentKey) -> Option<&Fragment> {
        self.fragments.get(key)
    }

    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment) -> Result<(), NotInserted> {
        self.fragments.put(*key, *fragment);
        Ok(())
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

    fn slot(&self, key: &SlotKey) -> Option<&u32> {
        self.slots.get(key)
    }

    fn backend(&self, id: &u32) -> Option<&Backend> {
        self.backends.get(id)
    }

    fn bucket(&self, key: u32) -> Option<&Bucket> {
        self.buckets.get(&key)
    }

    fn count(&self, reason: u8, direction: u8, _: u32) {
        *self.counts.borrow_mut().entry((reason, direction)).or_default() += 1;
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

/// A packet as a program gets it.
#[derive(Clone, Debug)]
pub struct Frame {
    pub bytes: Vec<u8>,
    pub ifindex: u32,
    pub ingress_ifindex: u32,
    pub mark: u32,
    pub segment_size: u32,
    pub tunnel: Option<(Addr, u32)>,
    /// A VLAN tag stands beside the packet.
    pub vlan: bool,
    /// `skb->csum` of a packet that the device summed up from the network header on (CHECKSUM_COMPLETE).
    pub complete: Option<u32>,
    /// The kernel's routes, by destination.
    pub fib: fn(&Addr) -> Fib,
    /// Tuples that sockets of the host receive.
    pub sockets: Vec<Tuple>,
}

impl Frame {
    pub fn new(bytes: Vec<u8>, ifindex: u32) -> Self {
        Self {
            bytes,
            ifindex,
            ingress_ifindex: ifindex,
            mark: 0,
            segment_size: 0,
            tunnel: None,
            vlan: false,
            complete: None,
            fib: |_| Fib::Unroutable,
            sockets: Vec::new(),
        }
    }

    fn sum_at(&mut self, offset: u32, change: impl FnOnce(u16) -> u16) -> Result<(), NotRewritten> {
        let at = offset as usize;
        let bytes = self.bytes.get_mut(at..at + 2).ok_or(NotRewritten)?;
        let old = u16::from_ne_bytes([bytes[0], bytes[1]]);
        bytes.copy_from_slice(&change(old).to_ne_bytes());
        Ok(())
    }
}

impl Frame {
    /// The sum over the packet from its network header on, as a device gives it with CHECKSUM_COMPLETE.
    pub fn sum(&self) -> u32 {
        let packet = self.bytes.get(14..).unwrap_or_default();
        packet.chunks(2).fold(0, |sum, pair| {
            let word = u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            add(sum, u32::from(word))
        })
    }

    /// Whether the device's sum is still that of the packet.
    pub fn complete_holds(&self) -> bool {
        self.complete
            .is_none_or(|sum| matches!(fold(add(sum, !self.sum())), 0 | 0xffff))
    }

    /// What `inet_proto_csum_replace4` and `inet_proto_csum_replace_by_diff` do to the device's sum: a word of the
    /// pseudo header changed, and they take it that a header checksum moved against it, which is so in IPv4 only.
    fn pseudo_changes(&mut self, pseudo: bool, difference: u32) {
        if let Some(complete) = &mut self.complete
            && pseudo
        {
            *complete = !add(!*complete, difference);
        }
    }
}

/// `csum_add`.
fn add(a: u32, b: u32) -> u32 {
    let (sum, carry) = a.overflowing_add(b);
    sum.wrapping_add(u32::from(carry))
}

/// `csum_fold`.
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// `csum_replace4`.
fn replace4(sum: u16, from: u32, to: u32) -> u16 {
    fold(add(add(!u32::from(sum), !from), to))
}

impl Packet for Frame {
    fn length(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn ingress_ifindex(&self) -> u32 {
        self.ingress_ifindex
    }

    fn mark(&self) -> u32 {
        self.mark
    }

    fn vlan(&self) -> bool {
        self.vlan
    }

    fn segment_size(&self) -> u32 {
        self.segment_size
    }

    fn tunnel_source(&self) -> Option<(Addr, u32)> {
        self.tunnel
    }

    fn load<T: Plain + Copy>(&self, offset: u32) -> Option<T> {
        if offset > 0x3ff {
            return None;
        }
        let at = offset as usize;
        from_bytes(self.bytes.get(at..at + size_of::<T>())?)
    }

    fn store<T: Plain>(&mut self, offset: u32, value: &T, checksum: bool) -> Result<(), NotRewritten> {
        let (at, bytes) = (offset as usize, as_bytes(value));
        let before = self.sum();
        self.bytes
            .get_mut(at..at + bytes.len())
            .ok_or(NotRewritten)?
            .copy_from_slice(bytes);
        let after = self.sum();
        if let Some(complete) = &mut self.complete
            && checksum
        {
            *complete = add(add(*complete, !before), after);
        }
        Ok(())
    }

    fn replace_l3_checksum(
        &mut self,
        offset: u32,
        from: u32,
        to: u32,
        size: u32,
    ) -> Result<(), NotRewritten> {
        if size != 4 {
            return Err(NotRewritten);
        }
        self.sum_at(offset, |sum| replace4(sum, from, to))
    }

    fn replace_l4_checksum(
        &mut self,
        offset: u32,
        from: u32,
        to: u32,
        _: u32,
        pseudo: bool,
        zero_is_none: bool,
    ) -> Result<(), NotRewritten> {
        self.pseudo_changes(pseudo, add(!from, to));
        self.sum_at(offset, |sum| mangled(sum, zero_is_none, replace4(sum, from, to)))
    }

    fn add_l4_checksum(
        &mut self,
        offset: u32,
        diff: u32,
        pseudo: bool,
        zero_is_none: bool,
    ) -> Result<(), NotRewritten> {
        self.pseudo_changes(pseudo, diff);
        self.sum_at(offset, |sum| {
            mangled(sum, zero_is_none, fold(add(diff, !u32::from(sum))))
        })
    }

    fn fib(&self, _: &Addr, dst: &Addr, _: u32) -> Fib {
        (self.fib)(dst)
    }

    fn socket(&self, tuple: &Tuple) -> bool {
        self.sockets.contains(tuple)
    }
}

/// UDP's zero: none stays none, and a sum that comes to zero is written as its other form.
fn mangled(before: u16, zero_is_none: bool, after: u16) -> u16 {
    match (zero_is_none, before, after) {
        (true, 0, _) => 0,
        (true, _, 0) => 0xffff,
        _ => after,
    }
}
