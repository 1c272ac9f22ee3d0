//! What routers say: too big, time exceeded, unreachable; and fragments in the wrong order.

use std::{io::ErrorKind, net::IpAddr};

use cni_tests::{
    frames::{Ends, fragments},
    lab::{Families, Lab, Plan, Pod, Routing},
    netns::Namespace,
    traffic::{self, Echo},
    wire::{Tap, holds},
};

use crate::needs_root;

fn ends(from: &Pod, to: IpAddr, ttl: u8) -> Ends {
    Ends {
        dst_port: 5001,
        ttl,
        ..from.towards(to)
    }
}

/// Lets a pod send packets of this size, whatever its network is made for; and none that are cut later.
pub(crate) fn widen(node: &Namespace, pod: &Pod, mtu: u32) {
    node.ip(&format!("link set {} mtu {mtu}", pod.host_device))
        .unwrap();
    pod.namespace
        .ip(&format!("link set eth0 mtu {mtu} gso_max_segs 1"))
        .unwrap();
    pod.namespace
        .ip(&format!(
            "route replace default via 169.254.1.1 dev eth0 onlink mtu {mtu}"
        ))
        .unwrap();
    pod.namespace
        .ip(&format!("route replace default via fe80::1 dev eth0 mtu {mtu}"))
        .unwrap();
}

#[test]
fn rel_47_too_big_for_the_tunnel_is_said_and_heard() {
    needs_root!();
    let lab = Lab::start(Plan::new(Routing::Vxlan, Families::Dual)).unwrap();
    let [near, far] = lab.pair();
    let (a, c) = (near.add_pod("a").unwrap(), far.add_pod("c").unwrap());
    widen(&near.namespace, &a, 1500);
    widen(&far.namespace, &c, 1500);
    for v4 in [true, false] {
        let server = Echo::tcp(&c.namespace, c.ip(v4), 0).unwrap();
        traffic::tcp(&a.namespace, server.address, 300_000).unwrap();
        let route = a.namespace.list(&format!("route get {}", c.ip(v4))).unwrap();
        let learned = route[0]["metrics"][0]["mtu"].as_u64();
        assert_eq!(learned, Some(1450), "{route:?}");
    }
}

#[test]
fn rel_47_time_exceeded_comes_from_the_node() {
    needs_root!();
    for routing in [Routing::Direct, Routing::Vxlan] {
        let lab = Lab::start(Plan::new(routing, Families::Dual)).unwrap();
        let [near, far] = lab.pair();
        let (a, c) = (near.add_pod("a").unwrap(), far.add_pod("c").unwrap());
        let tap = Tap::open(&a.namespace, "eth0").unwrap();
        for v4 in [true, false] {
            for to in [c.ip(v4), lab.outside_address(v4)] {
                tap.send(&ends(&a, to, 1).udp(b"hop")).unwrap();
                let exceeded = |frame: &[u8]| match v4 {
                    true => frame.len() > 42 && frame[23] == 1 && frame[34] == 11,
                    false => frame.len() > 62 && frame[20] == 58 && frame[54] == 3,
                };
                let (frame, _) = tap
                    .catch(&format!("time exceeded, {routing:?}, to {to}"), exceeded)
                    .unwrap();
                let inner = if v4 { &frame[42..] } else { &frame[62..] };
                let sent = ends(&a, to, 1).udp(b"hop");
                let (addresses, ports) = if v4 { (12..20, 20..24) } else { (8..40, 40..44) };
                assert_eq!(
                    inner[addresses.clone()],
                    sent[14..][addresses],
                    "the packet as the pod sent it"
                );
                assert_eq!(inner[ports.clone()], sent[14..][ports]);
            }
        }
    }
}

#[test]
fn rel_47_unreachable_port_outside_is_heard_by_the_pod() {
    needs_root!();
    let lab = Lab::start(Plan::new(Routing::Vxlan, Families::Dual)).unwrap();
    let a = lab.nodes[0].add_pod("a").unwrap();
    for v4 in [true, false] {
        let tap = Tap::open(&a.namespace, "eth0").unwrap();
        let socket = traffic::udp_socket(&a.namespace, (lab.outside_address(v4), 9).into()).unwrap();
        socket.send(b"anybody?").unwrap();
        let error = socket.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        let (frame, _) = tap
            .catch("port unreachable", |frame| match v4 {
                true => frame[23] == 1 && frame[34] == 3,
                false => frame[20] == 58 && frame[54] == 1,
            })
            .unwrap();
        // Whoever computes it finds it right: the checksum covers the packet inside, whose own was corrected too.
        assert!(cni_tests::frames::checksums_hold(&frame), "{frame:02x?}");
    }
}

#[test]
fn rel_45_later_fragment_before_its_first_is_dropped() {
    needs_root!();
    let lab = Lab::start(Plan::new(Routing::Direct, Families::Dual)).unwrap();
    let node = &lab.nodes[0];
    let (a, b) = (node.add_pod("a").unwrap(), node.add_pod("b").unwrap());
    for (dropped, v4) in (1..).zip([true, false]) {
        let tap = Tap::open(&a.namespace, "eth0").unwrap();
        let listener = Tap::open(&b.namespace, "eth0").unwrap();
        let server = Echo::udp(&b.namespace, b.ip(v4), 5001).unwrap();
        let payload = traffic::pattern(600);
        let [first, later] = fragments(&ends(&a, b.ip(v4), 64).udp(&payload), 256, 77);
        tap.send(&later).unwrap();
        crate::eventually(|| {
            let drops = node.drops().unwrap();
            (drops.get("fragment_orphan/egress") != Some(&dropped)).then(|| format!("{drops:?}"))
        });
        tap.send(&first).unwrap();
        tap.send(&later).unwrap();
        let tail = payload[400..].to_vec();
        let (_, before) = listener
            .catch("the later fragment", |frame| holds(frame, &tail))
            .unwrap();
        let head = payload[..200].to_vec();
        assert_eq!(
            before.iter().filter(|frame| holds(frame, &head)).count(),
            1,
            "the first fragment"
        );
        // The receiver puts it together, and its answer comes back.
        tap.catch("the answer", |frame| frame[0..6] == a.mac && holds(frame, &head))
            .unwrap();
        drop(server);
    }
    assert_eq!(node.drops().unwrap().len(), 1);
}
