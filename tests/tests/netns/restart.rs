//! The agent dies and comes back, under traffic.

use cni_tests::{
    lab::{Drops, Families, Lab, Plan, Pod, Routing, Signal},
    traffic::Load,
};

use crate::needs_root;

/// Traffic of every kind from one pod to its node, to the other, and outside.
pub(crate) fn load(lab: &Lab, from: &Pod, near: &Pod, far: &Pod) -> Load {
    let mut load = Load::default();
    for v4 in lab.plan.families.each() {
        load.between(&from.namespace, &near.namespace, near.ip(v4));
        load.between(&from.namespace, &far.namespace, far.ip(v4));
        load.between(&from.namespace, &lab.outside, lab.outside_address(v4));
    }
    load
}

/// Ends the agent by `signal`, lets the traffic go on without it, and starts it again; twice.
fn end_and_return(plan: Plan, signal: Signal) {
    needs_root!();
    let lab = Lab::start(plan).unwrap();
    let node = &lab.nodes[0];
    let (a, b) = (node.add_pod("a").unwrap(), node.add_pod("b").unwrap());
    let c = lab.nodes[1].add_pod("c").unwrap();
    let load = load(&lab, &a, &b, &c);
    load.goes_on(20);
    let before = node.intent().unwrap();
    for _ in 0..2 {
        node.end_agent(signal).unwrap();
        load.goes_on(50);
        assert_eq!(node.intent().unwrap(), before, "after the agent's end");
        node.start_agent().unwrap();
        load.goes_on(20);
        node.wait_until_ready().unwrap();
        load.goes_on(20);
        assert_eq!(node.intent().unwrap(), before, "after the agent's return");
    }
    let dropped = [node, &lab.nodes[1]].map(|node| node.drops().unwrap());
    assert_eq!(load.end(), Vec::<String>::new(), "{dropped:?}");
    assert_eq!(dropped, [Drops::new(), Drops::new()]);
}

#[test]
fn rel_28_agent_killed_under_traffic_direct() {
    end_and_return(Plan::new(Routing::Direct, Families::Dual), Signal::SIGKILL);
}

#[test]
fn rel_28_agent_killed_under_traffic_vxlan() {
    end_and_return(Plan::new(Routing::Vxlan, Families::Dual), Signal::SIGKILL);
}

#[test]
fn rel_28_agent_ended_under_traffic() {
    end_and_return(Plan::new(Routing::Direct, Families::Dual), Signal::SIGTERM);
}

#[test]
fn rel_28_agent_ended_under_traffic_vxlan() {
    end_and_return(Plan::new(Routing::Vxlan, Families::Dual), Signal::SIGTERM);
}

#[test]
fn rel_34_agent_ended_and_killed_with_clsact() {
    for (routing, signal) in [
        (Routing::Direct, Signal::SIGKILL),
        (Routing::Vxlan, Signal::SIGTERM),
    ] {
        let plan = Plan::new(routing, Families::Dual).agent_arguments(&["--attach", "clsact"]);
        end_and_return(plan, signal);
    }
}

#[test]
fn rel_34_a_filter_that_somebody_deletes_is_back_at_once() {
    needs_root!();
    let plan = Plan::new(Routing::Direct, Families::Dual).agent_arguments(&["--attach", "clsact"]);
    let lab = Lab::start(plan).unwrap();
    let node = &lab.nodes[0];
    let (a, b) = (node.add_pod("a").unwrap(), node.add_pod("b").unwrap());
    let filters = |device: &str, side: &str| {
        let arguments = ["filter", "show", "dev", device, side];
        let output = node.namespace.command("tc").args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    // Each way of taking one away: the filter, all of a side, the qdisc. The audit comes once a minute; nobody waits
    // for it here.
    for (device, arguments) in [
        (a.host_device.as_str(), "filter del dev DEVICE ingress"),
        ("eth0", "filter del dev DEVICE egress pref 77"),
        (a.host_device.as_str(), "qdisc del dev DEVICE clsact"),
    ] {
        let sides = || [filters(device, "ingress"), filters(device, "egress")];
        let has_both = || sides().iter().all(|text| text.contains("millrace:"));
        assert!(has_both(), "{device}: {:?}", sides());
        let arguments = arguments.replace("DEVICE", device);
        let mut tc = node.namespace.command("tc");
        assert!(
            tc.args(arguments.split_whitespace()).status().unwrap().success(),
            "{arguments}"
        );
        crate::eventually(|| (!has_both()).then(|| format!("after tc {arguments}: {:?}", sides())));
    }
    let route = format!("route del {}", lab.plan.pod_cidr(1, true));
    node.namespace.ip(&route).unwrap();
    crate::eventually(|| {
        let routes = node.namespace.list("route show proto 77").unwrap();
        let there = routes
            .iter()
            .any(|route| route["dst"] == lab.plan.pod_cidr(1, true).as_str());
        (!there).then(|| format!("{routes:?}"))
    });
    cni_tests::traffic::ping(&a.namespace, b.ip(true), 56).unwrap();
}

fn alone() -> Option<Lab> {
    nix::unistd::geteuid().is_root().then(|| {
        let plan = Plan::new(Routing::Direct, Families::Dual).nodes(1);
        Lab::start(plan).unwrap()
    })
}

#[test]
fn rel_31_pod_deleted_while_the_agent_is_dead_is_collected() {
    needs_root!();
    let Some(lab) = alone() else { return };
    let node = &lab.nodes[0];
    let empty = node.intent().unwrap();
    let pod = node.add_pod("a").unwrap();
    let (host_device, addresses) = (pod.host_device.clone(), pod.addresses.clone());
    node.end_agent(Signal::SIGKILL).unwrap();
    assert!(node.add_pod("b").is_err(), "ADD must fail without an agent");
    node.delete_pod(pod).unwrap();
    assert!(!node.pod_devices().unwrap().contains(&host_device));
    node.start_agent().unwrap();
    node.wait_until_ready().unwrap();
    crate::eventually(|| {
        let now = node.intent().unwrap();
        (now != empty).then(|| format!("{addresses:?} left something: {now:#?}"))
    });
    assert_eq!(node.ask(["endpoints"]).unwrap(), serde_json::json!([]));
}

#[test]
fn rel_43_pod_that_vanished_without_del_is_collected() {
    needs_root!();
    let Some(lab) = alone() else { return };
    let node = &lab.nodes[0];
    let empty = node.intent().unwrap();
    let pod = node.add_pod("a").unwrap();
    node.end_agent(Signal::SIGKILL).unwrap();
    // With the namespace goes its device, and the runtime has forgotten it.
    drop(pod);
    node.start_agent().unwrap();
    node.wait_until_ready().unwrap();
    crate::eventually(|| {
        let now = node.intent().unwrap();
        (now != empty).then(|| format!("left: {now:#?}"))
    });
    assert_eq!(node.pod_devices().unwrap(), Vec::<String>::new());
}
