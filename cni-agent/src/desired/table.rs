//! The maps that the agent writes, typed for whoever compiles them and as bytes for whoever carries them.

use std::collections::BTreeMap;

use cni_ebpf::abi::{
    self, Addr, Backend, Bucket, ClassBits, ClassKey, Device, Endpoint, GroupChunk, GroupKey, MaglevChunk,
    MaglevKey, MemberKey, Peer, Prefix, Route, RuleKey, RuleList, RuleSet, Service, ServiceKey, Settings,
    Slot, SourceRange,
};

/// Bytes read from a map do not have the size of its key or value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("map {map}: an entry of {key} and {value} bytes is not of this layout")]
pub struct MalformedEntry {
    pub map: &'static str,
    pub key: usize,
    pub value: usize,
}

macro_rules! tables {
    ($( $(#[$meta:meta])* $variant:ident $field:ident: $key:ty => $value:ty; )*) => {
        /// A map that the agent writes. The order is that of reference: what stands later names what stands earlier.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Table { $( $variant, )* }

        impl Table {
            pub const ALL: &[Self] = &[ $( Self::$variant, )* ];

            /// The map's name in the object file.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => stringify!($field), )* }
            }
        }

        /// The content of every such map.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Tables { $( $(#[$meta])* pub $field: BTreeMap<$key, $value>, )* }

        impl Tables {
            /// The entries of one table as they stand in the kernel, in order of the key.
            pub fn entries(&self, table: Table) -> Vec<(Vec<u8>, Vec<u8>)> {
                match table { $( Table::$variant => self.$field.iter()
                    .map(|(key, value)| (abi::as_bytes(key).to_vec(), abi::as_bytes(value).to_vec()))
                    .collect(), )* }
            }

            /// Each entry that `other` lacks, or has with another value.
            pub fn differences(&self, table: Table, other: &Self, mut each: impl FnMut(&[u8], &[u8])) {
                match table { $( Table::$variant => for (key, value) in &self.$field {
                    let found = other.$field.get(key);
                    if found.is_none_or(|found| table.owns_values() && found != value) {
                        each(abi::as_bytes(key), abi::as_bytes(value));
                    }
                } )* }
            }

            /// The key of each entry that `other` has none of.
            pub fn superfluous(&self, table: Table, other: &Self, mut each: impl FnMut(&[u8])) {
                match table { $( Table::$variant => for key in self.$field.keys() {
                    if !other.$field.contains_key(key) { each(abi::as_bytes(key)); }
                } )* }
            }

            /// Takes an entry as it was read from the kernel.
            pub fn insert(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), MalformedEntry> {
                match table { $( Table::$variant => {
                    match (abi::from_bytes::<$key>(key), abi::from_bytes::<$value>(value)) {
                        (Some(key), Some(value)) => { self.$field.insert(key, value); Ok(()) }
                        _ => Err(MalformedEntry { map: table.name(), key: key.len(), value: value.len() }),
                    }
                } )* }
            }

            pub fn remove(&mut self, table: Table, key: &[u8]) {
                match table { $( Table::$variant => {
                    if let Some(key) = abi::from_bytes::<$key>(key) { self.$field.remove(&key); }
                } )* }
            }

            pub fn len(&self, table: Table) -> usize {
                match table { $( Table::$variant => self.$field.len(), )* }
            }

            pub fn is_empty(&self) -> bool {
                true $( && self.$field.is_empty() )*
            }
        }
    };
}

tables! {
    Backends backends: u32 => Backend;
    ServiceSlots service_slots: u32 => Slot;
    ServiceMembers service_members: MemberKey => u32;
    ServiceRanges service_ranges: SourceRange => u32;
    Maglev maglev: MaglevKey => MaglevChunk;
    Services services: ServiceKey => Service;
    Settings settings: u32 => Settings;
    Classes classes: ClassKey => ClassBits;
    Cidrs cidrs: Prefix => u32;
    RuleGroups rule_groups: GroupKey => GroupChunk;
    Rules rules: RuleKey => RuleList;
    RuleSets rule_sets: u32 => RuleSet;
    Devices devices: u32 => Device;
    Peers peers: Addr => Peer;
    /// Written once; the kernel keeps them.
    Buckets buckets: u32 => Bucket;
    Endpoints endpoints: u32 => Endpoint;
    Addresses addresses: Addr => u32;
    Routes routes: Prefix => Route;
}

/// Tables whose entries name each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    Service,
    Policy,
}

impl Table {
    /// What the table belongs to; an endpoint names its rule sets.
    pub const fn chain(self) -> Option<Chain> {
        match self {
            Self::Backends
            | Self::ServiceSlots
            | Self::ServiceMembers
            | Self::ServiceRanges
            | Self::Maglev
            | Self::Services => Some(Chain::Service),
            Self::Classes
            | Self::Cidrs
            | Self::RuleGroups
            | Self::Rules
            | Self::RuleSets
            | Self::Endpoints => Some(Chain::Policy),
            Self::Settings | Self::Devices | Self::Peers | Self::Buckets | Self::Addresses | Self::Routes => {
                None
            }
        }
    }

    /// False for tables that are too large to be compared as a whole each time something else changes: see
    /// [`services`](crate::services).
    pub const fn is_compared(self) -> bool {
        !matches!(self.chain(), Some(Chain::Service))
    }

    /// False for tables whose values the kernel changes: only the presence of a key is the agent's business.
    pub const fn owns_values(self) -> bool {
        !matches!(self, Self::Buckets)
    }

    /// True for arrays, whose keys are always there: what [`is_vacant`] is an absent entry.
    pub const fn is_array(self) -> bool {
        matches!(
            self,
            Self::ServiceSlots | Self::RuleSets | Self::Settings | Self::Endpoints
        )
    }
}

/// Whether nothing stands in this place of an array, all of whose places are there.
pub fn is_vacant(value: &[u8]) -> bool {
    value.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_a_map_of_the_layout() {
        for table in Table::ALL {
            let spec = abi::MAPS.iter().find(|map| map.name == table.name());
            let spec = spec.unwrap_or_else(|| panic!("{} is not in MAPS", table.name()));
            assert_eq!(
                spec.map_type == abi::MapType::Array,
                table.is_array(),
                "{}",
                table.name()
            );
        }
    }

    #[test]
    fn entries_round_trip_as_bytes_and_foreign_sizes_are_refused() {
        let mut tables = Tables::default();
        let peer = Peer {
            class: 7,
            ..Peer::default()
        };
        tables.peers.insert(Addr::v4([10, 0, 0, 1]), peer);
        let entries = tables.entries(Table::Peers);
        let mut copy = Tables::default();
        for (key, value) in &entries {
            copy.insert(Table::Peers, key, value).unwrap();
        }
        assert_eq!(copy, tables);
        assert!(copy.insert(Table::Peers, &[0; 3], &entries[0].1).is_err());
        copy.remove(Table::Peers, &entries[0].0);
        assert!(copy.is_empty());
    }
}
