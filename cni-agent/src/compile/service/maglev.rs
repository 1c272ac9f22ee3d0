//! Maglev tables: for each place one of the endpoints, the same on every node that knows the same endpoints.
//!
//! "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4: each endpoint goes through all
//! places in an order of its own, and in turn each takes the first one that is free. An endpoint is what its address and port
//! make it, not its number on this node.

use sha2::{Digest, Sha256};

use super::Target;

/// How large a table may be that nobody has asked for, each eight times the one before: to go from one to the next moves nearly
/// all clients, so that there are few. All are primes.
const SIZES: [u32; 4] = [1021, 8191, 65_521, LARGEST];
const SMALLEST: u32 = 251;
const LARGEST: u32 = 131_071;
/// So many places for each endpoint make the endpoints' shares differ by about a hundredth.
const EACH: usize = 100;

/// The size of a table for so many endpoints.
pub fn size(endpoints: usize) -> u32 {
    let enough = |size: &&u32| **size as usize >= endpoints.saturating_mul(EACH);
    SIZES.iter().find(enough).copied().unwrap_or(LARGEST)
}

/// Whether a table can have this size: of no other number every step leads to all places.
pub fn is_size(size: u32) -> bool {
    (SMALLEST..=LARGEST).contains(&size)
        && (2..)
            .take_while(|n| n * n <= size)
            .all(|n| !size.is_multiple_of(n))
}

/// What is to be said of any other number.
pub fn advice() -> String {
    format!("use a prime from {SMALLEST} to {LARGEST}, at least {EACH} for each endpoint, or 0")
}

/// For each place the position of its endpoint in `targets`. More endpoints than places leave some without.
pub fn fill(targets: &[Target], size: u32) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    let mut walks: Vec<Walk> = (0..)
        .zip(targets)
        .map(|(number, target)| Walk::new(number, target, size))
        .collect();
    // Whose turn it is first must not depend on the order of slices.
    walks.sort_unstable_by_key(|walk| walk.rank);
    let mut places = vec![FREE; if targets.is_empty() { 0 } else { size as usize }];
    let mut left = places.len();
    while left > 0 {
        let turns = walks.len().min(left);
        for walk in &mut walks[..turns] {
            walk.take_free(&mut places, FREE);
        }
        left -= turns;
    }
    places
}

/// An endpoint's way through all places.
struct Walk {
    rank: [u8; 32],
    number: u32,
    place: u32,
    step: u32,
}

impl Walk {
    fn new(number: u32, target: &Target, size: u32) -> Self {
        let name = Sha256::new()
            .chain_update(target.addr.octets())
            .chain_update(target.port.get().to_be_bytes())
            .chain_update([target.proto]);
        let rank: [u8; 32] = name.finalize().into();
        let word = |at: usize| {
            rank[at..at + 4]
                .iter()
                .fold(0, |word, byte| word << 8 | u32::from(*byte))
        };
        Self {
            rank,
            number,
            place: word(0) % size,
            step: 1 + word(4) % (size - 1),
        }
    }

    /// Takes the next place on the way that is free, of which there is one.
    fn take_free(&mut self, places: &mut [u32], free: u32) {
        let size = u32::try_from(places.len()).unwrap_or(u32::MAX);
        loop {
            let place = &mut places[self.place as usize];
            self.place = (self.place + self.step) % size;
            if *place == free {
                *place = self.number;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use cni_ebpf::abi::{Addr, Port};
    use proptest::prelude::*;

    use super::*;

    fn target(number: u16) -> Target {
        let [high, low] = number.to_be_bytes();
        Target {
            addr: Addr::v4([10, 1, high, low]),
            port: Port::new(8080),
            proto: 6,
        }
    }

    fn targets(numbers: impl IntoIterator<Item = u16>) -> Vec<Target> {
        numbers.into_iter().map(target).collect()
    }

    /// Who has each place.
    fn table(targets: &[Target], size: u32) -> Vec<Target> {
        fill(targets, size)
            .iter()
            .map(|number| targets[*number as usize])
            .collect()
    }

    fn differing(one: &[Target], other: &[Target]) -> usize {
        one.iter().zip(other).filter(|(one, other)| one != other).count()
    }

    #[test]
    fn a_table_has_a_hundred_places_for_each_endpoint_as_far_as_it_goes() {
        for (endpoints, expected) in [
            (0, 1021),
            (1, 1021),
            (10, 1021),
            (11, 8191),
            (81, 8191),
            (82, 65_521),
        ] {
            assert_eq!(size(endpoints), expected, "{endpoints}");
        }
        assert_eq!((size(655), size(656), size(100_000)), (65_521, LARGEST, LARGEST));
        assert!(SIZES.iter().chain([&SMALLEST]).all(|size| is_size(*size)));
        assert!(
            [0, 1, 241, 1000, 1022, 65_536, 131_101]
                .iter()
                .all(|size| !is_size(*size))
        );
    }

    #[test]
    fn nobody_is_left_without_an_answer() {
        assert!(fill(&[], 1021).is_empty());
        assert_eq!(fill(&targets([7]), 251), [0; 251]);
        let crowd = targets(0..300);
        let found: BTreeSet<u32> = fill(&crowd, 251).into_iter().collect();
        assert_eq!(found.len(), 251, "one place each, and no more");
    }

    /// A node of another release, or of another byte order, must have the same table.
    #[test]
    fn a_table_is_what_it_has_always_been() {
        let places = table(&targets(0..3), 251);
        let first: Vec<u8> = places[..16]
            .iter()
            .map(|target| target.addr.octets()[15])
            .collect();
        assert_eq!(first, FIRST);
    }

    const FIRST: [u8; 16] = [0, 2, 1, 2, 2, 2, 1, 1, 0, 1, 0, 2, 1, 1, 2, 2];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_table_depends_on_who_is_there_and_not_on_their_order(
            numbers in proptest::collection::btree_set(0u16..2000, 1..40), seed in any::<u64>(),
        ) {
            let ordered = targets(numbers.iter().copied());
            let mut shuffled = ordered.clone();
            shuffled.sort_by_key(|target| (u64::from(target.addr.word_v4()) ^ seed).wrapping_mul(seed | 1));
            let size = size(ordered.len());
            prop_assert_eq!(table(&ordered, size), table(&shuffled, size));
        }

        #[test]
        fn shares_are_equal_to_a_few_hundredths(numbers in proptest::collection::btree_set(0u16..2000, 1..80)) {
            let targets = targets(numbers);
            let size = size(targets.len());
            let mut shares = vec![0u32; targets.len()];
            fill(&targets, size).iter().for_each(|number| shares[*number as usize] += 1);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{least} {most}");
        }

        /// The goer's places have to change hands; of the others at most twelve in a hundred do: that many of three endpoints, mostly less than two.
        #[test]
        fn who_goes_or_comes_moves_few_others(
            numbers in proptest::collection::btree_set(0u16..2000, 2..80), goer in any::<proptest::sample::Index>(),
        ) {
            let before = targets(numbers);
            let goer = before[goer.index(before.len())];
            let after: Vec<Target> = before.iter().copied().filter(|target| *target != goer).collect();
            let size = size(before.len());
            let (before, after) = (table(&before, size), table(&after, size));
            let own = before.iter().filter(|target| **target == goer).count();
            let moved = differing(&before, &after) - own;
            prop_assert!(moved * 100 <= size as usize * 12, "{moved} of {size}");
        }
    }
}
