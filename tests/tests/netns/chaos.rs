//! Ends in the middle of things: the agent before any change of the kernel, the plugin at any of its steps, both real.

use std::{
    fs,
    io::{Read, Write},
    net::SocketAddr,
    thread,
    time::Duration,
};

use cni_tests::{
    lab::{Drops, Families, Lab, Node, Plan, Routing, Signal},
    netns::Namespace,
    traffic::{self, Echo, Steady},
};
use serde_json::{Value, json};

use crate::{eventually, needs_root, steps};

/// Those at which it needs the agent no more.
const PROGRAMMED: [&str; 3] = ["programmed", "up", steps::PRINTED];
const DEL_STEPS: [&str; 2] = ["del-link", "del-release"];

/// A connection that is always full in both directions.
fn bulk(from: &Namespace, to: SocketAddr) -> Steady {
    let mut stream = traffic::connect(from, to).unwrap();
    let sent = traffic::pattern(100_000);
    let mut got = vec![0; sent.len()];
    Steady::repeat(move || {
        let mut writer = stream.try_clone()?;
        thread::scope(|scope| {
            let writing = scope.spawn(|| writer.write_all(&sent));
            stream.read_exact(&mut got)?;
            writing
                .join()
                .map_err(|_| anyhow::anyhow!("the writer panicked"))??;
            anyhow::ensure!(got == sent, "other bytes");
            Ok(())
        })
    })
}

/// What a runtime does: it asks until it is served, and takes back what was refused.
fn attach(node: &Node, container: &str, netns: &Namespace) -> bool {
    let done = node.cni("ADD", container, &netns.path(), &json!({})).is_ok();
    if !done {
        node.cni("DEL", container, &netns.path(), &json!({})).unwrap();
    }
    done
}

/// A node, and the network of a container on it.
fn one_node() -> (Lab, Namespace) {
    let lab = Lab::start(Plan::new(Routing::Direct, Families::Dual).nodes(1)).unwrap();
    let guest = Namespace::create(&format!("{}-guest", lab.name())).unwrap();
    (lab, guest)
}

#[test]
fn rel_28_agent_killed_before_any_change_under_bulk() {
    needs_root!();
    let lab = Lab::start(Plan::new(Routing::Direct, Families::Dual)).unwrap();
    let [node, far] = lab.pair();
    let (a, b) = (node.add_pod("a").unwrap(), node.add_pod("b").unwrap());
    let c = far.add_pod("c").unwrap();
    let mut servers = Vec::new();
    let mut flows = Vec::new();
    for v4 in [true, false] {
        for (there, ip) in [
            (&b.namespace, b.ip(v4)),
            (&c.namespace, c.ip(v4)),
            (&lab.outside, lab.outside_address(v4)),
        ] {
            let tcp = Echo::tcp(there, ip, 0).unwrap();
            flows.push(bulk(&a.namespace, tcp.address));
            flows.push(Steady::connections(&a.namespace, tcp.address).unwrap());
            servers.push(tcp);
        }
    }
    flows.iter().for_each(|flow| flow.wait_for(5));
    let before = node.intent().unwrap();
    let guests = ["x", "y"].map(|name| Namespace::create(&format!("{}-{name}", lab.name())).unwrap());
    node.end_agent(Signal::SIGKILL).unwrap();
    // The first changes are those of its start, then come those of the pods.
    let mut reached = 0;
    for last in (1..=31).step_by(3) {
        let last = last.to_string();
        node.start_agent_with(&[("MILLRACE_DIE_BEFORE_CHANGE", &last)])
            .unwrap();
        let mut served = 0;
        // Pods come and go until it dies; it dies before it is ready if its start alone is that long.
        while !node.agent_is_gone().unwrap() {
            for (number, guest) in guests.iter().enumerate() {
                let container = format!("{}-guest{number}", lab.name());
                served += usize::from(attach(node, &container, guest));
                node.cni("DEL", &container, &guest.path(), &json!({})).unwrap();
            }
        }
        reached += usize::from(served > 0);
        node.start_agent().unwrap();
        node.wait_until_ready().unwrap();
        eventually(|| {
            let now = node.intent().unwrap();
            (now != before).then(|| format!("before change {last}: {before:#?}\nleft: {now:#?}"))
        });
        node.end_agent(Signal::SIGKILL).unwrap();
    }
    assert!(reached > 0, "no agent lived until a pod was served");
    flows.iter().for_each(|flow| flow.wait_for(5));
    for flow in flows {
        assert_eq!(flow.stop().failures, Vec::<String>::new());
    }
    assert_eq!(
        [node, far].map(|node| node.drops().unwrap()),
        [Drops::new(), Drops::new()]
    );
    // A start on a kernel that holds nothing comes to the same.
    fs::remove_dir_all(node.pins()).unwrap();
    node.start_agent().unwrap();
    node.wait_until_ready().unwrap();
    eventually(|| {
        let now = node.intent().unwrap();
        (now != before).then(|| format!("a cold start: {now:#?}\nafter many warm ones: {before:#?}"))
    });
    traffic::ping(&a.namespace, c.ip(true), 56).unwrap();
}

