//! The maps follow the objects.

use std::{collections::BTreeMap, env, thread, time::Duration};

use cni_tests::lab::{
    ControlPlane, Families, Lab, Node, Plan, Routing,
    control_plane::{pod, service_range},
};
use serde_json::json;

use crate::{
    control_plane::is_content,
    eventually, everything, needs_control_plane,
    services::{becomes, service, slice},
};

/// The entries of a map that speak of an address.
fn entries(node: &Node, map: &str, of: &str) -> Vec<String> {
    let mut entries = node.dump(map).unwrap();
    entries.retain(|entry| entry.contains(&format!("\"{of}\"")) || entry.contains(&format!("\"{of}/")));
    entries
}

#[track_caller]
fn known(node: &Node, address: &str, wanted: bool) {
    eventually(|| {
        let found = entries(node, "peers", address);
        (found.is_empty() == wanted).then(|| format!("{}: {address}: {found:?}", node.name()))
    });
}

#[test]
fn objects_of_the_api_server_make_the_same_maps_as_manifests() {
    needs_control_plane!();
    for routing in [Routing::Direct, Routing::Vxlan] {
        let plan = || Plan::new(routing, Families::Dual);
        let from_files = Lab::start(plan()).unwrap();
        let (_control, from_server) = Lab::start_with_control_plane(plan()).unwrap();
        for (one, other) in from_files.nodes.iter().zip(&from_server.nodes) {
            let mut other = other.intent().unwrap();
            // Of the API server's own objects, which manifests have not.
            let is_own = |entry: &String| [true, false].iter().any(|v4| entry.contains(service_range(*v4)));
            other.retain(|entry| !is_own(entry));
            assert_eq!(shape(one.intent().unwrap()), shape(other));
        }
    }
}

/// Without what differs between two labs: MAC addresses and indices of devices.
fn shape(entries: Vec<String>) -> Vec<String> {
    let cut = |entry: String| {
        let Some((map, text)) = entry.split_once(' ') else {
            return entry;
        };
        let Ok(mut value) = serde_json::from_str::<serde_json::Value>(text) else {
            return entry;
        };
        strip(&mut value);
        format!("{map} {value}")
    };
    let mut entries: Vec<String> = entries.into_iter().map(cut).collect();
    entries.sort();
    entries
}

fn strip(value: &mut serde_json::Value) {
    if let Some(object) = value.as_object_mut() {
        object.retain(|key, _| !key.contains("ifindex") && !key.contains("mac"));
        object.values_mut().for_each(strip);
    }
}

