//! Clients that reach one endpoint by two frontends from one port, at the same time.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
};

use anyhow::Result;
use cni_tests::{
    lab::{Lab, Routing, ServiceManifest, cluster_ip},
    netns::Namespace,
    patience,
    traffic::{Echo, any},
};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::{plan, publish, serve};
use crate::{eventually, needs_root};

const PORT: u16 = 45_678;
const LIMIT: std::time::Duration = std::time::Duration::from_secs(20);

/// Connected from [`PORT`].
fn connected(from: &Namespace, to: SocketAddr, kind: Type) -> Result<Socket> {
    let socket = from.run(|| -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(to), kind, None)?;
        socket.set_reuse_address(true)?;
        let mut own = any(to.is_ipv4());
        own.set_port(PORT);
        socket.bind(&own.into())?;
        socket.connect_timeout(&to.into(), patience(LIMIT))?;
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(patience(LIMIT)))?;
    Ok(socket)
}

/// Each of the frontends answers, while the others' connections stand.
fn all_answer(from: &Namespace, frontends: &[SocketAddr]) {
    let open = |kind| -> Vec<Socket> {
        let connect =
            |to: &SocketAddr| connected(from, *to, kind).unwrap_or_else(|error| panic!("{to} {error:#}"));
        frontends.iter().map(connect).collect()
    };
    let mut streams: Vec<TcpStream> = open(Type::STREAM).into_iter().map(Into::into).collect();
    let sockets: Vec<UdpSocket> = open(Type::DGRAM).into_iter().map(Into::into).collect();
    for round in 0..3u8 {
        for (number, to) in (0..).zip(frontends) {
            let said = [round, number];
            let mut heard = [0; 2];
            let stream: &mut TcpStream = &mut streams[usize::from(number)];
            stream.write_all(&said).unwrap();
            stream
                .read_exact(&mut heard)
                .unwrap_or_else(|error| panic!("{to} {error}"));
            assert_eq!(heard, said, "{to}");
            let socket = &sockets[usize::from(number)];
            socket.send(&said).unwrap();
            socket
                .recv(&mut heard)
                .unwrap_or_else(|error| panic!("{to} {error}"));
            assert_eq!(heard, said, "{to}");
        }
    }
}

fn node_ports(policy: &str, number: u16) -> Value {
    json!({
        "type": "NodePort", "externalTrafficPolicy": policy,
        "ports": [
            { "name": "t", "port": 80, "nodePort": number, "protocol": "TCP" },
            { "name": "u", "port": 80, "nodePort": number, "protocol": "UDP" },
        ],
    })
}

#[test]
fn svc_22_svc_33_svc_34_one_port_of_a_client_has_a_connection_by_each_of_two_frontends() {
    needs_root!();
    for routing in [Routing::Direct, Routing::Vxlan] {
        let lab = Lab::start(plan(routing)).unwrap();
        let [near, far] = lab.pair();
        let (client, beside) = (near.add_pod("client").unwrap(), far.add_pod("beside").unwrap());
        let server = far.add_pod("server").unwrap();
        for (number, policy) in [(1, "Cluster"), (2, "Cluster"), (3, "Local"), (4, "Local")] {
            let service = ServiceManifest::new(number)
                .spec(node_ports(policy, 30_080 + u16::from(number)))
                .endpoint_at(&server, 8080, "node1", json!({}));
            publish(&lab, &service);
        }
        // The endpoint of all was there with the first.
        for node in &lab.nodes {
            eventually(|| {
                let text = node.ask(["dump", "services"]).unwrap().to_string();
                let missing = (30_081..=30_084).find(|port: &u16| !text.contains(&port.to_string()));
                missing.map(|port| format!("{port}: {text}"))
            });
        }
        let echoes = serve(&server, 8080);
        for v4 in [true, false] {
            let all = || echoes.iter().flat_map(Echo::peers).collect::<BTreeSet<_>>();
            let seen_by = |ask: &dyn Fn()| {
                let before = all();
                ask();
                all().difference(&before).copied().collect::<Vec<_>>()
            };
            let alike = |seen: &[SocketAddr], ip: IpAddr| {
                assert!(seen.iter().all(|peer| peer.ip() == ip), "{routing:?} {seen:?}");
                assert!(
                    seen.iter().any(|peer| peer.port() == PORT),
                    "{routing:?} {seen:?}"
                );
                assert!(
                    seen.iter().any(|peer| peer.port() != PORT),
                    "{routing:?} {seen:?}"
                );
            };
            let vips = [1, 2].map(|number| SocketAddr::new(cluster_ip(number, v4), 80));
            for pod in [&client, &beside] {
                let seen = seen_by(&|| all_answer(&pod.namespace, &vips));
                alike(&seen, pod.ip(v4));
            }
            let ports = |node: IpAddr, numbers: [u16; 2]| numbers.map(|port| SocketAddr::new(node, port));
            let outside = lab.outside_address(v4);
            let seen = seen_by(&|| all_answer(&lab.outside, &ports(far.address(v4), [30_083, 30_084])));
            alike(&seen, outside);
            for node in [near, far] {
                let seen = seen_by(&|| all_answer(&lab.outside, &ports(node.address(v4), [30_081, 30_082])));
                assert!(!seen.is_empty() && seen.iter().all(|peer| peer.ip() != outside));
            }
        }
        for node in &lab.nodes {
            let drops = node.drops().unwrap();
            assert!(
                !drops.keys().any(|reason| reason.starts_with("service_tuple")),
                "{drops:?}"
            );
        }
    }
}
