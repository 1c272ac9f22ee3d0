//! Services for clients that are in no node and no pod.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
};

use cni_tests::{
    lab::{Lab, Node, Pod, Routing, ServiceManifest},
    traffic::{Echo, tcp, udp, udp_socket},
};
use serde_json::{Value, json};

use super::{plan, publish, reach, serve};
use crate::{eventually, needs_root};

pub(super) const NODE_PORT: u16 = 30080;

pub(super) fn node_port(policy: &str) -> Value {
    json!({
        "type": "NodePort", "externalTrafficPolicy": policy,
        "ports": [
            { "name": "t", "port": 80, "nodePort": NODE_PORT, "protocol": "TCP" },
            { "name": "u", "port": 80, "nodePort": NODE_PORT, "protocol": "UDP" },
        ],
    })
}

/// The addresses of those that have talked to any of these.
pub(super) fn clients(echoes: &[Echo]) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = echoes
        .iter()
        .flat_map(Echo::peers)
        .map(|peer| peer.ip())
        .collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn svc_30_svc_33_svc_34_a_client_outside_of_all_nodes_uses_a_node_port() {
    needs_root!();
    for routing in [Routing::Direct, Routing::Vxlan] {
        let lab = Lab::start(plan(routing)).unwrap();
        let [near, far] = lab.pair();
        let pod = far.add_pod("pod").unwrap();
        let outside: Vec<IpAddr> = [true, false].map(|v4| lab.outside_address(v4)).into();
        let reach = |node: &Node| {
            for v4 in [true, false] {
                let to = SocketAddr::new(node.address(v4), NODE_PORT);
                tcp(&lab.outside, to, 100_000).unwrap();
                udp(&lab.outside, to, 1000).unwrap();
            }
        };
        // By a node without the pod, the other one sees that node and not the client.
        let echoes = serve(&pod, 8080);
        let service = |policy| {
            ServiceManifest::new(1)
                .spec(node_port(policy))
                .endpoint_at(&pod, 8080, "node1", json!({}))
        };
        publish(&lab, &service("Cluster"));
        reach(near);
        // So does a node that asks another one.
        for v4 in [true, false] {
            let to = SocketAddr::new(far.address(v4), NODE_PORT);
            near.with_sockets(|| tcp(&near.namespace, to, 100_000)).unwrap();
            near.with_sockets(|| udp(&near.namespace, to, 1000)).unwrap();
        }
        let seen = clients(&echoes);
        assert!(
            !seen.is_empty() && !seen.iter().any(|ip| outside.contains(ip)),
            "{routing:?} {seen:?}"
        );
        drop(echoes);
        // A local endpoint sees the client itself.
        let echoes = serve(&pod, 8081);
        let local =
            ServiceManifest::new(1)
                .spec(node_port("Local"))
                .endpoint_at(&pod, 8081, "node1", json!({}));
        publish(&lab, &local);
        eventually(|| {
            let text = far.ask(["dump", "backends"]).unwrap().to_string();
            (!text.contains("8081")).then_some(text)
        });
        reach(far);
        assert_eq!(clients(&echoes), outside, "{routing:?}");
    }
}

#[test]
fn svc_24_where_everybody_is_masqueraded_endpoints_see_the_node() {
    needs_root!();
    for routing in [Routing::Direct, Routing::Vxlan] {
        let mut plan = plan(routing);
        plan.config["services"]["masqueradeAll"] = json!(true);
        let lab = Lab::start(plan).unwrap();
        let [near, far] = lab.pair();
        let client = near.add_pod("client").unwrap();
        for (number, server) in [(1, near.add_pod("near")), (2, far.add_pod("far"))] {
            let server = server.unwrap();
            let echoes = serve(&server, 8080);
            let service = ServiceManifest::new(number).endpoint(&server, 8080);
            publish(&lab, &service);
            near.with_sockets(|| reach(&lab, &client, &service));
            let mut node = [true, false].map(|v4| near.address(v4));
            node.sort();
            assert_eq!(clients(&echoes), node, "{routing:?} {number}");
        }
    }
}

