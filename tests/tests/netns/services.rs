//! Services from a folder of manifests, and what clients see of them.

mod associations;
mod bad_input;
mod choice;
mod direct;
mod external;
mod health;
mod large;
mod maglev;
mod narrow;
mod ports;
mod reach;
mod segments;
mod sockets;
mod witness;
mod xdp;

use std::net::SocketAddr;

use cni_tests::{
    lab::{Families, Lab, Plan, Pod, Routing, ServiceManifest, Signal, cluster_ip},
    traffic::{Echo, Steady, tcp, udp},
};
use serde_json::{Value, json};

use crate::{eventually, needs_root};

/// A lab whose agents serve Services.
pub(crate) fn plan(routing: Routing) -> Plan {
    let config =
        json!({ "services": { "proxy": "millrace", "cidrs": ["10.96.0.0/16", "fd00:10:96::/112"] } });
    Plan::new(routing, Families::Dual).config(config)
}

/// An echo server for each family in a pod, at this port.
pub(crate) fn serve(pod: &Pod, port: u16) -> Vec<Echo> {
    [true, false]
        .into_iter()
        .flat_map(|v4| {
            [
                Echo::tcp(&pod.namespace, pod.ip(v4), port).unwrap(),
                Echo::udp(&pod.namespace, pod.ip(v4), port).unwrap(),
            ]
        })
        .collect()
}

/// Has all agents know this Service, and waits until they have written it.
pub(crate) fn publish(lab: &Lab, service: &ServiceManifest) {
    for node in &lab.nodes {
        node.write_manifest(&service.file(), &service.objects()).unwrap();
    }
    for node in &lab.nodes {
        eventually(|| {
            let backends = node.ask(["dump", "backends"]).unwrap();
            let text = backends.to_string();
            let missing = service
                .addresses()
                .find(|ip| !text.contains(&format!("\"{ip}\"")));
            missing.map(|ip| format!("{} has no backend {ip}: {text}", node.name()))
        });
    }
}

fn reach(lab: &Lab, client: &Pod, service: &ServiceManifest) {
    for v4 in lab.plan.families.each() {
        let vip = SocketAddr::new(cluster_ip(service.number, v4), 80);
        tcp(&client.namespace, vip, 1000).unwrap();
        udp(&client.namespace, vip, 1000).unwrap();
    }
}

#[test]
fn svc_21_cluster_ip_is_reached_from_pods() {
    needs_root!();
    for routing in [Routing::Direct, Routing::Vxlan] {
        let lab = Lab::start(plan(routing)).unwrap();
        let client = lab.nodes[0].add_pod("client").unwrap();
        let near = lab.nodes[0].add_pod("near").unwrap();
        let far = lab.nodes[1].add_pod("far").unwrap();
        for (number, server) in [(1, &near), (2, &far)] {
            let echoes = serve(server, 8080);
            let service = ServiceManifest::new(number).endpoint(server, 8080);
            publish(&lab, &service);
            reach(&lab, &client, &service);
            // 22: whoever is asked sees the pod that asks.
            for echo in &echoes {
                let peers = echo.peers();
                assert!(
                    peers.iter().all(|peer| client.addresses.contains(&peer.ip())) && !peers.is_empty(),
                    "{routing:?} {number}: {peers:?}"
                );
            }
        }
    }
}

#[test]
fn svc_52_connections_and_new_ones_survive_the_agents_death() {
    needs_root!();
    let lab = Lab::start(plan(Routing::Direct)).unwrap();
    let node = &lab.nodes[0];
    let client = node.add_pod("client").unwrap();
    let (a, b) = (node.add_pod("a").unwrap(), lab.nodes[1].add_pod("b").unwrap());
    let _echoes = [serve(&a, 8080), serve(&b, 8080)];
    let service = ServiceManifest::new(1).endpoint(&a, 8080).endpoint(&b, 8080);
    publish(&lab, &service);
    let vip = SocketAddr::new(cluster_ip(1, true), 80);
    let flows = [
        Steady::tcp(&client.namespace, vip).unwrap(),
        Steady::connections(&client.namespace, vip).unwrap(),
        Steady::udp(&client.namespace, SocketAddr::new(cluster_ip(1, false), 80)).unwrap(),
    ];
    let go_on = || flows.iter().for_each(|flow| flow.wait_for(50));
    go_on();
    let before = rows(node);
    node.end_agent(Signal::SIGKILL).unwrap();
    go_on();
    node.start_agent().unwrap();
    node.wait_until_ready().unwrap();
    go_on();
    assert_eq!(rows(node), before, "numbers are the ones that connections bear");
    for flow in flows {
        assert_eq!(flow.stop().failures, Vec::<String>::new());
    }
}

fn rows(node: &cni_tests::lab::Node) -> Vec<Value> {
    let maps = [
        "services",
        "service_slots",
        "service_members",
        "backends",
        "maglev",
    ];
    maps.iter().map(|map| json!(node.dump(map).unwrap())).collect()
}

#[test]
fn svc_52_endpoints_come_and_go_under_traffic_and_nobody_notices() {
    needs_root!();
    let lab = Lab::start(plan(Routing::Direct)).unwrap();
    let node = &lab.nodes[0];
    let client = node.add_pod("client").unwrap();
    let pods: Vec<Pod> = ["a", "b", "c"]
        .iter()
        .map(|name| node.add_pod(name).unwrap())
        .collect();
    let _echoes: Vec<_> = pods.iter().map(|pod| serve(pod, 8080)).collect();
    let with = |number: &[usize]| {
        let endpoints = number.iter().map(|number| &pods[*number]);
        endpoints.fold(ServiceManifest::new(1), |service, pod| {
            service.endpoint(pod, 8080)
        })
    };
    publish(&lab, &with(&[0, 1]));
    let vip = SocketAddr::new(cluster_ip(1, true), 80);
    let established = Steady::tcp(&client.namespace, vip).unwrap();
    let fresh = Steady::connections(&client.namespace, vip).unwrap();
    for number in 0..30 {
        let sets: [&[usize]; 4] = [&[0, 1, 2], &[2], &[1, 2], &[0]];
        publish(&lab, &with(sets[number % 4]));
        fresh.wait_for(3);
    }
    assert_eq!(fresh.stop().failures, Vec::<String>::new());
    // The Service itself goes, and the connection stays.
    for node in &lab.nodes {
        std::fs::remove_file(node.folder().join("manifests").join(with(&[]).file())).unwrap();
    }
    eventually(|| {
        let services = node.dump("services").unwrap();
        (!services.is_empty()).then(|| format!("{services:?}"))
    });
    established.wait_for(20);
    assert_eq!(established.stop().failures, Vec::<String>::new());
    eventually(|| {
        let left = rows(node);
        left.iter()
            .any(|rows| *rows != json!([]))
            .then(|| format!("{left:?}"))
    });
}
