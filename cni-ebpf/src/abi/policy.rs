//! Policy: selectors as bits.
//!
//! A peer's *class* is the set of selectors that match it, a bitset of sparse 64-bit words keyed by (class, word). A
//! *rule set* is what an endpoint enforces. For a port it gives an ordered list of groups; the first whose mask meets
//! the peer's word decides. Nothing here grows with the number of endpoints times the number of policies.

use super::Port;

pub mod policy_direction {
    pub const EGRESS: u8 = 0;
    pub const INGRESS: u8 = 1;
}

/// What [`RuleSet::flags`] says.
pub mod rule_set_flags {
    /// What no group decides is dropped.
    pub const DEFAULT_DENY: u32 = 1 << 0;
}

crate::abi! {
    /// The published state of a rule set, by its number. Its rules stand under `generation`; publishing new ones is
    /// writing them under another generation and then this one number. No two rule sets of a node ever bear the same
    /// generation: connections remember the generation only, and an endpoint may change its rule set. So all are drawn
    /// from one counter, [`Settings::last_generation`](super::Settings::last_generation).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct RuleSet: 8 {
        pub generation: u32,
        pub flags: u32,
    }
}

crate::abi! {
    /// The key of the longest-prefix map of rules: all but the port count whole, the port by its leading bits.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub struct RuleKey: 16 {
        pub prefix_len: u32,
        pub rule_set: u32,
        pub generation: u32,
        pub direction: u8,
        /// 0: a protocol that has no rules of its own.
        pub proto: u8,
        pub port: Port,
    }
}

impl RuleKey {
    /// Bits of the key before the port.
    pub const FIXED_BITS: u32 = 80;
    pub const ALL_BITS: u32 = 96;
}

crate::abi! {
    /// The groups for a port; wider port ranges are folded in, in order.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct RuleList: 8 {
        pub list: u32,
        pub chunks: u32,
    }
}

crate::abi! {
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub struct GroupKey: 8 {
        pub list: u32,
        pub chunk: u32,
    }
}

/// What [`Group::action`] says. 0: an empty place at the end of a chunk.
pub mod action {
    pub const NONE: u32 = 0;
    pub const ALLOW: u32 = 1;
    pub const DENY: u32 = 2;
}

crate::abi! {
    /// Peers whose `word` meets `mask` are treated so, because of `rule`.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Group: 24 {
        pub mask: u64,
        pub word: u32,
        pub action: u32,
        pub rule: u32,
        pub pad: u32,
    }
}

crate::abi! {
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct GroupChunk: 96 {
        pub groups: [Group; 4],
    }
}

crate::abi! {
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub struct ClassKey: 8 {
        pub class: u32,
        pub word: u32,
    }
}

impl ClassKey {
    /// Word 0 is never stored: its bit 0 is set for every peer, so that a rule for everybody needs no class.
    pub const EVERYBODY_WORD: u32 = 0;
    pub const EVERYBODY_BITS: u64 = 1;
}

crate::abi! {
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct ClassBits: 16 {
        pub any: u64,
        /// Bits that count only for addresses that are neither pod nor node.
        pub outside: u64,
    }
}

crate::abi! {
    /// A learned address for one endpoint.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub struct GrantKey: 24 {
        pub addr: super::Addr,
        pub endpoint: u32,
        pub word: u32,
    }
}

crate::abi! {
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Grant: 24 {
        pub expires: u64,
        pub bits: u64,
        pub name: u32,
        pub pad: u32,
    }
}