#[test]
fn svc_35_svc_36_a_pod_uses_every_endpoint_by_its_own_node_and_those_of_another_node_by_that() {
    needs_root!();
    for routing in [Routing::Direct, Routing::Vxlan] {
        let lab = Lab::start(plan(routing)).unwrap();
        let [near, far] = lab.pair();
        let (client, server) = (near.add_pod("client").unwrap(), far.add_pod("server").unwrap());
        let beside = far.add_pod("beside").unwrap();
        let echoes = serve(&server, 8080);
        let local =
            ServiceManifest::new(1)
                .spec(node_port("Local"))
                .endpoint_at(&server, 8080, "node1", json!({}));
        publish(&lab, &local);
        for v4 in [true, false] {
            let [by_near, by_far] = [near, far].map(|node| SocketAddr::new(node.address(v4), NODE_PORT));
            for to in [by_near, by_far] {
                tcp(&client.namespace, to, 1000).unwrap();
                udp(&client.namespace, to, 1000).unwrap();
            }
            tcp(&beside.namespace, by_far, 1000).unwrap();
            udp_socket(&beside.namespace, by_near)
                .unwrap()
                .send(b"x")
                .unwrap();
        }
        eventually(|| {
            let drops = near.drops().unwrap();
            (drops.get("service_not_local/ingress") != Some(&2)).then(|| format!("{routing:?} {drops:?}"))
        });
        let mut pods = [&client, &beside].map(|pod| pod.addresses.clone()).concat();
        pods.sort();
        assert_eq!(clients(&echoes), pods, "{routing:?}");
    }
}

/// As the API server has it once the pod runs.
fn pod_object(node: &Node, pod: &Pod, ports: Value) -> Value {
    let addresses = [true, false].map(|v4| json!({ "ip": pod.ip(v4) }));
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "served", "namespace": "lab", "uid": "u" },
        "spec": { "nodeName": node.name(), "containers": [{ "name": "c", "ports": ports }] },
        "status": { "phase": "Running", "podIP": pod.ip(true), "podIPs": addresses },
    })
}

#[test]
fn host_ports_lead_into_their_pod_from_outside_and_from_the_node() {
    needs_root!();
    let lab = Lab::start(plan(Routing::Direct)).unwrap();
    let [node, far] = lab.pair();
    let (pod, other) = (node.add_pod("pod").unwrap(), far.add_pod("other").unwrap());
    let echoes = serve(&pod, 8080);
    let ports = json!([
        { "containerPort": 8080, "hostPort": 9080, "protocol": "TCP" },
        { "containerPort": 8080, "hostPort": 9080, "protocol": "UDP" },
        { "containerPort": 8080, "hostPort": 9081, "hostIP": "127.0.0.1" },
    ]);
    node.write_manifest("pod.yaml", &pod_object(node, &pod, ports))
        .unwrap();
    eventually(|| {
        let services = node.ask(["dump", "services"]).unwrap().to_string();
        (!services.contains("9081")).then_some(services)
    });
    for v4 in [true, false] {
        let to = SocketAddr::new(node.address(v4), 9080);
        tcp(&lab.outside, to, 100_000).unwrap();
        udp(&lab.outside, to, 1000).unwrap();
        assert!(clients(&echoes).contains(&lab.outside_address(v4)));
        tcp(&other.namespace, to, 1000).unwrap();
        node.with_sockets(|| tcp(&node.namespace, to, 1000).unwrap());
    }
    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    node.with_sockets(|| {
        tcp(&node.namespace, loopback(9080), 10).unwrap();
        tcp(&node.namespace, loopback(9081), 10).unwrap();
    });
    // That one is the node's own, and nobody listens.
    tcp(&lab.outside, SocketAddr::new(node.address(true), 9081), 10).unwrap_err();
}

