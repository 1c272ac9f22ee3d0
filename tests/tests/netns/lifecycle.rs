//! Pods come and go in crowds.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::IpAddr,
    process::{Command, Stdio},
    thread,
};

use cni_tests::{
    lab::{Families, Lab, Plan, Pod, Routing, leftovers},
    netns::Namespace,
    traffic::{self, Echo},
};
use serde_json::{Value, json};

use crate::{kind_of, needs_root};

/// As many as a node has pods by default.
const CROWD: usize = 110;

#[test]
fn rel_43_crowd_of_pods_comes_and_goes_without_a_trace() {
    needs_root!();
    let lab = Lab::start(Plan::new(Routing::Direct, Families::Dual).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let empty = node.intent().unwrap();
    let pods: Vec<Pod> = thread::scope(|scope| {
        let adds: Vec<_> = (0..CROWD)
            .map(|number| scope.spawn(move || node.add_pod(&format!("p{number}"))))
            .collect();
        adds.into_iter().map(|add| add.join().unwrap().unwrap()).collect()
    });
    let addresses: BTreeSet<IpAddr> = pods.iter().flat_map(|pod| pod.addresses.clone()).collect();
    assert_eq!(addresses.len(), 2 * CROWD, "every pod has its own addresses");
    assert_eq!(node.pod_devices().unwrap().len(), CROWD);
    assert_eq!(node.dump("addresses").unwrap().len(), 2 * CROWD);
    for pair in pods.windows(2) {
        traffic::ping(&pair[0].namespace, pair[1].ip(true), 56).unwrap();
    }
    thread::scope(|scope| {
        let deletes: Vec<_> = pods
            .into_iter()
            .map(|pod| scope.spawn(move || node.delete_pod(pod)))
            .collect();
        deletes
            .into_iter()
            .for_each(|delete| delete.join().unwrap().unwrap());
    });
    assert_eq!(node.pod_devices().unwrap(), Vec::<String>::new());
    assert_eq!(node.ask(["endpoints"]).unwrap(), serde_json::json!([]));
    crate::eventually(|| {
        let now = node.intent().unwrap();
        (now != empty).then(|| format!("left: {now:#?}"))
    });
}

#[test]
fn rel_43_what_the_runtime_does_not_list_is_collected_and_nothing_else() {
    needs_root!();
    let lab = Lab::start(Plan::new(Routing::Direct, Families::Dual).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let a = node.add_pod("a").unwrap();
    let before = node.intent().unwrap();
    let b = node.add_pod("b").unwrap();
    let valid = json!({"cni.dev/valid-attachments": [{"containerID": a.container, "ifname": "eth0"}]});
    node.cni("GC", &b.container, &b.namespace.path(), &valid).unwrap();
    let endpoints = node.ask(["endpoints"]).unwrap();
    assert_eq!(endpoints.as_array().map(Vec::len), Some(1), "{endpoints}");
    assert_eq!(node.pod_devices().unwrap().len(), 1);
    assert_eq!(b.namespace.devices().unwrap(), ["lo"]);
    crate::eventually(|| {
        let now = node.intent().unwrap();
        (now != before).then(|| format!("before: {before:#?}\nleft: {now:#?}"))
    });
    traffic::ping(&node.namespace, a.ip(true), 56).unwrap();
}

/// Who is connected to it would wait for a quarter of an hour otherwise.
fn pod_goes(routing: Routing) {
    needs_root!();
    let lab = Lab::start(Plan::new(routing, Families::Dual)).unwrap();
    let [node, far] = lab.pair();
    let (a, b) = (node.add_pod("a").unwrap(), node.add_pod("b").unwrap());
    let c = far.add_pod("c").unwrap();
    let servers = [true, false].map(|v4| Echo::tcp(&b.namespace, b.ip(v4), 0).unwrap());
    let mut clients = Vec::new();
    for (from, server) in [&a, &c]
        .into_iter()
        .flat_map(|pod| servers.iter().map(move |server| (pod, server)))
    {
        let mut client = traffic::connect(&from.namespace, server.address).unwrap();
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
        clients.push((format!("{} to {}", from.name, server.address), client));
    }
    // Its processes never say that they end: their network has gone before.
    node.delete_pod(b).unwrap();
    for (name, client) in &mut clients {
        client.write_all(b"y").unwrap();
        let error = client.read_exact(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{name}");
    }
    let error = traffic::connect(&a.namespace, servers[0].address).unwrap_err();
    assert_eq!(kind_of(&error), Some(ErrorKind::ConnectionRefused));
}

#[test]
fn rel_38_connections_to_a_pod_that_is_deleted_end_at_once_direct() {
    pod_goes(Routing::Direct);
}

#[test]
fn rel_38_connections_to_a_pod_that_is_deleted_end_at_once_vxlan() {
    pod_goes(Routing::Vxlan);
}

/// Runtimes attach the networks of one container at the same time.
#[test]
fn interfaces_of_one_container_come_and_go_at_once() {
    needs_root!();
    let lab = Lab::start(Plan::new(Routing::Direct, Families::Dual).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let empty = node.intent().unwrap();
    let peer = node.add_pod("peer").unwrap();
    let guest = Namespace::create(&format!("{}-guest", lab.name())).unwrap();
    let interfaces = ["eth0", "net1", "net2"];
    let call = |verb: &str, interface: &str| {
        let mut command = node.cni_command(verb, lab.name(), &guest.path());
        command.env("CNI_IFNAME", interface);
        let output = node.feed(command, &json!({})).unwrap();
        assert!(output.status.success(), "{verb} {interface}: {output:?}");
        output.stdout
    };
    let at_once = |verb: &str| -> Vec<Vec<u8>> {
        thread::scope(|scope| {
            let calls = interfaces.map(|interface| scope.spawn(move || call(verb, interface)));
            calls.map(|call| call.join().unwrap()).into()
        })
    };
    let mut addresses = BTreeSet::new();
    for result in at_once("ADD") {
        let result: Value = serde_json::from_slice(&result).unwrap();
        for ip in result["ips"].as_array().unwrap() {
            let address = ip["address"].as_str().unwrap().split('/').next().unwrap();
            addresses.insert(address.parse::<IpAddr>().unwrap());
        }
    }
    assert_eq!(addresses.len(), 2 * interfaces.len(), "{addresses:?}");
    assert_eq!(node.pod_devices().unwrap().len(), 1 + interfaces.len());
    assert_eq!(node.dump("addresses").unwrap().len(), 2 * (1 + interfaces.len()));
    // Which of them has the default route is the first one's luck; that one talks.
    for v4 in [true, false] {
        traffic::ping(&guest, peer.ip(v4), 56).unwrap();
    }
    at_once("DEL");
    assert_eq!(guest.devices().unwrap(), ["lo"]);
    node.delete_pod(peer).unwrap();
    crate::runtimes::nothing_is_left(node, &empty);
}

#[test]
fn the_demo_shows_everything_and_leaves_nothing() {
    needs_root!();
    let demo = Command::new(env!("CARGO_BIN_EXE_demo"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let name = format!("mrlab-demo-{}", demo.id());
    let output = demo.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for part in [
        "direct routing",
        "VXLAN",
        "millrace status",
        "source_address",
        "0 lost",
        "nothing is left",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(leftovers(&name), Vec::<String>::new());
}

#[test]
fn a_lab_leaves_nothing_behind_even_by_a_panic() {
    needs_root!();
    let lab = Lab::start(Plan::new(Routing::Vxlan, Families::V4).nodes(1)).unwrap();
    let name = lab.name().to_owned();
    assert_ne!(leftovers(&name), Vec::<String>::new());
    let panic = thread::spawn(move || {
        let _pod = lab.nodes[0].add_pod("a").unwrap();
        let _lab = lab;
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert!(panic.join().is_err());
    assert_eq!(leftovers(&name), Vec::<String>::new());
}
