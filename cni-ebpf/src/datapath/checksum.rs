//! The arithmetic of the internet checksum, step by step as the kernel's helpers do it (`include/net/checksum.h`), so that
//! results are equal bit for bit, both zeros included.

use crate::abi::Addr;

/// `csum_add`.
#[inline(always)]
pub const fn add(a: u32, b: u32) -> u32 {
    let (sum, carry) = a.overflowing_add(b);
    sum.wrapping_add(carry as u32)
}

/// `csum_fold`.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// `csum_replace4`: the checksum after a word that it covers has changed.
#[inline(always)]
pub const fn replace4(checksum: u16, from: u32, to: u32) -> u16 {
    fold(add(add(!(checksum as u32), !from), to))
}

/// The checksum after `difference`, a one's complement sum, was added to what it covers.
#[inline(always)]
pub const fn change(checksum: u16, difference: u32) -> u16 {
    fold(add(difference, !(checksum as u32)))
}

/// UDP's zero: none stays none, and a checksum that comes to zero is written as its other form.
#[inline(always)]
pub const fn mangled(before: u16, zero_is_none: bool, after: u16) -> u16 {
    match (zero_is_none, before, after) {
        (true, 0, _) => 0,
        (true, _, 0) => 0xffff,
        _ => after,
    }
}

/// One's complement sum of what stands in memory in wire order.
#[derive(Clone, Copy)]
pub(super) struct Sum(pub(super) u64);

impl Sum {
    /// Of the addresses, the length and the protocol. The bytes that mark an address as IPv4 add up to nothing.
    #[inline(always)]
    pub(super) fn pseudo(src: &Addr, dst: &Addr, length: u32, protocol: u8) -> Self {
        let mut sum = Self(u64::from((length as u16).to_be()) + u64::from(u16::from(protocol).to_be()));
        for word in src.words() {
            sum = sum.add(word);
        }
        for word in dst.words() {
            sum = sum.add(word);
        }
        sum
    }

    #[inline(always)]
    pub(super) fn add(self, word: u32) -> Self {
        Self(self.0 + u64::from(word))
    }

    #[inline(always)]
    pub(super) fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u16
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_sum_is_that_of_its_halves_whatever_carries(words: Vec<u32>) {
            let halves = words.iter().flat_map(|word| [word & 0xffff, word >> 16]);
            let naive: u64 = halves.map(u64::from).sum();
            let folded = words.iter().fold(Sum(0), |sum, word| sum.add(*word)).fold();
            prop_assert_eq!(u64::from(folded) % 0xffff, naive % 0xffff);
            prop_assert_eq!(folded == 0, naive == 0);
            prop_assert_eq!(u64::from(!fold(words.into_iter().fold(0, add))) % 0xffff, naive % 0xffff);
        }
    }

    #[test]
    fn a_changed_word_changes_the_checksum_as_summing_up_anew_does() {
        let sum = |words: [u32; 3]| fold(words.into_iter().fold(0, add));
        let (before, after) = (
            [0xc0a8_0001, 0x1234_5678, 0xffff_0000],
            [0x0a01_0203, 0x1234_5678, 0xffff_0000],
        );
        assert_eq!(replace4(sum(before), before[0], after[0]), sum(after));
        assert_eq!(change(sum(before), add(!before[0], after[0])), sum(after));
    }

    #[test]
    fn of_udp_zero_means_none_and_is_never_made() {
        assert_eq!(mangled(0, true, 7), 0);
        assert_eq!(mangled(5, true, 0), 0xffff);
        assert_eq!(mangled(5, false, 0), 0);
        assert_eq!(mangled(5, true, 7), 7);
    }
}
