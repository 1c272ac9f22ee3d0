//! Events while nobody listens.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    process::Stdio,
    thread,
};

use cni_tests::{
    lab::{Families, Lab, Node, Plan, Pod, Routing, Signal},
    traffic::{self, Echo},
    world,
};
use serde_json::json;

use crate::{eventually, needs_root};

/// So many new connections, each an event.
fn connect(from: &Pod, to: &Pod, connections: usize) {
    let echo = Echo::udp(&to.namespace, to.ip(true), 0).unwrap();
    for _ in 0..connections {
        traffic::udp(&from.namespace, echo.address, 10).unwrap();
    }
}

fn lost(node: &Node) -> u64 {
    node.ask(["drops"]).unwrap()["events_lost"].as_u64().unwrap()
}

#[test]
fn events_that_nobody_listens_to_are_not_told_and_what_nobody_reads_is_lost_and_counted() {
    needs_root!();
    // Room for about forty.
    let config = json!({ "maps": { "events": 4096 } });
    let lab = Lab::start(Plan::new(Routing::Direct, Families::Dual).nodes(1).config(config)).unwrap();
    let node = &lab.nodes[0];
    let (a, b) = (node.add_pod("a").unwrap(), node.add_pod("b").unwrap());
    let before = lost(node);
    connect(&a, &b, 100);
    assert_eq!(lost(node), before, "told to nobody");
    // An agent that dies while somebody listens leaves the programs telling.
    let mut listener = node.millrace(["monitor"]);
    let mut listener = listener
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually(|| {
        let told = node.dump("listeners").unwrap();
        told.is_empty().then(|| "nobody listens".to_owned())
    });
    node.end_agent(Signal::SIGKILL).unwrap();
    listener.wait().unwrap();
    let before = lost(node);
    connect(&a, &b, 100);
    let counted = lost(node) - before;
    assert!((40..=100).contains(&counted), "{counted} of 100");
    node.start_agent().unwrap();
    node.wait_until_ready().unwrap();
    let page = node.http("/metrics").unwrap();
    assert!(
        page.contains(&format!("millrace_events_lost_total {}", lost(node))),
        "{page}"
    );
    // Whoever listens again hears what happens then, and not what the dead agent has left.
    let begun = world::monotonic();
    let mut monitor = node.millrace(["monitor", "--kind", "new", "--count", "1", "--json"]);
    let monitor = monitor.stdout(Stdio::piped()).spawn().unwrap();
    let heard = thread::scope(|scope| {
        let heard = scope.spawn(|| monitor.wait_with_output().unwrap());
        while !heard.is_finished() {
            connect(&a, &b, 5);
        }
        heard.join().unwrap()
    });
    let text = String::from_utf8(heard.stdout).unwrap();
    let event: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(event["time"].as_u64() >= Some(begun), "{begun}: {event}");
    assert_eq!(
        (&event["kind"], &event["src"]),
        (&json!("new"), &json!(a.ip(true))),
        "{event}"
    );
}

#[test]
fn a_connection_is_told_from_its_first_packet_to_its_last() {
    needs_root!();
    let lab = Lab::start(Plan::new(Routing::Direct, Families::Dual).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let (a, b) = (node.add_pod("a").unwrap(), node.add_pod("b").unwrap());
    let echo = Echo::tcp(&b.namespace, b.ip(true), 0).unwrap();
    let mut monitor = node.millrace(["monitor", "--json"]);
    let mut monitor = monitor.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(monitor.stdout.take().unwrap()).lines();
    thread::scope(|scope| {
        let heard = scope.spawn(|| {
            let mut wanted = BTreeSet::from(["new", "flags", "close"]);
            for line in lines.by_ref() {
                let event: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
                let ends = [&event["src"], &event["dst"]];
                let ours = [json!(a.ip(true)), json!(echo.address.ip())];
                if ours.iter().all(|end| ends.contains(&end)) {
                    wanted.retain(|kind| event["kind"] != *kind);
                }
                if wanted.is_empty() {
                    break;
                }
            }
            wanted
        });
        while !heard.is_finished() {
            traffic::tcp(&a.namespace, echo.address, 10).unwrap();
            thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(heard.join().unwrap(), BTreeSet::new(), "never told");
    });
    monitor.kill().unwrap();
    monitor.wait().unwrap();
}
