//! What a node keeps for itself, and what a reboot leaves of it.

use std::{fs, io::ErrorKind, net::IpAddr, os::unix::fs::PermissionsExt};

use cni_tests::{
    frames::Ends,
    lab::{Fabric, Families, Lab, Plan, Routing, Signal},
    traffic::{self, Echo},
    wire::{Tap, holds},
};

use crate::{kind_of, needs_root};
use serde_json::json;

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
        dst_mac: node.namespace.mac("eth0").unwrap(),
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

/// Pods have routes to each other's addresses and to nothing of each other's, nor of the node's, besides.
#[test]
fn rel_50_the_host_side_of_pods_and_the_agents_sockets_are_out_of_reach() {
    needs_root!();
    let lab = small();
    let node = &lab.nodes[0];
    let (a, b) = (node.add_pod("a").unwrap(), node.add_pod("b").unwrap());
    let tap = Tap::open(&a.namespace, "eth0").unwrap();
    let before = node.all_drops().unwrap();
    // The gateway is link-local: no packet to it leaves the pod's host end.
    let gateway: IpAddr = "fe80::1".parse().unwrap();
    tap.send(&a.towards(gateway).tcp(2, b"")).unwrap();
    crate::eventually(|| {
        let drops = node.all_drops().unwrap();
        let reason = "link_local/egress";
        (drops.get(reason) <= before.get(reason)).then(|| format!("{drops:?}"))
    });
    // Health and metrics listen on the node's loopback alone, and the sockets are files of its own.
    for v4 in [true, false] {
        let refused = traffic::connect(&a.namespace, (node.address(v4), 9765).into()).unwrap_err();
        assert_eq!(kind_of(&refused), Some(ErrorKind::ConnectionRefused));
    }
    let listening = node.namespace.command("ss").args(["-Hlntu"]).output().unwrap();
    let listening = String::from_utf8(listening.stdout).unwrap();
    let open: Vec<&str> = listening
        .lines()
        .filter(|line| !line.contains("127.0.0.1:9765"))
        .collect();
    assert_eq!(
        open,
        Vec::<&str>::new(),
        "nothing of the agent is reached by the network"
    );
    // Another pod's host end answers nobody: it has no address.
    let addresses = node
        .namespace
        .list(&format!("addr show dev {}", b.host_device))
        .unwrap();
    let global = addresses[0]["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|address| address["scope"] != "link");
    assert_eq!(global.count(), 0, "{addresses:?}");
    traffic::ping(&a.namespace, b.ip(true), 56).unwrap();
}

/// Pods that were there before are said to be, with what to do.
#[test]
fn rel_32_a_pod_of_another_network_is_named() {
    needs_root!();
    let lab = small();
    let node = &lab.nodes[0];
    let pod = |name: &str, ip: IpAddr| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "shop" },
            "spec": { "nodeName": "node0" },
            "status": { "phase": "Running", "podIPs": [{ "ip": ip }] },
        })
    };
    let ours = node.add_pod("ours").unwrap();
    node.write_manifest("ours.yaml", &pod("ours", ours.ip(true)))
        .unwrap();
    node.write_manifest("before.yaml", &pod("before", [10, 88, 0, 7].into()))
        .unwrap();
    let problems = || node.ask(["status"]).unwrap()["checks"].to_string();
    crate::eventually(|| {
        let found = problems();
        let good = found.contains("1 (shop/before)") && found.contains("started anew");
        (!good).then_some(found)
    });
    fs::remove_file(node.folder().join("manifests/before.yaml")).unwrap();
    crate::eventually(|| {
        let found = problems();
        found.contains("another network").then_some(found)
    });
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

/// A packet to an address of the node's own range that no pod has: the node says so to whoever sent it, and does not
/// hand it to its default route, whose router would send it back.
#[test]
fn an_address_that_no_pod_has_is_unreachable_and_never_loops() {
    needs_root!();
    let lab = Lab::start(Plan::new(Routing::Direct, Families::Dual).fabric(Fabric::Router)).unwrap();
    let node = &lab.nodes[0];
    let pod = node.add_pod("a").unwrap();
    let wire = Tap::open(&lab.fabric, "node0").unwrap();
    for nobody in ["10.77.1.200", "fd00:10:77:1::dead"] {
        let nobody: IpAddr = nobody.parse().unwrap();
        for from in [&lab.outside, &node.namespace] {
            let error = traffic::connect(from, (nobody, 4000).into()).unwrap_err();
            let kind = kind_of(&error);
            // IPv6 tells "no route".
            let unreachable = [ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable];
            assert!(
                kind.is_some_and(|kind| unreachable.contains(&kind)),
                "{}: {error:#}",
                from.name()
            );
        }
    }
    traffic::ping(&pod.namespace, lab.outside_address(true), 56).unwrap();
    let echo = |frame: &[u8]| holds(frame, &traffic::pattern(56));
    let (_, before) = wire.catch("the control ping", echo).unwrap();
    // Those of outside on their way in, and none on its way out.
    let is_tcp = |frame: &&Vec<u8>| frame[if frame[12] == 8 { 23 } else { 20 }] == 6;
    let own = node.namespace.mac("eth0").unwrap();
    let (out, inwards): (Vec<_>, Vec<_>) = before
        .iter()
        .filter(is_tcp)
        .partition(|frame| frame[6..12] == own);
    assert_eq!(out, Vec::<&Vec<u8>>::new());
    assert!(inwards.len() >= 2, "{inwards:?}");
}