#[test]
fn pods_and_nodes_come_change_and_go() {
    needs_control_plane!();
    let (control, lab) = Lab::start_with_control_plane(Plan::new(Routing::Vxlan, Families::Dual)).unwrap();
    let node = &lab.nodes[0];
    let empty = node.intent().unwrap();
    control
        .run_pod(&pod("a", "node1", &["10.77.2.9", "fd00:10:77:2::9"]))
        .unwrap();
    known(node, "10.77.2.9", true);
    known(node, "fd00:10:77:2::9", true);
    // A pod on its host's network is no peer of its own.
    let mut host = pod("host", "node1", &["192.168.64.12"]);
    host["spec"]["hostNetwork"] = json!(true);
    control.run_pod(&host).unwrap();
    // The address moves to a pod on another node.
    control
        .kubectl(&["delete", "pod", "a", "--grace-period=0", "--force"])
        .unwrap();
    control.run_pod(&pod("b", "node0", &["10.77.2.9"])).unwrap();
    known(node, "fd00:10:77:2::9", false);
    known(node, "10.77.2.9", true);
    control
        .kubectl(&["delete", "pods", "--all", "--grace-period=0", "--force"])
        .unwrap();
    known(node, "10.77.2.9", false);
    assert_eq!(node.intent().unwrap(), empty);

    // A node is added, gets another address, and is gone again.
    let mut third = cni_tests::lab::control_plane::node(&lab.plan, 2);
    control.apply(std::slice::from_ref(&third)).unwrap();
    control.set_status(&third).unwrap();
    let route = || entries(node, "routes", "10.77.3.0");
    eventually(|| {
        route()
            .is_empty()
            .then(|| "no route to the new node's pods".to_owned())
    });
    third["status"]["addresses"] = json!([{ "type": "InternalIP", "address": "192.168.64.99" }]);
    control.set_status(&third).unwrap();
    eventually(|| {
        let route = route();
        (!route.iter().any(|entry| entry.contains("192.168.64.99"))).then(|| format!("{route:?}"))
    });
    // Under another name: its new object has the ranges and the address while the old one is still there, and when it goes.
    let mut renamed = third.clone();
    renamed["metadata"]["name"] = json!("node2-renamed");
    control.apply(std::slice::from_ref(&renamed)).unwrap();
    control.set_status(&renamed).unwrap();
    control
        .run_pod(&pod("moved", "node2-renamed", &["10.77.3.9"]))
        .unwrap();
    known(node, "10.77.3.9", true);
    control.kubectl(&["delete", "node", "node2"]).unwrap();
    // What the same watch tells later is known later: by then the deletion was too.
    let fourth = cni_tests::lab::control_plane::node(&lab.plan, 3);
    control.apply(std::slice::from_ref(&fourth)).unwrap();
    control.set_status(&fourth).unwrap();
    eventually(|| {
        let found = entries(node, "routes", "10.77.4.0");
        found.is_empty().then(|| "no route to the fourth node".to_owned())
    });
    is_content(node);
    assert!(
        route().iter().any(|entry| entry.contains("192.168.64.99")),
        "{:?}",
        route()
    );
    control
        .kubectl(&["delete", "pods", "--all", "--grace-period=0", "--force"])
        .unwrap();
    control
        .kubectl(&["delete", "node", "node2-renamed", "node3"])
        .unwrap();
    eventually(|| (!route().is_empty()).then(|| format!("{:?}", route())));
    eventually(|| {
        let now = node.intent().unwrap();
        (now != empty).then(|| format!("{now:?}"))
    });
}

/// `route_action::STACK`, as `millrace dump` shows it.
const STACK: u8 = cni_ebpf::abi::route_action::STACK;

#[test]
fn service_ranges_go_to_the_stack_without_being_configured() {
    needs_control_plane!();
    let (control, lab) = Lab::start_with_control_plane(Plan::new(Routing::Direct, Families::Dual)).unwrap();
    let node = &lab.nodes[0];
    for range in ["10.96.0.0", "fd00:10:96::"] {
        eventually(|| {
            entries(node, "routes", range)
                .is_empty()
                .then(|| format!("{range} is not there"))
        });
        let entry: serde_json::Value = serde_json::from_str(&entries(node, "routes", range)[0]).unwrap();
        assert_eq!(entry.pointer("/value/action"), Some(&json!(STACK)), "{entry}");
    }
    control
        .apply(&[json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": { "name": "more" }, "spec": { "cidrs": ["10.104.0.0/16"] },
        })])
        .unwrap();
    eventually(|| {
        entries(node, "routes", "10.104.0.0")
            .is_empty()
            .then(|| "no route".to_owned())
    });
}

#[test]
fn rel_36_an_outage_changes_nothing_and_its_end_neither() {
    needs_control_plane!();
    outage("stack", Duration::ZERO);
}

#[test]
fn rel_36_a_long_outage_changes_nothing_of_services_either() {
    needs_control_plane!();
    // Longer than any request is waited for, and than any pause between attempts.
    let seconds = env::var("MILLRACE_OUTAGE_SECONDS").map_or(70, |seconds| seconds.parse().unwrap());
    outage("millrace", Duration::from_secs(seconds));
}

