use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pool(ranges: &[&str], quarantine: u64) -> Pool {
    let mut pool = Pool::new(Duration::from_secs(quarantine));
    let ranges: Vec<IpNetwork> = ranges.iter().map(|range| range.parse().unwrap()).collect();
    pool.set_ranges(&ranges);
    pool
}

#[test]
fn one_address_of_each_family_and_none_of_the_reserved() {
    let mut pool = pool(&["10.1.0.0/29", "fd00::/125"], 0);
    let now = Instant::now();
    let given: Vec<Vec<IpAddr>> = (1..=5)
        .map(|owner| pool.allocate(owner, &[], now).unwrap())
        .collect();
    assert_eq!(given[0], [ip("10.1.0.2"), ip("fd00::2")]);
    assert_eq!(given[4], [ip("10.1.0.6"), ip("fd00::6")]);
    let error = pool.allocate(6, &[], now).unwrap_err();
    assert!(
        matches!(
            error,
            IpamError::Exhausted {
                family: "IPv4",
                used: 5,
                ..
            }
        ),
        "{error}"
    );
    // The IPv6 address of the failed attempt is not lost.
    assert_eq!(pool.status()[1].used, 5);
}

#[test]
fn several_ranges_of_a_family_are_used_up_one_after_the_other() {
    let mut pool = pool(&["10.1.0.0/30", "10.2.0.0/30"], 0);
    let now = Instant::now();
    assert_eq!(pool.allocate(1, &[], now).unwrap(), [ip("10.1.0.2")]);
    assert_eq!(pool.allocate(2, &[], now).unwrap(), [ip("10.2.0.2")]);
    assert!(pool.allocate(3, &[], now).is_err());
    pool.release(1, &[ip("10.1.0.2")], now);
    assert_eq!(pool.allocate(3, &[], now).unwrap(), [ip("10.1.0.2")]);
}

#[test]
fn small_ranges_are_used_whole() {
    for (range, count) in [
        ("10.0.0.1/32", 1),
        ("10.0.0.0/31", 2),
        ("fd00::1/128", 1),
        ("fd00::/127", 2),
    ] {
        let mut pool = pool(&[range], 0);
        for owner in 1..=count {
            pool.allocate(owner, &[], Instant::now()).unwrap();
        }
        assert!(pool.allocate(9, &[], Instant::now()).is_err(), "{range}");
    }
}

#[test]
fn rel_43_an_address_rests_before_it_is_given_again() {
    let mut pool = pool(&["10.1.0.0/30"], 60);
    let now = Instant::now();
    let given = pool.allocate(1, &[], now).unwrap();
    pool.release(1, &given, now);
    assert!(pool.allocate(2, &[], now + Duration::from_secs(59)).is_err());
    assert_eq!(pool.status()[0].quarantined, 1);
    assert_eq!(pool.wake(now + Duration::from_secs(60)), given);
    assert_eq!(
        pool.allocate(2, &[], now + Duration::from_secs(60)).unwrap(),
        given
    );
}

#[test]
fn what_was_abandoned_does_not_rest() {
    let mut pool = pool(&["10.1.0.0/30"], 60);
    let now = Instant::now();
    let given = pool.allocate(1, &[], now).unwrap();
    pool.abandon(2, &given);
    assert!(
        pool.allocate(2, &[], now).is_err(),
        "somebody else's is not given back"
    );
    pool.abandon(1, &given);
    assert_eq!(pool.allocate(2, &[], now).unwrap(), given);
}

