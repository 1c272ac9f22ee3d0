//! Where Services are reached, by whom, and which endpoints answer: settings and objects as operators write them, seen by packets.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use cni_tests::{
    frames::Ends,
    lab::{Lab, Node, Plan, Pod, Routing, ServiceManifest, Signal, cluster_ip, control_plane},
    netns::Namespace,
    traffic::{self, Echo, tcp, udp, udp_socket},
    wire::{Tap, holds},
};
use serde_json::{Value, json};

use super::external::{NODE_PORT, clients, node_port};
use super::{plan, publish, serve};
use crate::{eventually, kind_of, needs_root};

/// Starts the node's agent anew with these settings of Services beside the usual ones.
pub(super) fn restart(node: &Node, plan: &Plan, more: &Value) {
    let mut plan = plan.clone();
    let services = plan.config["services"].as_object_mut().unwrap();
    services.extend(more.as_object().unwrap().clone());
    node.end_agent(Signal::SIGTERM).unwrap();
    node.write_config(&plan).unwrap();
    node.start_agent().unwrap();
    node.wait_until_ready().unwrap();
}

/// The frontends of the first Service in the kernel; `None` while an agent that begins does not answer.
fn frontends(node: &Node) -> Option<Vec<Value>> {
    let services = node.ask(["services"]).ok()?;
    services.get(0)?["frontends"].as_array().cloned()
}

/// Waits until node ports lead from exactly these addresses.
#[track_caller]
fn node_ports_become(node: &Node, wanted: &BTreeSet<IpAddr>) {
    eventually(|| {
        let frontends = frontends(node).unwrap_or_default();
        let fronts = frontends.iter().filter(|front| front["port"] == NODE_PORT);
        let found: BTreeSet<IpAddr> = fronts
            .map(|front| front["address"].as_str().unwrap().parse().unwrap())
            .collect();
        (found != *wanted).then(|| format!("{found:?}, not {wanted:?}"))
    });
}

/// Whether somebody answers, by streams and by datagrams alike. Who does not listen says so at once.
#[track_caller]
fn answers(from: &Namespace, to: SocketAddr) -> bool {
    let found = [tcp(from, to, 1000), udp(from, to, 1000)];
    for error in found.iter().filter_map(|found| found.as_ref().err()) {
        assert_eq!(kind_of(error), Some(ErrorKind::ConnectionRefused), "{error:#}");
    }
    assert_eq!(found[0].is_ok(), found[1].is_ok(), "{to}: {found:?}");
    found[0].is_ok()
}

fn loopback(v4: bool) -> IpAddr {
    if v4 {
        [127, 0, 0, 1].into()
    } else {
        [0, 0, 0, 0, 0, 0, 0, 1u16].into()
    }
}

#[test]
fn svc_30_svc_32_node_ports_answer_at_the_addresses_that_the_settings_name_and_at_no_other() {
    needs_root!();
    let lab = Lab::start(plan(Routing::Direct)).unwrap();
    let [node, far] = lab.pair();
    let (client, server) = (node.add_pod("client").unwrap(), node.add_pod("server").unwrap());
    let beyond = far.add_pod("beyond").unwrap();
    let echoes = serve(&server, 8080);
    let service = ServiceManifest::new(1).spec(node_port("Cluster"));
    publish(&lab, &service.endpoint_at(&server, 8080, "node0", json!({})));
    let first = [true, false].map(|v4| node.address(v4));
    let second = [true, false].map(|v4| node.second_address(v4));
    let local = [true, false].map(loopback);
    for (settings, wanted) in [
        (json!({ "nodePortAddresses": ["primary"] }), first.to_vec()),
        (
            json!({ "nodePortAddresses": ["192.168.128.0/24", "fd78::/16"] }),
            second.to_vec(),
        ),
        // One family's range says nothing of the other one.
        (
            json!({ "nodePortAddresses": [format!("{}/32", second[0])] }),
            vec![second[0]],
        ),
        (
            json!({ "nodePortAddresses": ["0.0.0.0/0", "::/0"] }),
            [first, second].concat(),
        ),
        (
            json!({ "nodePortAddresses": ["0.0.0.0/0"], "localhostNodePorts": true }),
            [vec![first[0], second[0]], local.to_vec()].concat(),
        ),
        (json!({ "localhostNodePorts": true }), [first, local].concat()),
    ] {
        restart(node, &lab.plan, &settings);
        let wanted: BTreeSet<IpAddr> = wanted.into_iter().collect();
        node_ports_become(node, &wanted);
        for ip in [first, second].concat() {
            let to = SocketAddr::new(ip, NODE_PORT);
            for from in [&lab.outside, &client.namespace, &beyond.namespace] {
                let found = answers(from, to);
                assert_eq!(
                    found,
                    wanted.contains(&ip),
                    "{settings}: {to} from {}",
                    from.name()
                );
            }
        }
        for ip in [local, first, second].concat() {
            let to = SocketAddr::new(ip, NODE_PORT);
            let found = node.with_sockets(|| answers(&node.namespace, to));
            assert_eq!(found, wanted.contains(&ip), "{settings}: {to} from the node");
        }
    }
    // With the last of them: the loopback is the node's own, also where the kernel would let others in.
    for device in ["all", "eth0"] {
        let setting = format!("/proc/sys/net/ipv4/conf/{device}/route_localnet");
        assert_eq!(node.namespace.read(&setting).unwrap(), "0\n", "{device}");
    }
    node.namespace
        .set("net/ipv4/conf/eth0/route_localnet", "1")
        .unwrap();
    nobody_else_reaches_the_loopback(&lab, &beyond, &server, &echoes);
}

