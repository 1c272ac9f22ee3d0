//! A Service of more endpoints than anybody has, and a small one beside it.

use std::net::IpAddr;

use cni_tests::lab::{Lab, Plan, Routing, ServiceManifest, cluster_ip};
use serde_json::{Value, json};

use super::{
    plan, publish,
    witness::{Flows, Servers, described, is_said, problems, vip, write},
};
use crate::{eventually, needs_root};

/// As many as there are ports of an address, in 66 slices.
const MANY: usize = 65_535;
const SLICE: usize = 1000;

/// Slices of a Service without anybody behind the addresses, from this one on.
fn slices(number: u8, name: &str, addresses: std::ops::Range<usize>) -> Value {
    let service = format!("service-{number}");
    let addresses: Vec<IpAddr> = addresses
        .map(|one| IpAddr::from((0x0a80_0000 + one as u32).to_be_bytes()))
        .collect();
    let slices = addresses.chunks(SLICE).enumerate().map(|(place, part)| {
        let endpoints = part.iter().map(|ip| json!({ "addresses": [ip] }));
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": format!("{service}-{name}-{place}"), "namespace": "lab",
                "labels": { "kubernetes.io/service-name": service },
            },
            "ports": [{ "name": "t", "port": 8080, "protocol": "TCP" }],
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    });
    json!({ "apiVersion": "v1", "kind": "List", "items": slices.collect::<Vec<_>>() })
}

fn roomy() -> Plan {
    let mut plan = plan(Routing::Direct).nodes(1);
    // Those that there are without a word, wherever the test runs.
    plan.config["maps"] = json!({ "serviceSlots": 262_144, "backends": 131_072 });
    plan
}

#[test]
fn a_service_of_as_many_endpoints_as_there_are_ports_is_served_whole_and_twice_as_many_keep_it() {
    needs_root!();
    let lab = Lab::start(roomy()).unwrap();
    let node = &lab.nodes[0];
    let client = node.add_pod("client").unwrap();
    let servers = Servers::start(node, &["small"]);
    publish(&lab, &ServiceManifest::new(2).endpoint(servers.pod(0), 8080));
    let summary = || {
        let status = node.ask(["status"]).unwrap();
        let services = &status["agent"]["services"];
        ["services", "backends", "slots"].map(|name| services[name].as_u64().unwrap_or_default() as usize)
    };
    let rows = || -> Vec<String> {
        let all = node.dump("services").unwrap().into_iter();
        all.filter(|row| row.contains(&cluster_ip(2, true).to_string()))
            .collect()
    };
    let before = rows();
    let small = Flows::begin(&client.namespace, 2);
    let ports = json!([{ "name": "t", "port": 80, "protocol": "TCP" }]);
    let big = ServiceManifest::new(1).spec(json!({
        "clusterIPs": [cluster_ip(1, true)], "ipFamilyPolicy": "SingleStack", "ports": ports,
    }));
    write(node, &big, &big.objects());
    let none = json!({ "apiVersion": "v1", "kind": "List", "items": [] });
    let more = "more.json";
    for (second, found, short) in [
        (0, MANY, false),
        (MANY, MANY, true),
        (1000, MANY + 1000, false),
        (0, MANY, false),
    ] {
        node.write_manifest("many.json", &slices(1, "many", 0..MANY))
            .unwrap();
        let rest = if second == 0 {
            none.clone()
        } else {
            slices(1, "more", MANY..MANY + second)
        };
        node.write_manifest(more, &rest).unwrap();
        // The small one has two protocols of two families.
        let wanted = [2, 4 + found, 4 + found];
        let is_short = "`maps.backends` is 131072";
        eventually(|| {
            let (now, problems) = (summary(), problems(node));
            // Slices come one by one: it keeps those that fitted before one did not.
            let good = if short {
                now[0] == 2 && now[1] == now[2] && now[1] >= wanted[1]
            } else {
                now == wanted
            };
            let good = good && problems.contains(is_short) == short;
            (!good).then(|| format!("{second} more: {now:?}, not {wanted:?}; {problems}"))
        });
        let found = summary()[1] - 4;
        is_said(node, "room", u64::from(short), &[]);
        let shown = described(node, 1);
        let behind = shown["frontends"].as_array().unwrap().iter();
        let behind: Vec<usize> = behind
            .filter(|front| front["port"] == 80)
            .map(|front| front["backends"].as_array().unwrap().len())
            .collect();
        assert_eq!(behind, [found], "{second} more");
        assert_eq!(shown["backends"].as_array().unwrap().len(), found);
        let said = shown["problems"].to_string();
        assert_eq!(said.contains("it keeps"), short, "{said}");
        assert_eq!(rows(), before);
        for v4 in [true, false] {
            servers.answers(0, &client.namespace, vip(2, v4));
        }
        small.go_on();
    }
    small.end();
}
