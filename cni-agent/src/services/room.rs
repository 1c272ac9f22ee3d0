//! How many rows of each kind there are, and how many there may be. Tables of Maglev have a count of their own.

use cni_ebpf::abi;

use crate::{config::MapSizes, desired::Table, kernel::loader};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub backends: usize,
    /// Places of the array that are in blocks.
    pub slots: usize,
    pub members: usize,
    pub ranges: usize,
    pub services: usize,
}

/// How many rows the maps hold.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    pub rows: Counts,
    /// Parts of tables.
    pub maglev: usize,
}

impl Counts {
    /// By the map that holds them.
    pub fn each(self) -> [(Table, usize); 5] {
        [
            (Table::Backends, self.backends),
            (Table::ServiceSlots, self.slots),
            (Table::ServiceMembers, self.members),
            (Table::ServiceRanges, self.ranges),
            (Table::Services, self.services),
        ]
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            backends: self.backends + other.backends,
            slots: self.slots + other.slots,
            members: self.members + other.members,
            ranges: self.ranges + other.ranges,
            services: self.services + other.services,
        }
    }

    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self {
            backends: self.backends.saturating_sub(other.backends),
            slots: self.slots.saturating_sub(other.slots),
            members: self.members.saturating_sub(other.members),
            ranges: self.ranges.saturating_sub(other.ranges),
            services: self.services.saturating_sub(other.services),
        }
    }

    pub fn within(self, most: Self) -> bool {
        let mut pairs = self.each().into_iter().zip(most.each());
        pairs.all(|((_, count), (_, most))| count <= most)
    }
}

impl Capacity {
    /// Of maps that are loaded with these sizes.
    pub fn of(sizes: &MapSizes) -> Self {
        let entries = |table: Table| {
            let spec = abi::MAPS.iter().find(|spec| spec.name == table.name());
            spec.map_or(0, |spec| loader::entries(spec, sizes) as usize)
        };
        Self {
            rows: Counts {
                backends: entries(Table::Backends),
                slots: entries(Table::ServiceSlots),
                members: entries(Table::ServiceMembers),
                ranges: entries(Table::ServiceRanges),
                services: entries(Table::Services),
            },
            maglev: entries(Table::Maglev),
        }
    }
}
