//! Services as the sockets of a node use them: its own processes', and its pods'.

use std::{
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use cni_tests::{
    lab::{Lab, Pod, Routing, ServiceManifest, Signal, binary, cluster_ip},
    netns::Namespace,
    traffic::{Echo, Steady, connect, tcp, udp, udp_socket},
};
use serde_json::json;

use super::{plan, publish, serve};
use crate::{eventually, needs_root, next_release};

fn vip(number: u8, v4: bool) -> SocketAddr {
    SocketAddr::new(cluster_ip(number, v4), 80)
}

/// Whom the packets of a connection go to, which may be another than its socket shows.
fn destination(namespace: &Namespace, stream: &TcpStream) -> String {
    let local = format!(":{:04X}", stream.local_addr().unwrap().port());
    let table = namespace.read("/proc/thread-self/net/tcp").unwrap();
    let mut lines = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|fields| fields[1].ends_with(&local)).unwrap();
    line[2].to_owned()
}

/// As `/proc/net/tcp` writes it.
fn written(address: SocketAddr) -> String {
    let SocketAddr::V4(address) = address else {
        panic!("{address}")
    };
    let ip = u32::from_ne_bytes(address.ip().octets());
    format!("{ip:08X}:{:04X}", address.port())
}

/// A node of its own with this setting.
fn balancing_sockets(setting: &str) -> Lab {
    let mut plan = plan(Routing::Direct).nodes(1);
    plan.config["services"]["socketLb"] = json!(setting);
    Lab::start(plan).unwrap()
}

/// Two pods of the first node; the second is behind the first Service as long as its servers are kept.
fn client_and_server(lab: &Lab) -> (Pod, Pod, Vec<Echo>) {
    let node = &lab.nodes[0];
    let (client, server) = (node.add_pod("client").unwrap(), node.add_pod("server").unwrap());
    let echoes = serve(&server, 8080);
    publish(lab, &ServiceManifest::new(1).endpoint(&server, 8080));
    (client, server, echoes)
}

#[test]
fn svc_21_svc_61_host_processes_reach_a_cluster_ip_whether_an_agent_runs_or_not() {
    needs_root!();
    for routing in [Routing::Direct, Routing::Vxlan] {
        let lab = Lab::start(plan(routing)).unwrap();
        let node = &lab.nodes[0];
        let near = node.add_pod("near").unwrap();
        let far = lab.nodes[1].add_pod("far").unwrap();
        let _echoes = [serve(&near, 8080), serve(&far, 8080)];
        publish(&lab, &ServiceManifest::new(1).endpoint(&near, 8080));
        publish(&lab, &ServiceManifest::new(2).endpoint(&far, 8080));
        let reach = || {
            for (number, v4) in [(1, true), (1, false), (2, true), (2, false)] {
                let to = vip(number, v4);
                node.with_sockets(|| {
                    tcp(&node.namespace, to, 1000).unwrap();
                    udp(&node.namespace, to, 1000).unwrap();
                    let stream = connect(&node.namespace, to).unwrap();
                    assert_eq!(stream.peer_addr().unwrap(), to);
                });
            }
        };
        reach();
        node.end_agent(Signal::SIGKILL).unwrap();
        reach();
    }
}

#[test]
fn svc_52_host_processes_notice_nothing_of_the_agent_after_this_one() {
    needs_root!();
    let next = next_release!("MILLRACE_NEXT_BIN", "millrace");
    let lab = Lab::start(plan(Routing::Direct)).unwrap();
    let node = &lab.nodes[0];
    let (near, far) = (
        node.add_pod("near").unwrap(),
        lab.nodes[1].add_pod("far").unwrap(),
    );
    let _echoes = [serve(&near, 8080), serve(&far, 8080)];
    let service = ServiceManifest::new(1).endpoint(&near, 8080).endpoint(&far, 8080);
    publish(&lab, &service);
    // Threads inherit the cgroup: all that this traffic opens is the host's.
    let flows = node.with_sockets(|| {
        let host = &node.namespace;
        [
            Steady::tcp(host, vip(1, true)).unwrap(),
            Steady::connections(host, vip(1, true)).unwrap(),
            Steady::connections(host, vip(1, false)).unwrap(),
            Steady::udp(host, vip(1, false)).unwrap(),
        ]
    });
    let go_on = || flows.iter().for_each(|flow| flow.wait_for(20));
    let ours = binary("MILLRACE_BIN", "millrace");
    for millrace in [&ours, &next, &ours] {
        go_on();
        node.end_agent(Signal::SIGKILL).unwrap();
        go_on();
        node.start_agent_of(millrace).unwrap();
        node.wait_until_ready().unwrap();
        go_on();
    }
    for flow in flows {
        assert_eq!(flow.stop().failures, Vec::<String>::new());
    }
}

