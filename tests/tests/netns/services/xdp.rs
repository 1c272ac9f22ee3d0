//! What comes from outside for another node's endpoint is turned round on the device by which it came.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use aya::programs::xdp::XdpMode;
use cni_ebpf::abi::Config;
use cni_tests::{
    lab::{Drops, Lab, Node, Plan, Pod, Routing, ServiceManifest, Signal, binary},
    object, require_in_vm,
    traffic::{Echo, Steady, tcp, udp},
    wire::Tap,
};
use serde_json::json;

use super::external::{NODE_PORT, clients, node_port};
use super::{plan, publish, serve};
use crate::{eventually, needs_root, next_release};

fn with(xdp: &str) -> Plan {
    let mut plan = plan(Routing::Direct);
    plan.config["services"]["xdp"] = json!(xdp);
    plan
}

/// How many packets the program has turned round on a node's device.
fn turned_round(node: &Node) -> u64 {
    let text = node.namespace.ethtool("-S eth0").unwrap();
    let counts = text.lines().filter(|line| line.contains("_xdp_tx:"));
    counts
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// How many packets for the node port were heard since the last look.
fn to_node_port(tap: &Tap) -> usize {
    let heard = std::iter::from_fn(|| tap.next(Duration::from_millis(1)).unwrap());
    // Behind an IPv4 header without options, or an IPv6 header.
    let is_to = |frame: &[u8], at: usize| frame.get(at..at + 2) == Some(&NODE_PORT.to_be_bytes());
    heard
        .filter(|(frame, _)| match frame.get(12..14) {
            Some([0x08, 0x00]) => is_to(frame, 36),
            Some([0x86, 0xdd]) => is_to(frame, 56),
            _ => false,
        })
        .count()
}

/// What the kernel says of the device's XDP program.
fn xdp_of(node: &Node, device: &str) -> serde_json::Value {
    let links = node
        .namespace
        .list(&format!("-d link show dev {device}"))
        .unwrap();
    links[0]["xdp"].clone()
}

fn elsewhere(lab: &Lab, pods: &[&Pod]) -> ServiceManifest {
    let service = pods.iter().fold(
        ServiceManifest::new(1).spec(node_port("Cluster")),
        |service, pod| service.endpoint_at(pod, 8080, "node1", json!({})),
    );
    publish(lab, &service);
    service
}

fn reach(lab: &Lab, node: &Node) {
    for v4 in [true, false] {
        let to = SocketAddr::new(node.address(v4), NODE_PORT);
        tcp(&lab.outside, to, 100_000).unwrap();
        udp(&lab.outside, to, 1000).unwrap();
    }
}

/// The node itself from outside, and its pod from another node's.
fn reach_past_services(lab: &Lab, node: &Node, local: &Pod, elsewhere: &Pod) {
    for v4 in [true, false] {
        let (here, there) = (
            Echo::tcp(&node.namespace, node.address(v4), 0).unwrap(),
            Echo::udp(&local.namespace, local.ip(v4), 0).unwrap(),
        );
        tcp(&lab.outside, here.address, 100_000).unwrap();
        udp(&elsewhere.namespace, there.address, 1000).unwrap();
    }
}

#[test]
fn svc_33_a_node_port_whose_endpoint_is_elsewhere_never_reaches_the_stack() {
    needs_root!();
    let lab = Lab::start(with("native")).unwrap();
    let [near, far] = lab.pair();
    let pod = far.add_pod("pod").unwrap();
    let echoes: Vec<Echo> = serve(&pod, 8080);
    elsewhere(&lab, &[&pod]);
    let _ports = lab.take_frames_back().unwrap();
    assert_eq!(xdp_of(near, "eth0")["mode"], json!(1), "{}", xdp_of(near, "eth0"));
    // Unfinished checksums and the pod's node itself are the business of the hook behind.
    reach(&lab, near);
    reach(&lab, far);
    assert_eq!([near, far].map(turned_round), [0, 0]);
    lab.outside.finish_checksums("eth0").unwrap();
    pod.namespace.finish_checksums("eth0").unwrap();
    reach(&lab, near);
    let count = turned_round(near);
    // 200,000 bytes there and back in packets of 1,448 for each family, and both directions of each.
    assert!(count > 4 * 69, "{count} packets were turned round");
    let seen = clients(&echoes);
    assert!(
        seen.contains(&near.address(true)) && seen.contains(&near.address(false)),
        "{seen:?}"
    );
    // What is the node's own and its pods' arrives as before.
    let local = near.add_pod("local").unwrap();
    reach_past_services(&lab, near, &local, &pod);
}

#[test]
fn svc_33_addresses_of_load_balancers_and_external_ones_are_turned_round_as_node_ports_are() {
    needs_root!();
    let mut plan = with("native");
    plan.config["services"]["externalIPs"] = json!(true);
    let lab = Lab::start(plan).unwrap();
    let [near, far] = lab.pair();
    let pod = far.add_pod("pod").unwrap();
    let _echoes = serve(&pod, 8080);
    let (balancers, external) = (
        ["198.51.100.40", "2001:db8:40::1"],
        ["198.51.100.41", "2001:db8:41::1"],
    );
    let mut spec = node_port("Cluster");
    spec["type"] = json!("LoadBalancer");
    spec["externalIPs"] = json!(external);
    let service = ServiceManifest::new(1)
        .spec(spec)
        .status(json!({ "loadBalancer": { "ingress": balancers.map(|ip| json!({ "ip": ip })) } }));
    publish(&lab, &service.endpoint_at(&pod, 8080, "node1", json!({})));
    let _ports = lab.take_frames_back().unwrap();
    lab.outside.finish_checksums("eth0").unwrap();
    pod.namespace.finish_checksums("eth0").unwrap();
    for ip in balancers.iter().chain(&external) {
        let ip: IpAddr = ip.parse().unwrap();
        lab.fabric
            .ip(&format!("route add {ip} via {}", near.address(ip.is_ipv4())))
            .unwrap();
        let before = turned_round(near);
        tcp(&lab.outside, SocketAddr::new(ip, 80), 100_000).unwrap();
        udp(&lab.outside, SocketAddr::new(ip, 80), 1000).unwrap();
        // 100,000 bytes there and back in packets of 1,448.
        let count = turned_round(near) - before;
        assert!(count > 2 * 69, "{ip}: {count} packets were turned round");
    }
}

/// Where a driver has no XDP the program may see a copy of the packet, of which newer kernels lose the link header.
#[test]
fn svc_33_behind_a_driver_without_xdp_all_is_served_as_before() {
    needs_root!();
    let lab = Lab::start(with("generic")).unwrap();
    let [near, far] = lab.pair();
    let (pod, local) = (far.add_pod("pod").unwrap(), near.add_pod("local").unwrap());
    let _echoes = serve(&pod, 8080);
    elsewhere(&lab, &[&pod]);
    assert_eq!(xdp_of(near, "eth0")["mode"], json!(2), "{}", xdp_of(near, "eth0"));
    // It stands behind the program, and hears nothing of what that turns round.
    let behind = Tap::open(&near.namespace, "eth0").unwrap();
    for finished in [false, true] {
        if finished {
            lab.outside.finish_checksums("eth0").unwrap();
            pod.namespace.finish_checksums("eth0").unwrap();
        }
        // By the hook behind, or by the program itself; and what is the business of neither.
        let _before = to_node_port(&behind);
        reach(&lab, near);
        let passed = to_node_port(&behind);
        assert_eq!(passed == 0, finished, "{passed} packets went past the program");
        reach(&lab, far);
        reach_past_services(&lab, near, &local, &pod);
    }
    let drops = [near, far].map(|node| node.drops().unwrap());
    assert_eq!(drops, [Drops::new(), Drops::new()]);
}

/// Devices of this machine that a driver has.
fn driven_by(driver: &str) -> Vec<String> {
    let devices = std::fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten();
    let of_driver = devices.filter(|device| {
        let link = std::fs::read_link(device.path().join("device/driver"));
        link.is_ok_and(|link| link.ends_with(driver))
    });
    of_driver
        .map(|device| device.file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn svc_33_a_node_port_is_turned_round_by_the_driver_of_virtio() {
    is_turned_round_by("virtio_net");
}

#[test]
fn svc_33_a_node_port_is_turned_round_by_the_driver_of_igb() {
    is_turned_round_by("igb");
}

fn is_turned_round_by(driver: &str) {
    needs_root!();
    let cable: Result<[String; 2], _> = driven_by(driver).try_into();
    require_in_vm!(
        cable.is_ok() && std::env::var_os("MILLRACE_VM").is_some(),
        "a machine of its own has two devices of {driver}: {cable:?}"
    );
    let name = format!("mrlab-{driver}-{}", std::process::id());
    let lab = Lab::prepare(with("native"), &name).unwrap();
    let [near, far] = lab.pair();
    lab.recable(near, &cable.unwrap()).unwrap();
    // The other node's is a virtual one, and has nothing to turn round.
    for node in [near, far] {
        node.start_agent().unwrap();
        node.wait_until_ready().unwrap();
    }
    let pod = far.add_pod("pod").unwrap();
    let _echoes = serve(&pod, 8080);
    assert_eq!(xdp_of(near, "eth0")["mode"], json!(1), "{}", xdp_of(near, "eth0"));
    // Not every driver counts what programs send back: what hears all that goes past the program tells.
    let behind = Tap::open(&near.namespace, "eth0").unwrap();
    let to_nobody = SocketAddr::new(near.address(true), NODE_PORT);
    tcp(&lab.outside, to_nobody, 1).unwrap_err();
    assert!(to_node_port(&behind) > 0, "it does not hear");
    elsewhere(&lab, &[&pod]);
    lab.outside.finish_checksums("eth0").unwrap();
    pod.namespace.finish_checksums("eth0").unwrap();
    // The first ones have neighbours looked for.
    reach(&lab, near);
    let _before = to_node_port(&behind);
    let sent = sent_by(near);
    reach(&lab, near);
    let passed = to_node_port(&behind);
    assert_eq!(passed, 0, "packets went past the program");
    // 200,000 bytes there and back in packets of 1,448 for each family, and both directions of each.
    let count = sent_by(near) - sent;
    assert!(count > 4 * 69, "{count} packets were turned round");
}

/// How many packets the device of a node has sent.
fn sent_by(node: &Node) -> u64 {
    let links = node.namespace.list("-s link show dev eth0").unwrap();
    links[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
}

#[test]
fn svc_52_connections_through_a_node_survive_its_agent() {
    needs_root!();
    let next = next_release!("MILLRACE_NEXT_BIN", "millrace");
    let lab = Lab::start(with("native")).unwrap();
    let [near, far] = lab.pair();
    let pod = far.add_pod("pod").unwrap();
    let _echoes = serve(&pod, 8080);
    elsewhere(&lab, &[&pod]);
    let _ports = lab.take_frames_back().unwrap();
    lab.outside.finish_checksums("eth0").unwrap();
    pod.namespace.finish_checksums("eth0").unwrap();
    let to = |v4| SocketAddr::new(near.address(v4), NODE_PORT);
    let flows = [
        Steady::tcp(&lab.outside, to(true)).unwrap(),
        Steady::udp(&lab.outside, to(false)).unwrap(),
        Steady::connections(&lab.outside, to(false)).unwrap(),
    ];
    let go_on = |flows: &[Steady]| {
        let before = turned_round(near);
        flows.iter().for_each(|flow| flow.wait_for(50));
        assert!(turned_round(near) > before + 150, "not by the program");
    };
    let ours = binary("MILLRACE_BIN", "millrace");
    let replace = |flows: &[Steady], signal, millrace: &Path| {
        go_on(flows);
        near.end_agent(signal).unwrap();
        go_on(flows);
        near.start_agent_of(millrace).unwrap();
        near.wait_until_ready().unwrap();
        go_on(flows);
    };
    replace(&flows, Signal::SIGKILL, &ours);
    replace(&flows, Signal::SIGTERM, &ours);
    let [tcp, udp, connections] = flows;
    assert_eq!(connections.stop().failures, Vec::<String>::new());
    // What is established crosses to another layout and back.
    let flows = [tcp, udp];
    replace(&flows, Signal::SIGTERM, &next);
    replace(&flows, Signal::SIGTERM, &ours);
    for flow in flows {
        assert_eq!(flow.stop().failures, Vec::<String>::new());
    }
    near.end_agent(Signal::SIGTERM).unwrap();
    near.uninstall().unwrap();
    assert_eq!(xdp_of(near, "eth0"), json!(null));
    assert!(!near.pins().exists());
}

#[test]
fn somebody_elses_xdp_program_stays_and_is_named() {
    needs_root!();
    let name = format!("mrlab-foreign-{}", std::process::id());
    let lab = Lab::prepare(with("auto").nodes(1), &name).unwrap();
    let node = &lab.nodes[0];
    let mut foreign = object::open(&object::bytes().unwrap(), &Config::DEFAULT).unwrap();
    let program = object::load_xdp(&mut foreign, object::XDP_PROGRAM).unwrap();
    node.namespace
        .run(|| program.attach("eth0", XdpMode::Driver).unwrap());
    let before = xdp_of(node, "eth0");
    node.start_agent().unwrap();
    node.wait_until_ready().unwrap();
    eventually(|| {
        let status = node.ask(["status"]).unwrap().to_string();
        (!status.contains("netdev/eth0/xdp_nodeport") || !status.contains("another XDP program"))
            .then_some(status)
    });
    assert_eq!(xdp_of(node, "eth0"), before);
}

#[test]
fn a_device_that_cannot_is_named_or_served_behind_its_driver() {
    needs_root!();
    for (xdp, mode) in [("native", json!(null)), ("auto", json!(2)), ("generic", json!(2))] {
        let mut plan = with(xdp).nodes(1);
        plan.config["devices"] = json!(["eth0", "other0"]);
        let lab = Lab::start(plan).unwrap();
        let node = &lab.nodes[0];
        let named = || {
            node.ask(["status"])
                .unwrap()
                .to_string()
                .contains("netdev/other0/xdp_nodeport")
        };
        eventually(|| {
            let found = xdp_of(node, "other0");
            (found["mode"] != mode || named() != mode.is_null()).then(|| format!("{xdp}: {found}"))
        });
        assert_eq!(
            xdp_of(node, "eth0")["mode"],
            json!(if xdp == "generic" { 2 } else { 1 })
        );
    }
}

#[test]
fn the_way_changes_with_the_setting() {
    needs_root!();
    let mut lab = Lab::start(with("generic").nodes(1)).unwrap();
    for (xdp, mode) in [("native", json!(1)), ("generic", json!(2)), ("off", json!(null))] {
        lab.nodes[0].end_agent(Signal::SIGTERM).unwrap();
        lab.plan.config["services"]["xdp"] = json!(xdp);
        let node = &lab.nodes[0];
        node.write_config(&lab.plan).unwrap();
        node.start_agent().unwrap();
        node.wait_until_ready().unwrap();
        eventually(|| {
            let found = xdp_of(node, "eth0");
            (found["mode"] != mode).then(|| format!("{xdp}: {found}"))
        });
    }
}