#[test]
fn addresses_that_are_asked_for() {
    let mut pool = pool(&["10.1.0.0/24", "fd00::/64"], 60);
    let now = Instant::now();
    let given = pool.allocate(1, &[ip("10.1.0.77")], now).unwrap();
    assert_eq!(given, [ip("10.1.0.77"), ip("fd00::2")]);
    assert_eq!(
        pool.allocate(2, &[ip("10.1.0.77")], now),
        Err(IpamError::Taken(ip("10.1.0.77"), 1))
    );
    assert!(matches!(
        pool.allocate(2, &[ip("10.2.0.1")], now),
        Err(IpamError::Foreign(..))
    ));
    assert_eq!(
        pool.allocate(2, &[ip("10.1.0.255")], now),
        Err(IpamError::Reserved(ip("10.1.0.255")))
    );
    let two = [ip("10.1.0.5"), ip("10.1.0.6")];
    assert_eq!(pool.allocate(2, &two, now), Err(IpamError::Several("IPv4")));
    // A pod that is made anew under its own address does not wait for the quarantine.
    pool.release(1, &given, now);
    assert!(pool.allocate(3, &[ip("10.1.0.77")], now).is_ok());
}

#[test]
fn without_a_range_there_is_an_error_that_says_so() {
    assert_eq!(
        pool(&[], 0).allocate(1, &[], Instant::now()),
        Err(IpamError::NoRange)
    );
}

#[test]
fn a_claim_keeps_an_address_from_others_even_outside_of_the_ranges() {
    let mut pool = pool(&["10.1.0.0/29"], 0);
    pool.claim(ip("10.1.0.2"), 5).unwrap();
    pool.claim(ip("10.1.0.2"), 5).unwrap();
    pool.claim(ip("192.0.2.1"), 5).unwrap();
    assert_eq!(
        pool.claim(ip("192.0.2.1"), 6),
        Err(IpamError::Taken(ip("192.0.2.1"), 5))
    );
    assert_eq!(pool.allocate(6, &[], Instant::now()).unwrap(), [ip("10.1.0.3")]);
}

#[derive(Clone, Debug)]
enum Step {
    Allocate,
    Release(usize),
    Wait(u64),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Allocate),
        3 => (0usize..16).prop_map(Step::Release),
        2 => (0u64..40).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 0..120)
}

proptest! {
    /// Whatever happens: no address twice, none outside of the ranges, none within its quarantine, also across a
    /// restart that knows only the records.
    #[test]
    fn never_twice_never_foreign_never_too_soon(steps in steps()) {
        let ranges = ["10.1.0.0/29", "10.9.0.8/30", "fd00::8/126"];
        let networks: Vec<IpNetwork> = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let mut pool = pool(&ranges, 30);
        let mut now = Instant::now();
        let mut owned: Vec<(u32, Vec<IpAddr>)> = Vec::new();
        let mut freed: BTreeMap<IpAddr, Instant> = BTreeMap::new();
        let mut next = 1;
        for step in steps {
            match step {
                Step::Allocate => if let Ok(addresses) = pool.allocate(next, &[], now) {
                    prop_assert_eq!(addresses.len(), 2);
                    let in_use: BTreeSet<IpAddr> = owned.iter().flat_map(|(_, ips)| ips.clone()).collect();
                    for ip in &addresses {
                        prop_assert!(!in_use.contains(ip));
                        prop_assert!(networks.iter().any(|network| network.contains(*ip)));
                        if let Some(at) = freed.get(ip) {
                            prop_assert!(now.duration_since(*at) >= Duration::from_secs(30));
                        }
                    }
                    owned.push((next, addresses));
                    next += 1;
                },
                Step::Release(i) if !owned.is_empty() => {
                    let (owner, addresses) = owned.remove(i % owned.len());
                    pool.release(owner, &addresses, now);
                    freed.extend(addresses.into_iter().map(|ip| (ip, now)));
                }
                Step::Release(_) => {}
                Step::Wait(seconds) => { now += Duration::from_secs(seconds); pool.wake(now); }
                Step::Restart => {
                    let resting: Vec<IpAddr> = pool.resting.keys().copied().collect();
                    pool = self::pool(&ranges, 30);
                    for (owner, addresses) in &owned {
                        for ip in addresses { pool.claim(*ip, *owner).unwrap(); }
                    }
                    for ip in resting { pool.rest(ip, now); }
                }
            }
        }
    }
}
