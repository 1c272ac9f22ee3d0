//! Maps in memory.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;

use cni_ebpf::abi::Prefix;

/// What a map has room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Room {
    #[default]
    Endless,
    /// So many entries; a new one costs the one that was used least recently, as in the kernel's LRU maps.
    Lru(usize),
    /// No new entry at all: the kernel has nothing to give up.
    None,
}

/// A map whose values stay where they are until [`Slab::settle`], so that look-ups can give references as the kernel
/// does.
pub struct Slab<K, V> {
    live: RefCell<HashMap<K, Entry<V>>>,
    gone: RefCell<Vec<Box<V>>>,
    uses: Cell<u64>,
    pub room: Room,
}

struct Entry<V> {
    value: Box<V>,
    /// When it was used last, counted in uses.
    used: Cell<u64>,
}

impl<K, V> Default for Slab<K, V> {
    fn default() -> Self {
        Self {
            live: RefCell::default(),
            gone: RefCell::default(),
            uses: Cell::default(),
            room: Room::default(),
        }
    }
}

impl<K: Hash + Eq + Copy, V: Clone> Slab<K, V> {
    pub fn get(&self, key: &K) -> Option<&V> {
        let live = self.live.borrow();
        let entry = live.get(key)?;
        entry.used.set(self.tick());
        let value: *const V = &raw const *entry.value;
        // SAFETY: the box is freed by `settle` only, which needs `&mut self`.
        Some(unsafe { &*value })
    }

    fn tick(&self) -> u64 {
        self.uses.set(self.uses.get() + 1);
        self.uses.get()
    }

    /// Inserts or replaces, whatever room there is said to be.
    pub fn put(&self, key: K, value: V) {
        let entry = Entry {
            value: Box::new(value),
            used: Cell::new(self.tick()),
        };
        if let Some(old) = self.live.borrow_mut().insert(key, entry) {
            self.gone.borrow_mut().push(old.value);
        }
    }

    /// Inserts or replaces. False if there is no room.
    pub fn insert(&self, key: K, value: V) -> bool {
        let is_new = !self.live.borrow().contains_key(&key);
        match self.room {
            Room::None if is_new => return false,
            Room::Lru(entries) if is_new && self.len() >= entries => self.give_up_one(),
            _ => {}
        }
        self.put(key, value);
        true
    }

    fn give_up_one(&self) {
        let live = self.live.borrow();
        let least = live.iter().min_by_key(|(_, entry)| entry.used.get());
        let least = least.map(|(key, _)| *key);
        drop(live);
        if let Some(key) = least {
            self.remove(&key);
        }
    }

    pub fn remove(&self, key: &K) {
        if let Some(old) = self.live.borrow_mut().remove(key) {
            self.gone.borrow_mut().push(old.value);
        }
    }

    pub fn len(&self) -> usize {
        self.live.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn entries(&self) -> Vec<(K, V)> {
        self.live
            .borrow()
            .iter()
            .map(|(key, entry)| (*key, (*entry.value).clone()))
            .collect()
    }

    /// Frees what was removed.
    pub fn settle(&mut self) {
        self.gone.get_mut().clear();
    }

    pub fn clear(&mut self) {
        self.live.get_mut().clear();
        self.settle();
    }
}

/// Longest prefix over the addresses of a [`Prefix`].
#[derive(Default)]
pub struct Lpm<V>(Vec<(Prefix, V)>);

impl<V> Lpm<V> {
    pub fn put(&mut self, prefix: Prefix, value: V) {
        self.0.retain(|(known, _)| *known != prefix);
        self.0.push((prefix, value));
        self.0.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len));
    }

    pub(super) fn get(&self, host: &Prefix) -> Option<&V> {
        let wanted = bits(host);
        self.0
            .iter()
            .find(|(prefix, _)| same_bits(bits(prefix), wanted, prefix.len))
            .map(|(_, value)| value)
    }

    pub fn entries(&self) -> &[(Prefix, V)] {
        &self.0
    }
}

fn bits(prefix: &Prefix) -> u128 {
    let mut bytes = [0; 16];
    for (out, word) in bytes.chunks_exact_mut(4).zip(prefix.words) {
        out.copy_from_slice(&word.to_ne_bytes());
    }
    u128::from_be_bytes(bytes)
}

pub(super) fn same_bits(a: u128, b: u128, len: u32) -> bool {
    (a ^ b).checked_shr(128 - len).unwrap_or(0) == 0
}
