//! What a node keeps for itself, and what a reboot leaves of it.

use std::{fs, net::IpAddr, os::unix::fs::PermissionsExt};

use cni_tests::{
    frames::Ends,
    lab::{Families, Lab, Plan, Routing, Signal},
    traffic::{self, Echo},
    wire::Tap,
};

use crate::needs_root;

fn small() -> Lab {
    Lab::start(Plan::new(Routing::Direct, Families::Dual).nodes(1)).unwrap()
}

#[test]
fn rel_14_sockets_are_roots_alone() {
    needs_root!();
    let lab = small();
    for socket in ["agent.sock", "admin.sock"] {
        let path = lab.nodes[0].folder().join("run").join(socket);
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{socket}");
    }
}

#[test]
fn rel_19_router_advertisement_from_a_pod_changes_no_route() {
    needs_root!();
    let lab = small();
    let node = &lab.nodes[0];
    let pod = node.add_pod("a").unwrap();
    // As hosts have it that forward and still believe routers.
    node.namespace
        .set(&format!("net/ipv6/conf/{}/accept_ra", pod.host_device), "2")
        .unwrap();
    let before = node.namespace.list("-6 route").unwrap();
    let router = Ends {
        src_mac: pod.mac,
        dst_mac: [0x33, 0x33, 0, 0, 0, 1],
        src: "fe80::1".parse().unwrap(),
        dst: "ff02::1".parse().unwrap(),
        src_port: 0,
        dst_port: 0,
        ttl: 255,
    };
    // A default router for half an hour, with a prefix.
    let prefix = [3, 4, 64, 0xc0, 0, 0, 7, 8, 0, 0, 7, 8, 0, 0, 0, 0, 0xfd, 0x66];
    let mut advertisement = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    advertisement.extend(prefix);
    advertisement.resize(16 + 32, 0);
    let tap = Tap::open(&pod.namespace, "eth0").unwrap();
    tap.send(&router.icmp(&advertisement)).unwrap();
    crate::eventually(|| {
        let drops = node.drops().unwrap();
        (drops.get("neighbour_discovery/egress") != Some(&1)).then(|| format!("{drops:?}"))
    });
    assert_eq!(node.namespace.list("-6 route").unwrap(), before);
}

#[test]
fn rel_23_loopback_services_are_not_reached_from_the_wire() {
    needs_root!();
    let lab = small();
    let node = &lab.nodes[0];
    let pod = node.add_pod("a").unwrap();
    let loopback: IpAddr = [127, 0, 0, 1].into();
    let server = Echo::udp(&node.namespace, loopback, 4000).unwrap();
    let mac = |device: &str| {
        let link = &node.namespace.list(&format!("link show {device}")).unwrap()[0];
        let bytes = link["address"]
            .as_str()
            .unwrap()
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap());
        <[u8; 6]>::try_from(bytes.collect::<Vec<u8>>()).unwrap()
    };
    let from_pod = Ends {
        src_mac: pod.mac,
        dst_mac: pod.host_mac,
        src: pod.ip(true),
        dst: loopback,
        src_port: 4001,
        dst_port: 4000,
        ttl: 64,
    };
    let from_wire = Ends {
        src_mac: [2, 0, 0, 0, 0, 9],
        dst_mac: mac("eth0"),
        src: [192, 168, 64, 1].into(),
        ..from_pod
    };
    let wire = Tap::open(&lab.fabric, "node0").unwrap();
    let inside = Tap::open(&pod.namespace, "eth0").unwrap();
    for _ in 0..3 {
        inside.send(&from_pod.udp(b"pod")).unwrap();
        wire.send(&from_wire.udp(b"wire")).unwrap();
        wire.send(
            &Ends {
                src: loopback,
                ..from_wire
            }
            .udp(b"both"),
        )
        .unwrap();
    }
    // The same devices carry these, after them.
    traffic::ping(&pod.namespace, node.address(true), 56).unwrap();
    traffic::ping(&lab.fabric, node.address(true), 56).unwrap();
    assert_eq!(server.peers(), std::collections::BTreeSet::new());
    traffic::udp(&node.namespace, server.address, 10).unwrap();
}

#[test]
fn rel_33_reboot_leaves_no_address_and_gives_none_twice() {
    needs_root!();
    let lab = small();
    let node = &lab.nodes[0];
    let empty = node.intent().unwrap();
    let before: Vec<_> = ["a", "b"].map(|name| node.add_pod(name).unwrap()).into();
    let taken: Vec<IpAddr> = before.iter().flat_map(|pod| pod.addresses.clone()).collect();
    node.end_agent(Signal::SIGKILL).unwrap();
    // Devices and what is pinned do not survive it, what is on disk does.
    drop(before);
    fs::remove_dir_all(node.pins()).unwrap();
    node.start_agent().unwrap();
    node.wait_until_ready().unwrap();
    let after = node.add_pod("c").unwrap();
    assert!(
        !after.addresses.iter().any(|ip| taken.contains(ip)),
        "{:?} again",
        after.addresses
    );
    traffic::ping(&after.namespace, node.address(true), 56).unwrap();
    node.delete_pod(after).unwrap();
    crate::eventually(|| {
        let now = node.intent().unwrap();
        (now != empty).then(|| format!("left: {now:#?}"))
    });
    assert_eq!(node.ask(["endpoints"]).unwrap(), serde_json::json!([]));
}
