//! What time it is for the programs: that of a clock that nobody sets.

use std::collections::BTreeSet;

use ::object::{Object as _, ObjectSection as _, SectionKind};
use cni_tests::object;
use cni_tests::world::{self, Hook, ifindex, pod};

use crate::fixtures::{TO_B, families, from_a};

/// The helpers that tell a time, by their number.
const CLOCKS: [(i32, &str); 5] = [
    (5, "ktime_get_ns"),
    (118, "jiffies64"),
    (125, "ktime_get_boot_ns"),
    (160, "ktime_get_coarse_ns"),
    (208, "ktime_get_tai_ns"),
];

#[test]
fn rel_42_programs_ask_the_monotonic_clock_and_no_other() {
    let bytes = object::bytes().unwrap();
    let file = ::object::File::parse(&*bytes).unwrap();
    let mut asked = BTreeSet::new();
    for section in file
        .sections()
        .filter(|section| section.kind() == SectionKind::Text)
    {
        for instruction in section.data().unwrap().chunks_exact(8) {
            // A call whose source register is 0 is one of a helper, the constant its number.
            if instruction[0] == 0x85 && instruction[1] >> 4 == 0 {
                let number = i32::from_le_bytes(instruction[4..].try_into().unwrap());
                asked.extend(
                    CLOCKS
                        .iter()
                        .filter(|(clock, _)| *clock == number)
                        .map(|(_, name)| *name),
                );
            }
        }
    }
    assert_eq!(asked, BTreeSet::from(["ktime_get_coarse_ns"]));
}

#[test]
fn rel_42_a_connection_bears_the_time_of_the_monotonic_clock() {
    families(|pair, v6| {
        let before = world::monotonic();
        let outcome = pair
            .run(Hook::FromPod, &from_a(pod(3, v6)).udp(b"x"), ifindex::POD_A)
            .0;
        assert_eq!(outcome, TO_B);
        let seen = pair.kernel.seen("conntrack_new").unwrap();
        let during = before..=world::monotonic();
        assert!(
            seen.len() == 1 && during.contains(&seen[0]),
            "{seen:?}, {during:?}"
        );
    });
}
