//! Which of two endpoints is chosen: either as often as the other, and one for all parts of a datagram.

use std::net::SocketAddr;

use anyhow::Result;
use cni_tests::{
    lab::{Lab, Pod, Routing, ServiceManifest},
    netns::Namespace,
    traffic::{Echo, tcp, udp},
};
use serde_json::json;

use super::{
    external::{NODE_PORT, node_port},
    plan, publish, serve,
    witness::vip,
};
use crate::needs_root;

/// A node port with an endpoint on each of two nodes, and a pod beside the first.
struct Two {
    lab: Lab,
    client: Pod,
    servers: [(Pod, Vec<Echo>); 2],
}

impl Two {
    fn start(routing: Routing) -> Self {
        let lab = Lab::start(plan(routing)).unwrap();
        let client = lab.nodes[0].add_pod("client").unwrap();
        let servers = lab.pair().map(|node| {
            let pod = node.add_pod("server").unwrap();
            let echoes = serve(&pod, 8080);
            (pod, echoes)
        });
        let service = ServiceManifest::new(1)
            .spec(node_port("Cluster"))
            .endpoint_at(&servers[0].0, 8080, "node0", json!({}))
            .endpoint_at(&servers[1].0, 8080, "node1", json!({}));
        publish(&lab, &service);
        Self { lab, client, servers }
    }

    /// The pod and the host outside, each with where it reaches the Service.
    fn clients(&self, v4: bool) -> [(&Namespace, SocketAddr); 2] {
        let node = SocketAddr::new(self.lab.nodes[0].address(v4), NODE_PORT);
        [(&self.client.namespace, vip(1, v4)), (&self.lab.outside, node)]
    }

    /// How many each endpoint has answered of so many that were asked.
    fn answered(&self, count: usize, ask: impl Fn() -> Result<SocketAddr>) -> [usize; 2] {
        let heard = || {
            let sum = |(_, echoes): &(Pod, Vec<Echo>)| echoes.iter().map(Echo::times).sum::<usize>();
            self.servers.each_ref().map(sum)
        };
        let before = heard();
        for _ in 0..count {
            ask().unwrap();
        }
        let now = heard();
        [0, 1].map(|one| now[one] - before[one])
    }
}

#[test]
fn svc_20_new_connections_go_to_either_endpoint_alike() {
    needs_root!();
    const COUNT: usize = 400;
    let two = Two::start(Routing::Direct);
    let is_fair = |what: &str, ask: &dyn Fn() -> Result<SocketAddr>| {
        let answered = two.answered(COUNT, ask);
        assert_eq!(answered.iter().sum::<usize>(), COUNT, "{what}: {answered:?}");
        // Five standard deviations, of ten each.
        assert!(answered[0].abs_diff(COUNT / 2) <= 50, "{what}: {answered:?}");
    };
    for v4 in [true, false] {
        let [(pod, cluster), (outside, node)] = two.clients(v4);
        // Streams of pods are connected to their endpoint as they are opened.
        two.lab.nodes[0].with_sockets(|| {
            is_fair("sockets", &|| tcp(pod, cluster, 1));
        });
        is_fair("packets", &|| udp(pod, cluster, 1));
        is_fair("streams from outside", &|| tcp(outside, node, 1));
        is_fair("datagrams from outside", &|| udp(outside, node, 1));
    }
}

#[test]
fn svc_58_datagrams_in_parts_are_answered_whichever_endpoint_they_go_to() {
    needs_root!();
    const COUNT: usize = 200;
    for routing in [Routing::Direct, Routing::Vxlan] {
        let two = Two::start(routing);
        if routing == Routing::Vxlan {
            // As much as the tunnel carries: what is larger is not cut on its way, but refused.
            two.lab.outside.ip("link set eth0 mtu 1450").unwrap();
        }
        for v4 in [true, false] {
            for (from, to) in two.clients(v4) {
                // Three parts, and as many of the answer.
                let answered = two.answered(COUNT, || udp(from, to, 4000));
                assert_eq!(answered.iter().sum::<usize>(), COUNT, "{routing:?} {to}");
                assert!(!answered.contains(&0), "{routing:?} {to}: {answered:?}");
            }
        }
        for node in &two.lab.nodes {
            let drops = node.drops().unwrap();
            assert!(drops.is_empty(), "{routing:?} {}: {drops:?}", node.name());
        }
    }
}