#[test]
fn svc_63_sockets_are_let_go_by_uninstalling() {
    needs_root!();
    let lab = Lab::start(plan(Routing::Direct)).unwrap();
    let node = &lab.nodes[0];
    let pod = node.add_pod("pod").unwrap();
    let _echoes = serve(&pod, 8080);
    publish(&lab, &ServiceManifest::new(1).endpoint(&pod, 8080));
    let reach = || node.with_sockets(|| tcp(&node.namespace, vip(1, true), 10));
    reach().unwrap();
    node.end_agent(Signal::SIGTERM).unwrap();
    node.uninstall().unwrap();
    assert!(!node.pins().join("links").exists());
    // Nobody exchanges the address any more, and nobody knows it.
    node.namespace.ip("route add unreachable 10.96.0.0/16").unwrap();
    reach().unwrap_err();
}

#[test]
fn packets_of_pods_bear_the_services_address_where_they_are_asked_to() {
    needs_root!();
    for (setting, bears_it) in [("host", true), ("all", false)] {
        let lab = balancing_sockets(setting);
        let node = &lab.nodes[0];
        let (client, server, _echoes) = client_and_server(&lab);
        let to = vip(1, true);
        let of = |namespace: &Namespace| {
            let stream = node.with_sockets(|| connect(namespace, to).unwrap());
            assert_eq!(stream.peer_addr().unwrap(), to, "{setting}");
            destination(namespace, &stream)
        };
        let backend = written(SocketAddr::new(server.ip(true), 8080));
        let expected = if bears_it { written(to) } else { backend.clone() };
        assert_eq!(of(&client.namespace), expected, "{setting}");
        assert_eq!(of(&node.namespace), backend, "{setting}");
    }
}

#[test]
fn a_node_without_such_cgroups_serves_its_pods_and_says_what_the_host_lacks() {
    needs_root!();
    let lab = Lab::prepare(
        plan(Routing::Direct).nodes(1),
        &format!("mrlab-nocgroup-{}", std::process::id()),
    )
    .unwrap();
    let node = &lab.nodes[0];
    node.start_agent_with(&[("MILLRACE_CGROUP", "/proc")]).unwrap();
    node.wait_until_ready().unwrap();
    let (client, _server, _echoes) = client_and_server(&lab);
    tcp(&client.namespace, vip(1, true), 10).unwrap();
    let status = node.millrace(["status", "--cgroup", "/proc"]).output().unwrap();
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(
        text.contains("no cgroup of version 2") && text.contains("paths.cgroup"),
        "{text}"
    );
}

