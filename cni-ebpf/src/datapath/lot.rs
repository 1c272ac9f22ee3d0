//! Numbers that nobody outside can guess and that are always the same for the same question.

use super::Tables;

/// The multiplier of splitmix64: odd, half of its bits set.
const MIX: u64 = 0xbf58_476d_1ce4_e5b9;

/// The number that this node's secret gives for `words`.
#[inline(always)]
pub(super) fn draw<T: Tables>(tables: &T, words: [u64; 5]) -> u64 {
    let Some(secrets) = tables.secrets() else {
        return u64::from(tables.random()) << 32 | u64::from(tables.random());
    };
    let mut seed = secrets.port_seed.get();
    if seed == 0 {
        seed = tables.random() | 1;
        secrets.port_seed.set(seed);
    }
    let mut hash = u64::from(seed) << 32 | u64::from(seed);
    for word in words {
        hash = (hash ^ word).wrapping_mul(MIX);
        hash ^= hash >> 29;
    }
    hash = hash.wrapping_mul(MIX);
    // Of a product the lower bits know only the lower bits.
    hash ^ hash >> 32
}
