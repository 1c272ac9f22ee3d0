//! Objects that ask for what cannot be: their problem, said and counted, and nobody else's.

use std::net::SocketAddr;

use cni_tests::{
    lab::{Lab, Pod, Routing, ServiceManifest, cluster_ip},
    netns::Namespace,
    traffic::{Echo, tcp},
};
use serde_json::{Value, json};

use super::{
    plan, publish, serve,
    witness::{Flows, Servers, described, is_said, problems, vip, write},
};
use crate::{eventually, needs_root};

const NODE_PORT: u16 = 30_080;
/// Of the Service that has nothing to do with it.
const OTHER_PORT: u16 = 30_081;

/// What is asked of a Service that has nothing to do with what happens, with a pod of its own.
fn beside(lab: &Lab, from: &Namespace, number: u8) -> Flows {
    let pod = lab.nodes[0].add_pod("beside").unwrap();
    let echoes = serve(&pod, 8080);
    let (service, objects) = at_node_port(number, OTHER_PORT, &pod, None);
    write(&lab.nodes[0], &service, &objects);
    publish(lab, &service);
    Flows::begin(from, number).answered_by(echoes)
}

/// A Service with a node port, of this age.
fn at_node_port(number: u8, port: u16, server: &Pod, created: Option<&str>) -> (ServiceManifest, Value) {
    let spec = json!({
        "type": "NodePort", "ports": [
            { "name": "t", "port": 80, "nodePort": port, "protocol": "TCP" },
            { "name": "u", "port": 80, "nodePort": port, "protocol": "UDP" },
        ],
    });
    let service = ServiceManifest::new(number).spec(spec).endpoint(server, 8080);
    let mut objects = service.objects();
    if let Some(created) = created {
        objects["items"][0]["metadata"]["creationTimestamp"] = json!(created);
    }
    (service, objects)
}

