//! Somebody sets the clock: a time server that was out of reach, a person, a machine that was asleep.

use std::time::Duration;

use cni_tests::{
    lab::{Drops, Families, Lab, Plan, Routing},
    require_in_vm,
    traffic::Load,
};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime, clock_settime},
};

use crate::needs_root;

const HOUR: i64 = 3600;

/// Sets the clock on, or back.
fn step(seconds: i64) {
    let clock = ClockId::CLOCK_REALTIME;
    let now = clock_gettime(clock).unwrap();
    let then = TimeSpec::new(now.tv_sec() + seconds, now.tv_nsec());
    clock_settime(clock, then).unwrap();
}

#[test]
fn rel_42_a_clock_that_is_set_by_an_hour_changes_nothing() {
    needs_root!();
    require_in_vm!(
        std::env::var_os("MILLRACE_VM").is_some(),
        "it sets the clock, and this machine's is not ours"
    );
    let lab = Lab::start(Plan::new(Routing::Direct, Families::V4)).unwrap();
    let [node, far] = lab.pair();
    let (a, c) = (node.add_pod("a").unwrap(), far.add_pod("c").unwrap());
    let mut load = Load::default();
    load.between(&a.namespace, &c.namespace, c.ip(true));
    load.between(&a.namespace, &lab.outside, lab.outside_address(true));
    load.goes_on(5);
    for seconds in [HOUR, -2 * HOUR, HOUR] {
        step(seconds);
        load.goes_on(5);
        let flows = node.ask(["conntrack", "list"]).unwrap();
        let idle = |flow: &serde_json::Value| flow["idle"].as_u64().unwrap();
        let flows = flows.as_array().unwrap();
        let most = flows.iter().map(idle).max();
        assert!(
            most.is_some_and(|most| most < cni_tests::patience(Duration::from_secs(120)).as_secs()),
            "{flows:?}"
        );
        // The agent goes on as well, with the address that has just been given back at rest.
        let pod = node.add_pod("d").unwrap();
        let address = pod.ip(true);
        node.delete_pod(pod).unwrap();
        let next = node.add_pod("e").unwrap();
        assert_ne!(next.ip(true), address);
        node.delete_pod(next).unwrap();
    }
    let dropped = [node, far].map(|node| node.drops().unwrap());
    assert_eq!(load.end(), Vec::<String>::new(), "{dropped:?}");
    assert_eq!(dropped, [Drops::new(), Drops::new()]);
}
