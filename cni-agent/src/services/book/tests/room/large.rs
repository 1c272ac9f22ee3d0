//! Services that need more places than there are in one piece, and whom that concerns.

use super::*;

/// More endpoints than a port number counts, on addresses of their own.
fn large(number: u8, endpoints: u32, affinity: bool) -> Compiled {
    let target = |endpoint: u32| Target {
        addr: Addr::v4((0x0a01_0000 + endpoint).to_be_bytes()),
        port: Port::new(8080),
        proto: 6,
    };
    let targets: Vec<Target> = (0..endpoints).map(target).collect();
    let mut compiled = compiled(number, &BTreeSet::new(), affinity);
    compiled.serving = targets.iter().map(|target| (*target, 0)).collect();
    let set = &mut compiled.sets[0];
    set.targets.clone_from(&targets);
    // The policy Local beside the policy Cluster.
    let local = SetName {
        local: true,
        ..set.name
    };
    let second = SlotSet {
        name: local,
        ..set.clone()
    };
    compiled.sets.push(second);
    let frontend = Frontend {
        key: outside(number),
        set: Some(local),
        ..compiled.frontends[0]
    };
    compiled.frontends.push(frontend);
    compiled
}

fn default_sizes() -> Capacity {
    Capacity::of(&crate::config::MapSizes::default())
}

#[test]
fn a_service_of_65_535_endpoints_with_both_policies_and_affinity_grows_as_long_as_there_is_a_piece_for_it() {
    let mut world = World::new(default_sizes().rows);
    world.wanted.insert(1, compiled(1, &BTreeSet::from([1]), false));
    world.wanted.insert(2, large(2, 65_535, true));
    world.change([name(1), name(2)].into());
    assert_eq!(world.services[&key(2)].slots, 65_535);
    let neighbour = world.services[&key(1)];
    let neighbours_slot = world.slots[&neighbour.first];
    // One of its blocks grows where it is, the other one moves.
    world.wanted.insert(2, large(2, 65_537, true));
    world.change([name(2)].into());
    assert_eq!(world.services[&key(2)].slots, 65_537);
    assert_eq!(world.book.problems().count(), 0);
    world.settle();
    // All would fit, but not beside what there is.
    world.wanted.insert(2, large(2, 100_000, true));
    world.change([name(2)].into());
    world.settle();
    assert_eq!(
        world.services[&key(2)].slots,
        65_537,
        "it keeps those that it has"
    );
    let problems: Vec<&String> = world.book.problems().collect();
    let said = "n/s2: `maps.serviceSlots` is 262144, other Services need some of that and this one 200000, each port's in one piece, \
                the longest of 100000, beside what it has until then, and none that is free is as long: it keeps";
    assert!(
        matches!(&problems[..], [one] if one.contains(said)),
        "{problems:?}"
    );
    let troubles = Troubles {
        room: 1,
        ..Troubles::default()
    };
    assert_eq!(world.book.troubles(), troubles);
    assert_eq!(world.services[&key(1)], neighbour);
    assert_eq!(world.slots[&neighbour.first], neighbours_slot);
    // With a few less there is room.
    world.wanted.insert(2, large(2, 65_536, true));
    world.change([name(2)].into());
    world.settle();
    assert_eq!(world.services[&key(2)].slots, 65_536);
    assert_eq!(world.book.problems().count(), 0);
}

#[test]
fn a_gap_that_is_too_small_is_said_and_what_leaves_beside_it_makes_it_large_enough() {
    let rows = Counts {
        slots: 12,
        ..ample(0).rows
    };
    let mut world = World::new(rows);
    for number in 1..5 {
        let endpoints = (0..3).collect();
        world.wanted.insert(number, compiled(number, &endpoints, false));
        world.change([name(number)].into());
    }
    // Two gaps of three are no room for five.
    for number in [1, 3] {
        world.wanted.remove(&number);
        world.change([name(number)].into());
    }
    world.settle();
    let five = compiled(5, &(0..5).collect(), false);
    world.wanted.insert(5, five);
    world.change([name(5)].into());
    world.settle();
    let problems: Vec<&String> = world.book.problems().collect();
    let said = "n/s5: `maps.serviceSlots` is 12, other Services need some of that and this one 5, each port's in one piece, the longest \
                of 5, beside what it has until then, and none that is free is as long: it is not served";
    assert!(
        matches!(&problems[..], [one] if one.contains(said)),
        "{problems:?}"
    );
    let served: Vec<_> = world.served().into_keys().collect();
    assert_eq!(served, [key(2), key(4)]);
    world.wanted.remove(&2);
    world.change([name(2)].into());
    assert!(
        !world.served().contains_key(&key(5)),
        "somebody may be reading what was the second's"
    );
    world.settle();
    assert_eq!(world.served()[&key(5)], (0..5).collect());
    assert_eq!(world.book.problems().count(), 0);
}

#[test]
fn a_new_service_of_too_many_endpoints_is_not_served_and_its_neighbours_are() {
    let mut world = World::new(default_sizes().rows);
    world.wanted.insert(1, large(1, 131_073, false));
    for number in [2, 3] {
        world
            .wanted
            .insert(number, compiled(number, &BTreeSet::from([number]), false));
    }
    world.change([name(1), name(2), name(3)].into());
    let served: Vec<_> = world.served().into_keys().collect();
    assert_eq!(served, [key(2), key(3)]);
    let problems: Vec<&String> = world.book.problems().collect();
    assert!(
        problems[0].contains("`maps.backends` is 131072")
            && problems[0].contains("this one 131073: it is not served"),
        "{problems:?}"
    );
    // It gets its rows when it is small enough.
    world.wanted.insert(1, large(1, 100_000, false));
    world.change([name(1)].into());
    assert_eq!(world.services[&key(1)].slots, 100_000);
}

#[test]
fn a_sign_of_life_costs_nobody_an_endpoint() {
    let mut world = World::new(Counts {
        services: 1,
        ..default_sizes().rows
    });
    let mut pinged = compiled(1, &BTreeSet::from([1]), false);
    let address = Frontend {
        key: ServiceKey {
            port: Port::ZERO,
            proto: 0,
            ..key(1)
        },
        set: None,
        flags: 0,
        affinity_seconds: 0,
        restricted: false,
    };
    pinged.frontends.push(address);
    world.wanted.insert(1, pinged);
    world.change([name(1)].into());
    assert_eq!(world.services.keys().collect::<Vec<_>>(), [&key(1)]);
    assert_eq!(world.book.problems().count(), 0);
}