fn outage(proxy: &str, lasts: Duration) {
    let plan = Plan::new(Routing::Vxlan, Families::Dual).config(json!({ "services": { "proxy": proxy } }));
    let (mut control, lab) = Lab::start_with_control_plane(plan).unwrap();
    let node = &lab.nodes[0];
    control.run_pod(&pod("far", "node1", &["10.77.2.9"])).unwrap();
    known(node, "10.77.2.9", true);
    control
        .apply(&[service(json!({})), slice("web-1", &["10.77.2.9"])])
        .unwrap();
    if proxy == "millrace" {
        becomes(node, Some(&["10.77.2.9"]));
    }
    let a = node.add_pod("a").unwrap();
    let before = everything(node);
    let rounds = |name: &str| node.ask(["status"]).unwrap()["agent"]["reconcile"][name].clone();
    let server = control.addresses[0];
    control.kill_server(server).unwrap();
    eventually(|| {
        let problems = node.ask(["status"]).unwrap()["agent"]["problems"].to_string();
        (!problems.contains("no API server answers")).then_some(problems)
    });
    assert_eq!(everything(node), before);
    thread::sleep(lasts);
    assert_eq!(everything(node), before);
    // Pods come and go meanwhile.
    let b = node.add_pod("b").unwrap();
    node.delete_pod(b).unwrap();
    eventually(|| {
        let now = everything(node);
        (now != before).then(|| format!("{now:?}"))
    });
    let changes = rounds("changes");
    control.start_server(server).unwrap();
    eventually(|| {
        let problems = node.ask(["status"]).unwrap()["agent"]["problems"].to_string();
        problems.contains("no API server answers").then_some(problems)
    });
    assert_eq!(everything(node), before);
    assert_eq!(rounds("changes"), changes);
    node.delete_pod(a).unwrap();
}

#[test]
fn what_vanished_while_nobody_looked_is_gone_after_the_relist() {
    needs_control_plane!();
    let (mut control, lab) =
        Lab::start_with_control_plane(Plan::new(Routing::Direct, Families::Dual)).unwrap();
    let node = &lab.nodes[0];
    for (name, ip) in [("stays", "10.77.2.8"), ("goes", "10.77.2.9")] {
        control.run_pod(&pod(name, "node1", &[ip])).unwrap();
        known(node, ip, true);
    }
    // Each watch has begun with a stream, and asks for marks of how far it is, so that it can go on from there.
    let begun = streams(&control);
    assert!(begun.len() >= 5, "{begun:?}");
    let plain = |asked: &&String| !asked.contains("allowWatchBookmarks=true");
    let asked = control.watches().unwrap();
    assert_eq!(asked.iter().find(plain), None);
    let [server, _, unknown] = control.addresses;
    // A second server on the same store, which the agents do not know.
    control.kill_server(server).unwrap();
    control.start_server(unknown).unwrap();
    control
        .kubectl(&["delete", "pod", "goes", "--grace-period=0", "--force"])
        .unwrap();
    control.run_pod(&pod("comes", "node1", &["10.77.2.10"])).unwrap();
    control.kill_server(unknown).unwrap();
    // It begins with what is in the store now, and has forgotten the versions that the agents saw.
    control.start_server(server).unwrap();
    known(node, "10.77.2.10", true);
    known(node, "10.77.2.9", false);
    known(node, "10.77.2.8", true);
    // Everything was told to each agent once more, and no more than once.
    let agents = lab.nodes.len();
    let once_more = begun.iter().map(|(kind, times)| (kind.clone(), times + agents));
    let once_more: BTreeMap<String, usize> = once_more.collect();
    eventually(|| {
        let now = streams(&control);
        (now != once_more).then(|| format!("{now:?} instead of {once_more:?}"))
    });
}

/// How often each kind has been told from its beginning, to both agents.
fn streams(control: &ControlPlane) -> BTreeMap<String, usize> {
    let mut begun = BTreeMap::new();
    for asked in control.watches().unwrap() {
        if let (true, Some((kind, _))) = (asked.contains("sendInitialEvents=true"), asked.split_once('?')) {
            *begun.entry(kind.to_owned()).or_default() += 1;
        }
    }
    begun
}