/// Packets of others to the loopback, whoever they say that they are from: none reaches the endpoint.
fn nobody_else_reaches_the_loopback(lab: &Lab, beyond: &Pod, server: &Pod, echoes: &[Echo]) {
    let [node, far] = lab.pair();
    let link = Tap::open(&lab.fabric, "node0").unwrap();
    let heard = Tap::open(&server.namespace, "eth0").unwrap();
    let before = clients(echoes);
    for v4 in [true, false] {
        for src in [lab.outside_address(v4), far.address(v4), beyond.ip(v4)] {
            let ends = Ends {
                src_mac: lab.fabric.mac("node0").unwrap(),
                dst_mac: node.namespace.mac("eth0").unwrap(),
                src,
                dst: loopback(v4),
                src_port: 4321,
                dst_port: NODE_PORT,
                ttl: 64,
            };
            link.send(&ends.udp(b"not for you")).unwrap();
            link.send(&ends.tcp(2, b"not for you")).unwrap();
            // What comes behind them says that they are gone.
            let last = format!("the last of {src}");
            let to = SocketAddr::new(node.address(v4), NODE_PORT);
            let socket = udp_socket(&lab.outside, to).unwrap();
            socket.send(last.as_bytes()).unwrap();
            let (_, passed) = heard.catch(&last, |frame| holds(frame, last.as_bytes())).unwrap();
            let strays = passed.iter().filter(|frame| holds(frame, b"not for you"));
            assert_eq!(strays.count(), 0, "{src}");
        }
    }
    assert_eq!(clients(echoes), before);
}

/// One node, by which the network reaches a load balancer's address.
pub(super) fn lab_before(vip: IpAddr) -> Lab {
    let lab = Lab::start(plan(Routing::Direct).nodes(1)).unwrap();
    let route = format!("route add {vip} via {}", lab.nodes[0].address(true));
    lab.fabric.ip(&route).unwrap();
    lab
}

/// A load balancer of IPv4 alone for everybody in these ranges, at an address that is no node's.
pub(super) fn balanced(server: &Pod, vip: IpAddr, ranges: &[String]) -> ServiceManifest {
    let mut spec = node_port("Cluster");
    spec.as_object_mut().unwrap().extend([
        ("type".to_owned(), json!("LoadBalancer")),
        ("clusterIPs".to_owned(), json!([cluster_ip(1, true)])),
        ("ipFamilyPolicy".to_owned(), json!("SingleStack")),
        ("loadBalancerSourceRanges".to_owned(), json!(ranges)),
    ]);
    ServiceManifest::new(1)
        .spec(spec)
        .status(json!({ "loadBalancer": { "ingress": [{ "ip": vip }] } }))
        .endpoint_at(server, 8080, "node0", json!({}))
}

