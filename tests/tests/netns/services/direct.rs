//! Direct server return: a client's packets go by the node that it asks, and the endpoint's node answers it.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use cni_tests::{
    frames::Ends,
    lab::{Drops, Lab, Node, Plan, Pod, Routing, ServiceManifest, Signal},
    traffic::{self, Echo, Steady, tcp, udp},
    wire::Tap,
};
use serde_json::{Value, json};

use super::external::{NODE_PORT, clients, node_port};
use super::{plan, publish, serve};
use crate::{eventually, forgery::moved, needs_root, sizes::undivided};

fn with(mode: &str) -> Plan {
    let mut plan = plan(Routing::Vxlan);
    plan.config["services"]["mode"] = json!(mode);
    plan
}

/// A node port of all nodes, whose only endpoint is on the second one.
struct Far {
    lab: Lab,
    pod: Pod,
    echoes: Vec<Echo>,
}

impl Far {
    fn start(plan: Plan) -> Self {
        let lab = Lab::start(plan).unwrap();
        let pod = lab.nodes[1].add_pod("pod").unwrap();
        let echoes = serve(&pod, 8080);
        let service =
            ServiceManifest::new(1)
                .spec(node_port("Cluster"))
                .endpoint_at(&pod, 8080, "node1", json!({}));
        publish(&lab, &service);
        Self { lab, pod, echoes }
    }

    /// What either node has dropped.
    fn drops(&self) -> [Drops; 2] {
        self.lab.pair().map(|node| node.drops().unwrap())
    }

    /// The node that is asked.
    fn asked(&self, v4: bool) -> SocketAddr {
        SocketAddr::new(self.lab.nodes[0].address(v4), NODE_PORT)
    }
}

/// Whether the frame bears this source.
fn is_from(frame: &[u8], source: SocketAddr) -> bool {
    let (at, ports) = if source.is_ipv4() { (26, 34) } else { (22, 54) };
    let bytes = match source.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let ethertype: &[u8] = if source.is_ipv4() { &[8, 0] } else { &[0x86, 0xdd] };
    frame.get(12..14) == Some(ethertype)
        && frame.get(at..at + bytes.len()) == Some(&bytes)
        && frame.get(ports..ports + 2) == Some(&source.port().to_be_bytes())
}

/// How many answers of this source were seen until now.
fn answers(tap: &Tap, source: SocketAddr) -> usize {
    let next = || tap.next(Duration::from_millis(200)).unwrap();
    let frames = std::iter::from_fn(next);
    frames.filter(|(frame, _)| is_from(frame, source)).count()
}

#[test]
fn the_endpoints_node_answers_and_the_endpoint_sees_the_client() {
    needs_root!();
    let far = Far::start(with("dsr"));
    let [near, other] = far.lab.pair();
    let before = far.drops();
    for v4 in [true, false] {
        let taps = [near, other].map(|node| Tap::open(&node.namespace, "eth0").unwrap());
        tcp(&far.lab.outside, far.asked(v4), 100_000).unwrap();
        udp(&far.lab.outside, far.asked(v4), 1000).unwrap();
        let [by_near, by_far] = taps.map(|tap| answers(&tap, far.asked(v4)));
        assert_eq!(by_near, 0, "the node that was asked sees no answer");
        assert!(by_far > 2, "{by_far}");
    }
    let outside: Vec<IpAddr> = [true, false].map(|v4| far.lab.outside_address(v4)).into();
    assert_eq!(clients(&far.echoes), outside);
    let flows = near.connections().unwrap();
    let half = |flow: &&Value| flow["direct_return"] == json!(true) && flow["packets_reply"] == json!(0);
    assert_eq!(flows.iter().filter(half).count(), 4, "{flows:?}");
    let shown = near.ask(["services", "service-1"]).unwrap().to_string();
    assert!(shown.contains("\"direct_return\":true"), "{shown}");
    assert_eq!(far.drops(), before);
    // A node that asks another one is answered by that one.
    for v4 in [true, false] {
        let to = SocketAddr::new(near.address(v4), NODE_PORT);
        other.with_sockets(|| tcp(&other.namespace, to, 1000)).unwrap();
        assert!(clients(&far.echoes).contains(&near.address(v4)));
    }
}

#[test]
fn a_service_chooses_by_its_annotation() {
    needs_root!();
    let far = Far::start(with("snat"));
    let [near, _] = far.lab.pair();
    let ask = |v4| tcp(&far.lab.outside, far.asked(v4), 1000).unwrap();
    ask(true);
    let outside = far.lab.outside_address(true);
    assert!(!clients(&far.echoes).contains(&outside));
    let service = ServiceManifest::new(1)
        .spec(node_port("Cluster"))
        .annotation("millrace.dev/lb-mode", "dsr")
        .endpoint_at(&far.pod, 8080, "node1", json!({}));
    publish(&far.lab, &service);
    eventually(|| {
        let shown = near.ask(["services", "service-1"]).unwrap().to_string();
        (!shown.contains("\"direct_return\":true")).then_some(shown)
    });
    ask(true);
    ask(false);
    assert!(clients(&far.echoes).contains(&outside));
}