#[test]
fn cni_08_plugin_killed_at_any_step_leaves_the_real_agent_nothing() {
    needs_root!();
    let (lab, guest) = one_node();
    let node = &lab.nodes[0];
    let before = node.intent().unwrap();
    let pool = |node: &Node| node.ask(["status"]).unwrap()["agent"]["pools"].to_string();
    let container = lab.name();
    let empty = |step: &str| {
        crate::runtimes::nothing_is_left(node, &before);
        assert!(pool(node).contains("\"used\":0"), "{step}: {}", pool(node));
        assert_eq!(guest.devices().unwrap(), ["lo"], "{step}");
    };
    for step in steps::all() {
        // The agent hears of it, whatever the runtime does.
        node.cni_killed(step, "ADD", container, &guest.path()).unwrap();
        eventually(|| {
            let endpoints = node.ask(["endpoints"]).unwrap();
            let devices = node.pod_devices().unwrap();
            (endpoints != json!([]) || !devices.is_empty())
                .then(|| format!("{step}: {endpoints}, {devices:?}"))
        });
        // The next attempt finds nothing in its way, with a DEL before it and without one.
        node.cni("ADD", container, &guest.path(), &json!({})).unwrap();
        node.cni("DEL", container, &guest.path(), &json!({})).unwrap();
        empty(step);
        node.cni_killed(step, "ADD", container, &guest.path()).unwrap();
        node.cni("DEL", container, &guest.path(), &json!({})).unwrap();
        empty(step);
    }
    for step in DEL_STEPS {
        node.cni("ADD", container, &guest.path(), &json!({})).unwrap();
        node.cni_killed(step, "DEL", container, &guest.path()).unwrap();
        node.cni("DEL", container, &guest.path(), &json!({})).unwrap();
        crate::runtimes::nothing_is_left(node, &before);
    }
}

#[test]
fn cni_08_plugin_killed_at_any_step_after_its_agent_leaves_the_next_agent_nothing() {
    needs_root!();
    let (lab, guest) = one_node();
    let node = &lab.nodes[0];
    let before = node.intent().unwrap();
    let container = lab.name();
    let killed = |step: &str, verb: &str| {
        let plugin = node.cni_stopped(step, verb, container, &guest.path()).unwrap();
        // In this order nobody is there to notice.
        node.end_agent(Signal::SIGKILL).unwrap();
        drop(plugin);
        node.start_agent().unwrap();
        node.wait_until_ready().unwrap();
        eventually(|| {
            let left = (
                node.ask(["endpoints"]).unwrap(),
                node.pod_devices().unwrap(),
                guest.devices().unwrap(),
                fs::read_dir(node.folder().join("state/adding")).unwrap().count(),
            );
            let nothing = (json!([]), Vec::new(), vec!["lo".to_owned()], 0);
            (left != nothing).then(|| format!("{verb}, {step}: {left:?}"))
        });
        crate::runtimes::nothing_is_left(node, &before);
        let pools = node.ask(["status"]).unwrap()["agent"]["pools"].to_string();
        assert!(pools.contains("\"used\":0"), "{verb}, {step}: {pools}");
    };
    for step in steps::all() {
        killed(step, "ADD");
    }
    for step in DEL_STEPS {
        node.cni("ADD", container, &guest.path(), &json!({})).unwrap();
        killed(step, "DEL");
    }
}

#[test]
fn rel_28_an_add_outlives_its_agent_or_is_refused_and_tried_again() {
    needs_root!();
    let (lab, guest) = one_node();
    let node = &lab.nodes[0];
    let before = node.intent().unwrap();
    let container = lab.name();
    let run = |verb: &str, config: Value| node.cni(verb, container, &guest.path(), &config);
    for step in steps::all() {
        let plugin = node.cni_stopped(step, "ADD", container, &guest.path()).unwrap();
        node.end_agent(Signal::SIGKILL).unwrap();
        node.start_agent().unwrap();
        node.wait_until_ready().unwrap();
        // The agent has looked at least twice.
        thread::sleep(Duration::from_millis(1500));
        let added = plugin.go_on();
        assert_eq!(added.is_ok(), PROGRAMMED.contains(&step), "{step}: {added:?}");
        let result = match added {
            Ok(result) => result,
            Err(error) => {
                assert!(error.to_string().contains("\"code\": 11"), "{step}: {error}");
                run("ADD", json!({})).unwrap()
            }
        };
        run("CHECK", json!({ "prevResult": result })).unwrap();
        for address in result["ips"].as_array().unwrap() {
            let ip = address["address"].as_str().unwrap().split_once('/').unwrap().0;
            traffic::ping(&node.namespace, ip.parse().unwrap(), 56).unwrap();
        }
        run("DEL", json!({})).unwrap();
        crate::runtimes::nothing_is_left(node, &before);
    }
}