/// The word of a key that says where a range of IPv4 begins.
fn network(range: &str) -> Option<u32> {
    let ip: Ipv4Addr = range.split('/').next()?.parse().ok()?;
    Some(u32::from_ne_bytes(ip.octets()))
}

#[test]
fn svc_40_source_ranges_let_in_whom_they_hold_and_those_of_the_other_family_nobody() {
    needs_root!();
    let vip: IpAddr = [198, 51, 100, 40].into();
    let lab = lab_before(vip);
    let node = &lab.nodes[0];
    let server = node.add_pod("server").unwrap();
    let _echoes = serve(&server, 8080);
    let outside = lab.outside_address(true);
    let (here, elsewhere) = (format!("{outside}/32"), "2001:db8:9::/48".to_owned());
    let problems = || node.ask(["status"]).unwrap()["agent"]["problems"].to_string();
    let mut shut_out = 0;
    for (ranges, open, complains) in [
        (vec![here.clone()], true, false),
        (vec![elsewhere.clone()], false, true),
        (vec![elsewhere.clone(), here.clone()], true, false),
        (vec!["198.18.0.0/15".to_owned()], false, false),
        (vec![], true, false),
        (vec![elsewhere], false, true),
    ] {
        let service = balanced(&server, vip, &ranges);
        node.write_manifest(&service.file(), &service.objects()).unwrap();
        eventually(|| {
            let fronts = frontends(node).unwrap_or_default();
            let at_vip = fronts.iter().filter(|front| front["address"] == json!(vip));
            let restricted: BTreeSet<bool> = at_vip.map(|front| front["restricted"] == true).collect();
            let rows = node.dump("service_ranges").unwrap();
            let networks = ranges.iter().filter_map(|range| network(range));
            let written = |network: u32| rows.iter().any(|row| row.contains(&network.to_string()));
            let good = restricted == [!ranges.is_empty()].into()
                && rows.len() == networks.clone().count()
                && networks.clone().all(written)
                && problems().contains("loadBalancerSourceRanges") == complains;
            (!good).then(|| format!("{ranges:?}: {restricted:?}, {rows:?}, {}", problems()))
        });
        let to = SocketAddr::new(vip, 80);
        if open {
            tcp(&lab.outside, to, 1000).unwrap();
            udp(&lab.outside, to, 1000).unwrap();
        } else {
            shut_out += 1;
            let socket = udp_socket(&lab.outside, to).unwrap();
            socket.send(b"let me in").unwrap();
            eventually(|| {
                let drops = node.drops().unwrap();
                let shut = drops.get("service_source/ingress") == Some(&shut_out);
                (!shut).then(|| format!("{ranges:?}: {drops:?}"))
            });
        }
        // Of the node's own addresses they say nothing.
        tcp(&lab.outside, SocketAddr::new(node.address(true), NODE_PORT), 1000).unwrap();
    }
    let said = problems();
    for word in [
        "lab/service-1",
        "spec.loadBalancerSourceRanges",
        "0.0.0.0/0",
        "198.51.100.40",
    ] {
        assert!(said.contains(word), "{said}");
    }
}