#[test]
fn svc_30_a_node_port_of_two_services_is_the_older_ones_and_the_younger_has_its_cluster_ip() {
    needs_root!();
    let lab = Lab::start(plan(Routing::Direct).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let client = node.add_pod("client").unwrap();
    let servers = Servers::start(node, &["a", "b"]);
    let third = beside(&lab, &client.namespace, 3);
    let at = |port, v4| SocketAddr::new(node.address(v4), port);
    // By when each of both was made, if it is there; which of them has the node port, and whether the other one complains.
    const EARLY: Option<&str> = Some("2026-01-01T00:00:00Z");
    const LATE: Option<&str> = Some("2026-01-01T00:00:01Z");
    for (created, owner, complains) in [
        ([Some(LATE), None], 1, false),
        ([Some(LATE), Some(EARLY)], 2, true),
        ([Some(None), Some(EARLY)], 1, true),
        ([Some(LATE), Some(None)], 2, true),
        // By name.
        ([Some(EARLY), Some(EARLY)], 1, true),
        ([Some(None), Some(None)], 1, true),
        ([None, Some(LATE)], 2, false),
    ] {
        let mut there = Vec::new();
        for (number, created) in (1..).zip(created) {
            let server = servers.pod(usize::from(number) - 1);
            let (service, mut objects) = at_node_port(number, NODE_PORT, server, created.flatten());
            if created.is_some() {
                there.push(number);
            } else {
                objects = json!({ "apiVersion": "v1", "kind": "List", "items": [] });
            }
            write(node, &service, &objects);
        }
        let names = |services: &Value| -> Vec<String> {
            let all = services.as_array().into_iter().flatten();
            all.map(|one| one["name"]["name"].as_str().unwrap().to_owned())
                .collect()
        };
        let wanted = there.iter().chain(&[3]).map(|number| format!("service-{number}"));
        let wanted: Vec<String> = wanted.collect();
        eventually(|| {
            let services = node.ask(["services"]).unwrap();
            let fronts = services.as_array().unwrap().iter().filter(|service| {
                let mut fronts = service["frontends"].as_array().unwrap().iter();
                fronts.any(|front| front["port"] == NODE_PORT)
            });
            let owners = names(&json!(fronts.collect::<Vec<_>>()));
            let good = names(&services) == wanted && owners == [format!("service-{owner}")];
            (!good).then(|| format!("{created:?}: {owners:?}, {services}"))
        });
        for v4 in [true, false] {
            servers.answers(owner - 1, &lab.outside, at(NODE_PORT, v4));
            servers.answers(owner - 1, &client.namespace, at(NODE_PORT, v4));
            let other = servers.answering(&lab.outside, at(OTHER_PORT, v4));
            assert_eq!(other, Vec::<usize>::new(), "{created:?}");
            for number in &there {
                servers.answers(usize::from(*number) - 1, &client.namespace, vip(*number, v4));
            }
        }
        let other = 3 - owner;
        let complaint = format!(
            "Service lab/service-{other}: {} port {NODE_PORT} is Service lab/service-{owner}'s",
            node.address(true)
        );
        let complaint = [complaint.as_str()];
        let words = if complains { &complaint[..] } else { &[] };
        is_said(node, "frontend", u64::from(complains), words);
        if complains {
            let said = described(node, other as u8)["problems"].to_string();
            assert!(said.contains(complaint[0]), "{created:?}: {said}");
            assert_eq!(described(node, owner as u8)["problems"], json!([]), "{created:?}");
        }
        assert!(complains || problems(node) == "[]", "{created:?}");
        assert_eq!(described(node, 3)["problems"], json!([]), "{created:?}");
        third.go_on();
    }
    third.end();
}

#[test]
fn rel_52_an_address_that_is_none_is_said_by_its_field_and_the_last_good_version_stays() {
    needs_root!();
    let lab = Lab::start(plan(Routing::Direct).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let client = node.add_pod("client").unwrap();
    let servers = Servers::start(node, &["a"]);
    let bad = ServiceManifest::new(1).endpoint(servers.pod(0), 8080);
    let good = beside(&lab, &client.namespace, 2);
    let cases = [
        (
            json!({ "clusterIPs": ["10.96.0.300"] }),
            "spec.clusterIPs[0]",
            "`10.96.0.300`",
        ),
        (
            json!({ "clusterIPs": [cluster_ip(1, true), "fd00:10:96::1::"] }),
            "spec.clusterIPs[1]",
            "`fd00:10:96::1::`",
        ),
        (
            json!({ "clusterIP": "10.96.0.1.2" }),
            "spec.clusterIP",
            "`10.96.0.1.2`",
        ),
        (
            json!({ "clusterIPs": "10.96.0.1" }),
            "spec.clusterIPs",
            "sequence",
        ),
        // What the API server keeps next to each other must fit.
        (
            json!({ "ipFamilies": ["IPv6", "IPv4"] }),
            "spec.ipFamilies[0]",
            "IPv6",
        ),
        (
            json!({ "ipFamilies": ["IPv4", "IPX"] }),
            "spec.ipFamilies[1]",
            "IPX",
        ),
    ];
    let write_bad = |spec: &Value| {
        let mut objects = bad.objects();
        let whole = objects["items"][0]["spec"].as_object_mut().unwrap();
        whole.extend(spec.as_object().unwrap().clone());
        write(node, &bad, &objects);
    };
    let services = || node.dump("services").unwrap();
    let alone = services();
    // Never good.
    for (spec, field, value) in &cases {
        write_bad(spec);
        is_said(node, "unread", 1, &["Service lab/service-1", field, value]);
        assert_eq!(services(), alone, "{spec}");
        good.go_on();
    }
    publish(&lab, &bad);
    is_said(node, "unread", 0, &[]);
    assert_eq!(problems(node), "[]");
    let both = services();
    assert!(both.len() > alone.len());
    let held = Flows::begin(&client.namespace, 1);
    for (spec, field, value) in &cases {
        write_bad(spec);
        is_said(
            node,
            "unread",
            1,
            &[
                "Service lab/service-1",
                field,
                value,
                "last good version stays in force",
            ],
        );
        assert_eq!(services(), both, "{spec}");
        for v4 in [true, false] {
            servers.answers(0, &client.namespace, vip(1, v4));
        }
        held.go_on();
    }
    write_bad(&json!({}));
    is_said(node, "unread", 0, &[]);
    held.end();
    good.end();
}

/// Addresses that mean something else on every machine, or none at all.
const NOBODYS: [&[&str]; 2] = [
    &[
        "127.0.0.1",
        "169.254.1.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "0x10.77.0.9",
    ],
    &["::1", "fe80::1", "::", "ff02::1", "::ffff:10.1.2.3", "10.77.0.9"],
];

#[test]
fn svc_05_rel_25_of_endpoints_that_nobody_can_be_none_is_asked_and_the_good_one_gets_everything() {
    needs_root!();
    let lab = Lab::start(plan(Routing::Direct).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let client = node.add_pod("client").unwrap();
    let servers = Servers::start(node, &["a"]);
    let (service, mut objects) = at_node_port(1, NODE_PORT, servers.pod(0), None);
    let other = beside(&lab, &client.namespace, 2);
    // Whoever would be asked by mistake would answer.
    let loopbacks: Vec<Echo> = ["127.0.0.1", "::1"]
        .iter()
        .flat_map(|ip| [&client.namespace, &node.namespace, &servers.pod(0).namespace].map(|of| (ip, of)))
        .map(|(ip, of)| Echo::tcp(of, ip.parse().unwrap(), 8080).unwrap())
        .collect();
    let bad = |family: &str, addresses: &[&str]| {
        let endpoints = addresses
            .iter()
            .map(|ip| json!({ "addresses": [ip], "nodeName": "node0" }));
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {
                "name": format!("bad-{family}").to_lowercase(), "namespace": "lab",
                "labels": { "kubernetes.io/service-name": "service-1" },
            },
            "ports": [
                { "name": "t", "port": 8080, "protocol": "TCP" }, { "name": "u", "port": 8080, "protocol": "UDP" },
            ],
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    };
    write(node, &service, &objects);
    publish(&lab, &service);
    let endpoints = || -> Vec<Value> {
        let service = described(node, 1);
        let backends = service["backends"].as_array().unwrap().iter();
        backends.map(|backend| backend["address"].clone()).collect()
    };
    let before = endpoints();
    let items = objects["items"].as_array_mut().unwrap();
    for (family, addresses) in ["IPv4", "IPv6"].into_iter().zip(NOBODYS) {
        let own = cluster_ip(1, family == "IPv4").to_string();
        items.push(bad(family, &[addresses, &[own.as_str()]].concat()));
    }
    write(node, &service, &objects);
    let own = |v4| format!("its own address {} is among its endpoints", cluster_ip(1, v4));
    is_said(
        node,
        "object",
        1,
        &[
            "EndpointSlice lab/bad-ipv4: endpoints[0].addresses[0]: 127.0.0.1 is no address of a machine; 6 endpoints",
            "EndpointSlice lab/bad-ipv6: endpoints[0].addresses[0]: ::1 is no address of a machine; 6 endpoints",
            &own(true),
            &own(false),
        ],
    );
    assert_eq!(endpoints(), before);
    assert_eq!(described(node, 2)["problems"], json!([]));
    for v4 in [true, false] {
        let port = SocketAddr::new(node.address(v4), NODE_PORT);
        // Of eight alike, the others are left out by twenty choices in one of 10^18 runs.
        for _ in 0..20 {
            servers.answers(0, &client.namespace, vip(1, v4));
            servers.answers(0, &lab.outside, port);
            node.with_sockets(|| servers.answers(0, &node.namespace, vip(1, v4)));
        }
    }
    assert_eq!(loopbacks.iter().map(Echo::times).sum::<usize>(), 0);
    // Alone they are as good as none: refused, and not led there.
    let items = objects["items"].as_array_mut().unwrap();
    items.retain(|item| {
        let name = item["metadata"]["name"].as_str().unwrap();
        name == "service-1" || name.starts_with("bad-")
    });
    write(node, &service, &objects);
    eventually(|| (!endpoints().is_empty()).then(|| format!("{:?}", endpoints())));
    for v4 in [true, false] {
        let error = tcp(&client.namespace, vip(1, v4), 10).unwrap_err();
        assert_eq!(
            crate::kind_of(&error),
            Some(std::io::ErrorKind::ConnectionRefused),
            "{error:#}"
        );
    }
    other.end();
}