#[test]
fn svc_55_a_connected_datagram_socket_of_the_host_leaves_a_backend_that_is_gone() {
    needs_root!();
    let lab = Lab::start(plan(Routing::Direct).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let (old, new) = (node.add_pod("old").unwrap(), node.add_pod("new").unwrap());
    let _echoes = [serve(&old, 8080), serve(&new, 8080)];
    publish(&lab, &ServiceManifest::new(1).endpoint(&old, 8080));
    for v4 in [true, false] {
        let dial = |to| node.with_sockets(|| udp_socket(&node.namespace, to).unwrap());
        let (through, past) = (dial(vip(1, v4)), dial(SocketAddr::new(old.ip(v4), 8080)));
        let says = |socket: &UdpSocket| -> std::io::Result<()> {
            socket.send(b"q")?;
            socket.recv(&mut [0; 8]).map(drop)
        };
        says(&through).unwrap();
        // With nobody to go to it stays.
        publish(&lab, &ServiceManifest::new(1));
        publish(&lab, &ServiceManifest::new(2).endpoint(&new, 8080));
        says(&through).unwrap();
        publish(&lab, &ServiceManifest::new(1).endpoint(&new, 8080));
        eventually(|| says(&through).is_ok().then(|| "still at the old one".to_owned()));
        // The same socket may dial again; that it was ended is told once more to whom a send has told it first.
        through.take_error().unwrap();
        node.with_sockets(|| through.connect(vip(1, v4)).unwrap());
        says(&through).unwrap();
        assert_eq!(through.peer_addr().unwrap(), vip(1, v4));
        // Whoever dialled the pod itself is nobody's business.
        says(&past).unwrap();
        publish(&lab, &ServiceManifest::new(1).endpoint(&old, 8080));
    }
}

/// What a socket dialled stands in a map that forgets what was used least, and a connected one that only sends uses it never.
#[test]
fn svc_55_a_connected_datagram_socket_is_not_forgotten_for_all_that_connect_after_it() {
    needs_root!();
    const ROUNDS: usize = 10;
    const STREAMS: usize = 300;
    let mut plan = plan(Routing::Direct).nodes(1);
    plan.config["maps"] = json!({ "sockets": 1024 });
    let lab = Lab::start(plan).unwrap();
    let node = &lab.nodes[0];
    let (old, new) = (node.add_pod("old").unwrap(), node.add_pod("new").unwrap());
    let _echoes = [serve(&old, 8080), serve(&new, 8080)];
    publish(&lab, &ServiceManifest::new(1).endpoint(&old, 8080));
    let to = vip(1, true);
    let socket = node.with_sockets(|| udp_socket(&node.namespace, to).unwrap());
    for round in 0..ROUNDS {
        // Whoever comes or goes has the sockets looked through.
        let other = [&old, &new][round % 2];
        publish(&lab, &ServiceManifest::new(2).endpoint(other, 8080));
        std::thread::sleep(Duration::from_millis(500));
        node.with_sockets(|| {
            for _ in 0..STREAMS {
                drop(connect(&node.namespace, to).unwrap());
            }
        });
    }
    publish(&lab, &ServiceManifest::new(1).endpoint(&new, 8080));
    eventually(|| {
        let ended = socket.send(b"q").and_then(|_| socket.recv(&mut [0; 8])).is_err();
        (!ended).then(|| "still at the old one".to_owned())
    });
}

#[test]
fn connections_are_counted_whether_packets_or_sockets_lead_to_the_endpoint() {
    needs_root!();
    for (setting, translated, dialled) in [("all", 0, 3), ("host", 3, 0)] {
        let lab = balancing_sockets(setting);
        let node = &lab.nodes[0];
        let (client, _server, _echoes) = client_and_server(&lab);
        let streams =
            [(); 3].map(|()| node.with_sockets(|| connect(&client.namespace, vip(1, true)).unwrap()));
        let services = node.ask(["services", "service-1"]).unwrap();
        let backends = node.ask(["backends"]).unwrap();
        assert_eq!(services[0]["opened"], json!(3), "{setting}: {services}");
        let page = node.http("/metrics").unwrap();
        let counted = page
            .lines()
            .find(|line| line.starts_with("millrace_service_connections_total{"));
        let counted = counted.unwrap_or_default();
        assert!(
            counted.contains(r#"service_namespace="lab",service_name="service-1""#)
                && counted.ends_with("} 3"),
            "{setting}: {page}"
        );
        for shown in [services, backends] {
            let count = |name: &str| {
                let rows = shown.as_array().unwrap().iter();
                rows.map(|row| row[name].as_u64().unwrap()).sum::<u64>()
            };
            assert_eq!(
                (count("connections"), count("sockets")),
                (translated, dialled),
                "{setting}: {shown}"
            );
        }
        drop(streams);
    }
}