/// The Node object with this zone.
fn zone(lab: &Lab, zone: Option<&str>) -> Value {
    let mut node = control_plane::node(&lab.plan, 0);
    if let Some(zone) = zone {
        node["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!(zone);
    }
    node
}

/// Which endpoints new connections to any of its frontends get, if such hints have chosen them.
fn behind(service: &Value, hints: &str) -> BTreeSet<IpAddr> {
    let fronts = service["frontends"].as_array().into_iter().flatten();
    let numbers: Vec<&Value> = fronts
        .filter(|front| front["hints"] == hints)
        .flat_map(|front| front["backends"].as_array().unwrap())
        .collect();
    let backends = service["backends"].as_array().into_iter().flatten();
    backends
        .filter(|backend| numbers.contains(&&backend["number"]))
        .map(|backend| backend["address"].as_str().unwrap().parse().unwrap())
        .collect()
}

#[test]
fn svc_19_a_nodes_new_zone_moves_connections_to_the_endpoints_that_are_meant_for_it() {
    needs_root!();
    let lab = Lab::start(plan(Routing::Direct).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let client = node.add_pod("client").unwrap();
    let pods = ["a", "b"].map(|name| node.add_pod(name).unwrap());
    let service = ServiceManifest::new(1)
        .spec(json!({ "trafficDistribution": "PreferSameNode" }))
        .endpoint(&pods[0], 8080)
        .endpoint(&pods[1], 8080);
    publish(&lab, &service);
    // The controller's hints, and not what it was told.
    let mut objects = service.objects();
    for slice in objects["items"].as_array_mut().unwrap() {
        let name = slice["metadata"]["name"].as_str().unwrap().to_owned();
        if let Some(endpoint) = slice.pointer_mut("/endpoints/0") {
            let zone = if name.ends_with("-0") { "a" } else { "b" };
            endpoint["hints"] = json!({ "forZones": [{ "name": zone }] });
        }
    }
    node.write_manifest(&service.file(), &objects).unwrap();
    for (label, answering, hints) in [
        (Some("a"), &[0][..], "same_zone"),
        (Some("b"), &[1], "same_zone"),
        // A zone for which nobody is meant, and none at all.
        (Some("c"), &[0, 1], "anywhere"),
        (Some("a"), &[0], "same_zone"),
        (None, &[0, 1], "anywhere"),
    ] {
        node.write_manifest("nodes.yaml", &zone(&lab, label)).unwrap();
        let mut wanted = answering
            .iter()
            .flat_map(|pod| &pods[*pod].addresses)
            .collect::<Vec<_>>();
        wanted.sort();
        eventually(|| {
            let service = node.ask(["services"]).unwrap()[0].clone();
            let found = behind(&service, hints);
            (found.iter().ne(wanted.iter().copied())).then(|| format!("{label:?}: {service}"))
        });
        let echoes = [0, 1].map(|number: usize| serve(&pods[number], 8080));
        for v4 in [true, false] {
            let vip = SocketAddr::new(cluster_ip(1, v4), 80);
            // Of two alike, one is left out by 30 choices in one of a billion runs.
            for _ in 0..15 {
                tcp(&client.namespace, vip, 10).unwrap();
                udp(&client.namespace, vip, 10).unwrap();
            }
        }
        let asked = echoes.map(|echoes| echoes.iter().map(Echo::times).sum::<usize>());
        for (number, times) in asked.iter().enumerate() {
            assert_eq!(*times > 0, answering.contains(&number), "{label:?}: {asked:?}");
        }
    }
}

/// Also one that two Services share: the one that is left answers for it.
#[test]
fn a_load_balancers_address_answers_pings_as_long_as_a_service_has_it() {
    needs_root!();
    let vip: IpAddr = [198, 51, 100, 41].into();
    let lab = lab_before(vip);
    let node = &lab.nodes[0];
    let server = node.add_pod("server").unwrap();
    let first = balanced(&server, vip, &[]);
    let second = ServiceManifest::new(2)
        .spec(json!({
            "type": "LoadBalancer", "clusterIPs": [cluster_ip(2, true)],
            "ports": [{ "name": "other", "port": 81, "protocol": "TCP" }],
        }))
        .status(json!({ "loadBalancer": { "ingress": [{ "ip": vip }] } }));
    let none = json!({ "apiVersion": "v1", "kind": "List", "items": [] });
    let rows = || {
        node.dump("services")
            .unwrap()
            .join("\n")
            .matches(&vip.to_string())
            .count()
    };
    let rows_become =
        |wanted: usize| eventually(|| (rows() != wanted).then(|| format!("{} rows of {wanted}", rows())));
    let write =
        |service: &ServiceManifest, objects: &Value| node.write_manifest(&service.file(), objects).unwrap();
    let answers = || {
        for from in [&lab.outside, &server.namespace, &node.namespace] {
            traffic::ping(from, vip, 56).unwrap();
        }
    };
    // TCP and UDP of one port in both scopes, TCP of another one, and the address.
    write(&first, &first.objects());
    write(&second, &second.objects());
    rows_become(7);
    answers();
    let problems = node.ask(["status"]).unwrap()["agent"]["problems"].to_string();
    assert!(!problems.contains("is Service"), "{problems}");
    write(&first, &none);
    rows_become(3);
    answers();
    write(&second, &none);
    rows_become(0);
}
