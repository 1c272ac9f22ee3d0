//! Events while nobody listens.

use std::process::Stdio;

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
    let heard = std::thread::scope(|scope| {
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