#[test]
fn svc_59_a_port_on_which_the_node_has_a_socket_is_given_to_nobody() {
    needs_root!();
    let (used, free) = (40_000..40_006, BTreeSet::from([40_006, 40_007]));
    let mut plan = plan(Routing::Direct);
    plan.config["snatPorts"] = json!({ "first": 40_000, "last": 40_007 });
    let lab = Lab::start(plan).unwrap();
    let [near, far] = lab.pair();
    let (client, server) = (near.add_pod("client").unwrap(), far.add_pod("server").unwrap());
    let echoes = serve(&server, 8080);
    let service = ServiceManifest::new(1).spec(node_port("Cluster"));
    publish(&lab, &service.endpoint_at(&server, 8080, "node1", json!({})));
    for v4 in [true, false] {
        let [streams, datagrams]: [Vec<Echo>; 2] = [Echo::tcp, Echo::udp].map(|serve| {
            let at = |port| serve(&near.namespace, near.address(v4), port).unwrap();
            used.clone().map(at).collect()
        });
        let beyond =
            [Echo::tcp, Echo::udp].map(|serve| serve(&lab.outside, lab.outside_address(v4), 0).unwrap());
        let to = SocketAddr::new(near.address(v4), NODE_PORT);
        // Somebody whom the node hides from its Services' endpoints, and a pod that it hides from everybody.
        for (from, [tcp_to, udp_to]) in [
            (&lab.outside, [to, to]),
            (&client.namespace, beyond.each_ref().map(|echo| echo.address)),
        ] {
            for _ in &free {
                tcp(from, tcp_to, 1000).unwrap();
                udp(from, udp_to, 1000).unwrap();
            }
        }
        let of_family = echoes.iter().filter(|echo| echo.address.is_ipv4() == v4);
        for echo in of_family.chain(&beyond) {
            let peers = echo.peers();
            assert!(
                peers.iter().all(|peer| peer.ip() == near.address(v4)),
                "{peers:?}"
            );
            assert_eq!(peers.iter().map(SocketAddr::port).collect::<BTreeSet<_>>(), free);
        }
        // The node's own hear who asks them, and nobody else.
        for (stream, datagram) in streams.iter().zip(&datagrams) {
            tcp(&lab.outside, stream.address, 10).unwrap();
            udp(&lab.outside, datagram.address, 10).unwrap();
            assert_eq!([stream, datagram].map(Echo::times), [1, 1]);
        }
    }
}

#[test]
fn svc_42_rel_24_whoever_has_an_address_answers_there_though_a_service_claims_it() {
    needs_root!();
    let mut plan = plan(Routing::Direct);
    plan.config["services"]["externalIPs"] = json!(true);
    let lab = Lab::prepare(plan, &format!("mrlab-claims-{}", std::process::id())).unwrap();
    let [near, far] = lab.pair();
    // Nodes resolve names by the host outside.
    let resolvers = [true, false].map(|v4| format!("nameserver {}\n", lab.outside_address(v4)));
    for node in [near, far] {
        fs::write(node.folder().join("resolv.conf"), resolvers.concat()).unwrap();
        node.start_agent().unwrap();
        node.wait_until_ready().unwrap();
    }
    let (client, owner) = (near.add_pod("client").unwrap(), far.add_pod("owner").unwrap());
    let thief = far.add_pod("thief").unwrap();
    let stolen = serve(&thief, 8080);
    let owners = |v4| {
        [
            (&near.namespace, near.address(v4)),
            (&far.namespace, far.address(v4)),
            (&owner.namespace, owner.ip(v4)),
            (&lab.outside, lab.outside_address(v4)),
        ]
    };
    let nobodys = ["198.51.100.7", "2001:db8:51::7"].map(|ip| ip.parse::<IpAddr>().unwrap());
    let claimed = [true, false].map(owners).concat().into_iter().map(|(_, ip)| ip);
    let ips: Vec<IpAddr> = claimed.chain(nobodys).collect();
    let service = ServiceManifest::new(1).spec(json!({ "externalIPs": ips }));
    publish(&lab, &service.endpoint_at(&thief, 8080, "node1", json!({})));
    let ask = |to: SocketAddr| {
        tcp(&client.namespace, to, 10).unwrap();
        udp(&client.namespace, to, 10).unwrap();
        for from in [&client.namespace, &near.namespace] {
            near.with_sockets(|| tcp(from, to, 10).unwrap());
            near.with_sockets(|| udp(from, to, 10).unwrap());
        }
    };
    let asked = || stolen.iter().map(Echo::times).sum::<usize>();
    // What nobody has is served, and nothing else.
    for ip in nobodys {
        ask(SocketAddr::new(ip, 80));
    }
    let before = asked();
    assert_eq!(before, 12);
    for v4 in [true, false] {
        for (there, ip) in owners(v4) {
            let _echoes = [
                Echo::tcp(there, ip, 80).unwrap(),
                Echo::udp(there, ip, 80).unwrap(),
            ];
            let to = SocketAddr::new(ip, 80);
            ask(to);
            if [near, far].iter().any(|node| node.address(v4) == ip) {
                tcp(&lab.outside, to, 10).unwrap();
                udp(&lab.outside, to, 10).unwrap();
            }
        }
    }
    assert_eq!(asked(), before, "the owners were asked");
}