#[test]
fn svc_52_agents_die_and_change_their_mode_under_traffic() {
    needs_root!();
    let far = Far::start(with("dsr"));
    let (outside, nodes) = (&far.lab.outside, far.lab.pair());
    let flows: Vec<Steady> = [true, false]
        .into_iter()
        .flat_map(|v4| {
            [
                Steady::tcp(outside, far.asked(v4)).unwrap(),
                Steady::udp(outside, far.asked(v4)).unwrap(),
                Steady::connections(outside, far.asked(v4)).unwrap(),
            ]
        })
        .collect();
    let go_on = || flows.iter().for_each(|flow| flow.wait_for(30));
    let replace = |node: &Node| {
        node.end_agent(Signal::SIGKILL).unwrap();
        go_on();
        node.start_agent().unwrap();
        node.wait_until_ready().unwrap();
        go_on();
    };
    go_on();
    nodes.iter().for_each(|node| replace(node));
    // One after the other: who has been told and who has not understand each other.
    for mode in ["snat", "dsr"] {
        for node in nodes {
            node.write_config(&with(mode)).unwrap();
            replace(node);
        }
    }
    for flow in flows {
        assert_eq!(flow.stop().failures, Vec::<String>::new());
    }
}

#[test]
fn svc_57_nothing_is_added_to_a_packet_and_errors_reach_the_endpoint() {
    needs_root!();
    let far = Far::start(with("dsr"));
    let before = far.drops();
    for v4 in [true, false] {
        // As large as the tunnel carries, in one piece.
        let whole = 1450 - if v4 { 28 } else { 48 };
        let socket = undivided(&far.lab.outside, far.asked(v4));
        socket.send(&vec![1; whole]).unwrap();
        assert_eq!(socket.recv(&mut vec![0; whole]).unwrap(), whole);
        tcp(&far.lab.outside, far.asked(v4), 10_000_000).unwrap();
    }
    assert_eq!(far.drops(), before);
    // A link before the client is smaller than both ends know: its router tells the Service's address.
    far.lab.fabric.ip("link set outside mtu 1300").unwrap();
    for v4 in [true, false] {
        tcp(&far.lab.outside, far.asked(v4), 1_000_000).unwrap();
    }
    assert_eq!(far.drops(), before);
}

#[test]
fn rel_49_who_is_no_node_names_no_endpoint() {
    needs_root!();
    let far = Far::start(with("dsr"));
    let [near, other] = far.lab.pair();
    let (pod_of_near, pod_of_far) = (near.add_pod("a").unwrap(), other.add_pod("b").unwrap());
    let counted = |v4: bool| -> usize {
        let echoes = far.echoes.iter().filter(|echo| echo.address.is_ipv4() == v4);
        echoes.map(Echo::times).sum()
    };
    for v4 in [true, false] {
        let IpAddr::V6(whole) = (match far.pod.ip(v4) {
            IpAddr::V4(ip) => IpAddr::V6(ip.to_ipv6_mapped()),
            v6 => v6,
        }) else {
            panic!("IPv6")
        };
        let mut name = [6; 12];
        name[1..6].copy_from_slice(&whole.octets()[8..13]);
        name[7..10].copy_from_slice(&whole.octets()[13..]);
        name[10..].copy_from_slice(&8080u16.to_be_bytes());
        let inner = Ends {
            dst_mac: name[..6].try_into().unwrap(),
            src_mac: name[6..].try_into().unwrap(),
            src: far.lab.outside_address(v4),
            dst: near.address(v4),
            src_port: 9,
            dst_port: NODE_PORT,
            ttl: 64,
        };
        let mut datagram = vec![8, 0, 0, 0, 0, 0x4d, 0x52, 0];
        datagram.extend(inner.udp(b"named"));
        let heard = counted(v4);
        for from in [&far.lab.outside, &pod_of_near.namespace, &pod_of_far.namespace] {
            let before = other.all_drops().unwrap();
            let socket = traffic::udp_socket(from, (other.address(v4), 4789).into()).unwrap();
            socket.send(&datagram).unwrap();
            eventually(|| {
                let moved = moved(other, &before);
                (moved.get("tunnel_source/ingress") != Some(&1)).then(|| format!("{moved:?}"))
            });
        }
        assert_eq!(counted(v4), heard);
        // The same from a node.
        let socket = traffic::udp_socket(&near.namespace, (other.address(v4), 4789).into()).unwrap();
        socket.send(&datagram).unwrap();
        eventually(|| (counted(v4) != heard + 1).then(|| "not heard".to_owned()));
    }
}
