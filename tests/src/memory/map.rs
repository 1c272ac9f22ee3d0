//! Maps in memory.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;

use cni_ebpf::abi::Prefix;

/// A map whose values stay where they are until [`Slab::settle`], so that look-ups can give references as the kernel
/// does.
pub struct Slab<K, V> {
    live: RefCell<HashMap<K, Box<V>>>,
    gone: RefCell<Vec<Box<V>>>,
}

impl<K, V> Default for Slab<K, V> {
    fn default() -> Self {
        Self {
            live: RefCell::default(),
            gone: RefCell::default(),
        }
    }
}

impl<K: Hash + Eq + Copy, V: Clone> Slab<K, V> {
    pub fn get(&self, key: &K) -> Option<&V> {
        let live = self.live.borrow();
        let value: *const V = &raw const **live.get(key)?;
        // SAFETY: the box is freed by `settle` only, which needs `&mut self`.
        Some(unsafe { &*value })
    }

    pub fn put(&self, key: K, value: V) {
        if let Some(old) = self.live.borrow_mut().insert(key, Box::new(value)) {
            self.gone.borrow_mut().push(old);
        }
    }

    pub fn remove(&self, key: &K) {
        if let Some(old) = self.live.borrow_mut().remove(key) {
            self.gone.borrow_mut().push(old);
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
            .map(|(key, value)| (*key, (**value).clone()))
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
