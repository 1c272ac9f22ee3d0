//! Clients from outside whose packets a router moves from one node to another.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use cni_tests::{
    lab::{Lab, Node, Pod, Routing, ServiceManifest, Signal},
    patience,
    traffic::Echo,
};
use serde_json::json;

use super::{plan, publish};
use crate::{eventually, needs_root};

const CLIENTS: u16 = 40;

/// The address of a load balancer that is no node's.
fn address(v4: bool) -> IpAddr {
    let text = if v4 { "198.51.100.7" } else { "2001:db8:51::7" };
    text.parse().unwrap()
}

/// From now on the router leads to the address by this node.
fn lead(lab: &Lab, node: &Node) {
    for v4 in [true, false] {
        let line = format!("route replace {} via {}\n", address(v4), node.address(v4));
        lab.fabric.ip(&line).unwrap();
    }
}

/// Sends a datagram of each client and gives who answered it.
fn ask(sockets: &[UdpSocket], echoes: &[Echo]) -> BTreeMap<u16, SocketAddr> {
    let answerers = sockets.iter().map(|socket| {
        let before: Vec<usize> = echoes.iter().map(Echo::times).collect();
        socket.send(b"who are you?").unwrap();
        let mut answer = [0; 64];
        socket.recv(&mut answer).unwrap();
        let mut heard = echoes
            .iter()
            .zip(before)
            .filter(|(echo, before)| echo.times() > *before);
        let echo = heard.next().unwrap().0;
        (socket.local_addr().unwrap().port(), echo.address)
    });
    answerers.collect()
}

/// At ports that are the same every time, so that their places are.
fn clients(lab: &Lab, first: u16, v4: bool) -> Vec<UdpSocket> {
    let socket = |port| {
        let socket = UdpSocket::bind(SocketAddr::new(lab.outside_address(v4), port)).unwrap();
        socket.connect(SocketAddr::new(address(v4), 80)).unwrap();
        socket
            .set_read_timeout(Some(patience(Duration::from_secs(30))))
            .unwrap();
        socket
    };
    lab.outside.run(|| (first..first + CLIENTS).map(socket).collect())
}

#[test]
fn every_node_gives_a_client_the_same_endpoint() {
    needs_root!();
    let lab = Lab::start(plan(Routing::Direct)).unwrap();
    let [one, other] = lab.pair();
    let pods: Vec<Pod> = ["a", "b", "c"]
        .iter()
        .zip([one, other, one])
        .map(|(name, node)| node.add_pod(name).unwrap())
        .collect();
    let ingress: Vec<_> = [true, false].map(|v4| json!({ "ip": address(v4) })).into();
    let service = |pods: &[Pod]| {
        let service = ServiceManifest::new(1)
            .spec(json!({ "type": "LoadBalancer" }))
            .status(json!({ "loadBalancer": { "ingress": ingress } }))
            .annotation("millrace.dev/lb-algorithm", "maglev");
        pods.iter()
            .fold(service, |service, pod| service.endpoint(pod, 8080))
    };
    publish(&lab, &service(&pods));
    let shown = one.ask(["services", "service-1"]).unwrap().to_string();
    assert!(shown.contains("\"maglev\"") && shown.contains("1021"), "{shown}");
    for v4 in [true, false] {
        let echoes: Vec<Echo> = pods
            .iter()
            .map(|pod| Echo::udp(&pod.namespace, pod.ip(v4), 8080).unwrap())
            .collect();
        let sockets = clients(&lab, 20_000, v4);
        lead(&lab, one);
        let by_one = ask(&sockets, &echoes);
        lead(&lab, other);
        assert_eq!(ask(&sockets, &echoes), by_one);
        let mut found: Vec<&SocketAddr> = by_one.values().collect();
        found.sort();
        found.dedup();
        assert_eq!(found.len(), pods.len(), "each of them gets some");
    }
    let rows = super::rows(one);
    let empty = rows.iter().filter(|rows| **rows == json!([]));
    assert_eq!(empty.count(), 1, "members are a matter of affinity: {rows:?}");
    one.end_agent(Signal::SIGKILL).unwrap();
    one.start_agent().unwrap();
    one.wait_until_ready().unwrap();
    assert_eq!(super::rows(one), rows, "the next agent changes no row");
    // One of them goes: who is with another one stays there, though the packets come to a node that has not seen any.
    let sockets = clients(&lab, 21_000, true);
    let echoes: Vec<Echo> = pods
        .iter()
        .map(|pod| Echo::udp(&pod.namespace, pod.ip(true), 8080).unwrap())
        .collect();
    lead(&lab, one);
    let before = ask(&sockets, &echoes);
    publish(&lab, &service(&pods[..2]));
    let gone = pods[2].ip(true);
    for node in [one, other] {
        eventually(|| {
            let text = node.ask(["dump", "backends"]).unwrap().to_string();
            text.contains(&format!("\"{gone}\"")).then_some(text)
        });
    }
    lead(&lab, other);
    let after = ask(&sockets, &echoes);
    let (mut stayed, mut moved) = (0, Vec::new());
    for (client, answerer) in before.iter().filter(|(_, answerer)| answerer.ip() != gone) {
        if after[client] == *answerer {
            stayed += 1;
        } else {
            moved.push(client);
        }
    }
    assert!(moved.len() * 10 <= stayed, "{stayed} stayed, {moved:?} moved");
    assert!(after.values().all(|answerer| answerer.ip() != gone));
}
