//! SCTP's checksum, a CRC over the whole packet, after its ports were changed.
//!
//! A CRC is linear: what the change of the first four bytes adds depends on them and on how many bytes follow, not on
//! what those are. Bytes that follow multiply by a power of x, found by its binary digits.

use super::headers::L3;
use super::work::fragment;
use super::{Headers, NotRewritten, Packet, Tables};
use crate::abi::Tuple;

/// Castagnoli's polynomial, reflected: the highest power is the lowest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// The binary digits of a packet's length.
const DIGITS: usize = 16;

/// The product of two polynomials, modulo the polynomial of the CRC.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 32;
    while bit > 0 {
        bit -= 1;
        if a >> bit & 1 != 0 {
            product ^= b;
        }
        b = if b & 1 != 0 { b >> 1 ^ POLYNOMIAL } else { b >> 1 };
    }
    product
}

/// The products of a power of x with every value of each four bits: what the CRC is multiplied by is looked up, for a
/// verifier may follow both values of each single bit.
type Product = [[u32; 16]; 8];

/// Of x to the power of 8, 16, 32, ...: what 1, 2, 4, ... bytes behind do.
static SHIFTS: [Product; DIGITS] = {
    let mut shifts = [[[0; 16]; 8]; DIGITS];
    // x^8, and the highest bit is x^0.
    let mut power = 1 << 23;
    let mut digit = 0;
    while digit < DIGITS {
        let mut at = 0;
        while at < 8 {
            let mut value = 0;
            while value < 16 {
                shifts[digit][at][value] = multiply((value as u32) << (4 * at), power);
                value += 1;
            }
            at += 1;
        }
        power = multiply(power, power);
        digit += 1;
    }
    shifts
};

/// What a change of the first four bytes of a packet of `length` bytes, as a little-endian number, adds to its CRC.
#[inline(always)]
fn change<T: Tables>(tables: &T, first: u32, length: u32) -> u32 {
    let mut sum = first;
    tables.repeat(DIGITS as u32, |digit| {
        if length >> (digit & 15) & 1 != 0
            && let Some(shift) = SHIFTS.get((digit & 15) as usize)
        {
            let mut product = 0;
            for (at, values) in shift.iter().enumerate() {
                product ^= values[(sum >> (4 * at) & 15) as usize];
            }
            sum = product;
        }
        true
    });
    sum
}

/// Writes the ports of `to` in place of those of `from`.
#[inline(always)]
pub(super) fn ports<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    headers: &Headers,
    from: &Tuple,
    to: &Tuple,
) -> Result<(), NotRewritten> {
    // The checksum covers the whole datagram, whose length its first part does not know.
    if headers.fragment != fragment::WHOLE {
        return Err(NotRewritten);
    }
    let l4 = headers.l4;
    let both = |tuple: &Tuple| {
        let [a, b] = tuple.src_port.wire().to_ne_bytes();
        let [c, d] = tuple.dst_port.wire().to_ne_bytes();
        [a, b, c, d]
    };
    let (old, new) = (both(from), both(to));
    let checksum: u32 = packet.load(l4 + 8).ok_or(NotRewritten)?;
    // Zero: the device is still to compute it.
    if checksum != 0 {
        let first = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
        let added = change(tables, first, headers.length - (l4 - L3));
        packet.store(l4 + 8, &(checksum ^ added.to_le()), true)?;
    }
    packet.store(l4, &u32::from_ne_bytes(new), true)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The CRC's register after so many bytes of zero, bit by bit.
    fn zeros(register: u32, bytes: u32) -> u32 {
        (0..8 * bytes).fold(register, |register, _| {
            let carry = if register & 1 != 0 { POLYNOMIAL } else { 0 };
            register >> 1 ^ carry
        })
    }

    #[test]
    fn each_table_does_what_its_number_of_bytes_does() {
        for (digit, shift) in SHIFTS.iter().enumerate() {
            for (at, values) in shift.iter().enumerate() {
                // It is linear: the powers of two stand for all.
                for bit in 0..4 {
                    let value = 1u32 << bit;
                    let expected = zeros(value << (4 * at), 1 << digit);
                    assert_eq!(values[value as usize], expected, "{digit} {at} {value}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn products_of_polynomials_are_linear_and_have_no_order(a: u32, b: u32, c: u32) {
            prop_assert_eq!(multiply(a, b), multiply(b, a));
            prop_assert_eq!(multiply(a ^ c, b), multiply(a, b) ^ multiply(c, b));
        }
    }
}
