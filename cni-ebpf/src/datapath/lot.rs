//! Numbers that nobody outside can guess and that are always the same for the same question.

use super::Tables;

/// The multiplier of splitmix64: odd, half of its bits set.
pub(super) const MIX: u64 = 0xbf58_476d_1ce4_e5b9;

/// A number that depends on each bit of `words`, beginning with `hash`. Of this product the lower bits know only the lower bits.
#[inline(always)]
pub(super) fn mix<const N: usize>(mut hash: u64, words: [u64; N]) -> u64 {
    for word in words {
        hash = (hash ^ word).wrapping_mul(MIX);
        hash ^= hash >> 29;
    }
    hash.wrapping_mul(MIX)
}

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
    let hash = mix(u64::from(seed) << 32 | u64::from(seed), words);
    hash ^ hash >> 32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Two connections, or one under two secrets, that differ in one bit must not draw the same.
        #[test]
        fn every_bit_counts(hash: u64, words: [u64; 5], bit in 0..384u32) {
            let drawn = mix(hash, words);
            let (mut hash, mut others) = (hash, words);
            match others.get_mut((bit / 64) as usize) {
                Some(word) => *word ^= 1 << (bit % 64),
                None => hash ^= 1 << (bit % 64),
            }
            prop_assert_ne!(mix(hash, others), drawn);
        }
    }
}
