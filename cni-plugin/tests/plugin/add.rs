//! ADD, on real namespaces.

use crate::node::{Namespace, Node};
use cni_plugin::{code, host_ifname};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
};

fn host_name() -> String {
    host_ifname("c1", "eth0")
}

/// A byte from the host to the pod and back, over TCP.
fn echo(host: &Namespace, pod: &Namespace, address: &str) {
    let listener = pod.run(|| TcpListener::bind((address, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(&byte).unwrap();
    });
    host.run(|| {
        let mut stream = TcpStream::connect((address, port)).unwrap();
        stream.write_all(b"x").unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    });
    server.join().unwrap();
}

#[test]
fn the_pair_carries_traffic_of_both_families() {
    let Some(node) = Node::new() else { return };
    node.host.ip("link set lo up");
    node.host.ip("address add 192.0.2.1/32 dev lo");
    node.host.ip("address add 2001:db8::1/128 dev lo");
    node.add();
    echo(&node.host, &node.pod, "10.0.0.1");
    echo(&node.host, &node.pod, "fd00::1");
}

#[test]
fn the_pods_end_needs_no_neighbour_discovery() {
    let Some(node) = Node::new() else { return };
    node.add();
    let link = &node.pod.list("link show eth0")[0];
    assert_eq!(
        (&link["address"], &link["mtu"]),
        (&json!("02:00:00:01:00:01"), &json!(1450))
    );
    let addresses: Vec<(Value, Value)> = node.pod.list("address show dev eth0")[0]["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        .map(|address| (address["local"].clone(), address["prefixlen"].clone()))
        .collect();
    assert_eq!(
        addresses,
        [(json!("10.0.0.1"), json!(32)), (json!("fd00::1"), json!(128))],
        "and no link-local one"
    );
    for (family, gateway) in [("-4", "169.254.1.1"), ("-6", "fe80::1")] {
        let neighbours = node.pod.list(&format!("{family} neighbour show dev eth0"));
        assert_eq!(neighbours.len(), 1, "{neighbours:?}");
        assert_eq!(neighbours[0]["dst"], gateway);
        assert_eq!(neighbours[0]["lladdr"], "02:00:00:02:00:01");
        assert_eq!(neighbours[0]["state"], json!(["PERMANENT"]));
        let default = &node.pod.list(&format!("{family} route show default"))[0];
        assert_eq!(
            (&default["gateway"], &default["dev"]),
            (&json!(gateway), &json!("eth0"))
        );
    }
    let dad = node.pod.list("-6 address show dev eth0 tentative");
    assert!(
        dad.iter()
            .all(|link| link["addr_info"].as_array().is_none_or(Vec::is_empty)),
        "{dad:?}"
    );
}

#[test]
fn the_hosts_end_is_routed_to_and_has_no_address() {
    let Some(node) = Node::new() else { return };
    node.add();
    let name = host_name();
    assert_eq!(node.host.links(), [name.as_str()]);
    assert_eq!(
        node.host.list(&format!("address show dev {name}"))[0]["addr_info"],
        json!([])
    );
    for (family, pod) in [("-4", "10.0.0.1"), ("-6", "fd00::1")] {
        let routes = node.host.list(&format!("{family} route show proto 77"));
        assert_eq!(routes.len(), 1, "{routes:?}");
        assert_eq!(
            (&routes[0]["dst"], &routes[0]["dev"]),
            (&json!(pod), &json!(name))
        );
        let neighbour = &node.host.list(&format!("{family} neighbour show dev {name}"))[0];
        assert_eq!(
            (&neighbour["dst"], &neighbour["state"]),
            (&json!(pod), &json!(["PERMANENT"]))
        );
        assert_eq!(neighbour["lladdr"], "02:00:00:01:00:01");
    }
    let setting = |key| {
        let path = format!("/proc/sys/net/ipv6/conf/{name}/{key}");
        node.host.run(|| std::fs::read_to_string(path).unwrap())
    };
    assert_eq!(
        (setting("accept_ra").trim(), setting("autoconf").trim()),
        ("0", "0")
    );
}

#[test]
fn rel_31_the_hosts_end_is_down_until_the_endpoint_is_programmed() {
    let Some(node) = Node::new() else { return };
    node.add();
    let seen = node.agent().seen_at_program();
    assert!(seen.len() == 1 && !seen[0].contains("UP"), "{seen:?}");
    let flags = node.host.list("link show")[1]["flags"].to_string();
    assert!(flags.contains("\"UP\"") && flags.contains("LOWER_UP"), "{flags}");
}

#[test]
fn results_are_printed_in_the_configurations_version() {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let Some(node) = Node::new() else { return };
        let result = node.call("ADD").with(json!({"cniVersion": version})).run().ok();
        assert_eq!(result["cniVersion"], version);
        let newest = version == "1.1.0";
        let old = !version.starts_with('1');
        assert_eq!(
            result["ips"][0].get("version"),
            old.then(|| json!("4")).as_ref(),
            "{version}"
        );
        assert_eq!(
            result["ips"][1].get("version"),
            old.then(|| json!("6")).as_ref(),
            "{version}"
        );
        assert_eq!(
            result["interfaces"][1].get("mtu"),
            newest.then(|| json!(1450)).as_ref(),
            "{version}"
        );
        assert_eq!(
            result["routes"],
            json!([
                {"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}
            ])
        );
    }
    let Some(node) = Node::new() else { return };
    for version in ["0.1.0", "0.2.0", "9.0.0"] {
        node.call("ADD")
            .with(json!({"cniVersion": version}))
            .run()
            .code(code::INCOMPATIBLE_VERSION);
    }
    node.call("ADD")
        .without("cniVersion")
        .run()
        .code(code::INCOMPATIBLE_VERSION);
    node.assert_empty();
}

#[test]
fn cni_02_an_interface_that_exists_fails_add_and_is_left_alone() {
    let Some(node) = Node::new() else { return };
    node.pod.ip("link add eth0 type veth peer name other0");
    node.call("ADD").run().code(code::INTERFACE_EXISTS);
    assert_eq!(
        node.pod.links().len(),
        2,
        "the interface that was there is left alone"
    );
    node.pod.ip("link delete eth0");
    node.assert_empty();
    assert_eq!(
        node.agent().requests(),
        [],
        "the agent was asked although nothing could be done"
    );
    node.call("ADD")
        .set("CNI_IFNAME", "lo")
        .run()
        .code(code::INTERFACE_EXISTS);
}

#[test]
fn cni_02_a_second_add_fails_and_the_first_attachment_stays() {
    let Some(node) = Node::new() else { return };
    let result = node.add();
    node.call("ADD").run().code(code::INTERFACE_EXISTS);
    node.call("CHECK").with(json!({"prevResult": result})).run().ok();
}

#[test]
fn cni_02_an_interface_of_the_same_name_in_prev_result_fails_add() {
    let Some(node) = Node::new() else { return };
    let previous =
        json!({"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": node.pod.path()}]});
    node.call("ADD")
        .with(json!({"prevResult": previous}))
        .run()
        .code(code::INTERFACE_EXISTS);
    node.assert_empty();
}

#[test]
fn cni_04_our_entries_are_appended_and_indexed_over_the_whole_list() {
    let Some(node) = Node::new() else { return };
    let previous = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "other0"}, {"name": "net1", "sandbox": node.pod.path(), "mac": "02:00:00:00:09:09"}],
        "ips": [{"address": "198.51.100.7/24", "interface": 1}],
        "routes": [{"dst": "198.51.100.0/24"}],
        "dns": {"nameservers": ["198.51.100.53"]},
    });
    let result = node.call("ADD").with(json!({"prevResult": previous})).run().ok();
    for (list, count) in [("interfaces", 2), ("ips", 1), ("routes", 1)] {
        for index in 0..count {
            assert_eq!(result[list][index], previous[list][index], "{list}");
        }
    }
    assert_eq!(result["dns"], previous["dns"]);
    assert_eq!(result["interfaces"][2]["name"], host_name());
    assert!(
        result["interfaces"][2]
            .get("sandbox")
            .is_none_or(|sandbox| sandbox == "")
    );
    assert_eq!(result["interfaces"][3]["name"], "eth0");
    assert_eq!(
        result["interfaces"][3]["sandbox"],
        node.pod.path(),
        "CNI_NETNS, literally"
    );
    assert_eq!(result["ips"][1]["address"], "10.0.0.1/32");
    assert_eq!(
        (&result["ips"][1]["interface"], &result["ips"][2]["interface"]),
        (&json!(3), &json!(3))
    );
}

#[test]
fn capabilities_and_the_pod_reach_the_agent() {
    let Some(node) = Node::new() else { return };
    let result = node
        .call("ADD")
        .set("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u1")
        .with(json!({"viaStack": true, "mtu": 1400, "runtimeConfig": {
            "ips": ["10.9.9.9/24"], "mac": "02:00:00:00:00:aa",
            "bandwidth": {"ingressRate": 1000, "ingressBurst": 100, "egressRate": 2000, "egressBurst": 200}}}))
        .run()
        .ok();
    let asked = node.agent().allocation();
    assert!(asked.via_stack);
    assert_eq!(asked.pod.unwrap().uid, "u1");
    assert_eq!(asked.bandwidth.egress.unwrap().rate, 2000);
    assert_eq!(asked.cni_version.as_deref(), Some("1.1.0"));
    assert_eq!(result["ips"][0]["address"], "10.9.9.9/32");
    assert_eq!(result["interfaces"][1]["mac"], "02:00:00:00:00:aa");
    assert_eq!(node.pod.list("link show eth0")[0]["mtu"], 1400);
    assert_eq!(
        node.pod.list("-6 route show default").len(),
        0,
        "a pod with IPv4 only has no IPv6 route"
    );
}

#[test]
fn an_agent_that_is_down_is_code_11_and_leaves_nothing() {
    let Some(node) = Node::without_agent() else { return };
    let error = node.call("ADD").run().code(code::TRY_AGAIN_LATER);
    assert!(error["msg"].as_str().unwrap().contains("agent.sock"), "{error}");
    node.assert_empty();
}

#[test]
fn what_the_agent_refuses_fails_add_with_its_code_and_leaves_nothing() {
    for operation in ["allocate", "program"] {
        let Some(node) = Node::new() else { return };
        node.agent().refuse(operation, code::NO_ADDRESS);
        node.call("ADD").run().code(code::NO_ADDRESS);
        node.assert_empty();
    }
}

#[test]
fn the_plugins_own_namespace_is_code_8_and_a_missing_one_names_the_variable() {
    let Some(node) = Node::new() else { return };
    node.call("ADD")
        .set("CNI_NETNS", node.host.path())
        .run()
        .code(code::NETNS_IS_OWN);
    let error = node
        .call("ADD")
        .set("CNI_NETNS", "/run/netns/none")
        .run()
        .code(code::INVALID_ENVIRONMENT);
    assert!(
        error["details"].as_str().unwrap().contains("CNI_NETNS"),
        "{error}"
    );
    let error = node
        .call("ADD")
        .set("CNI_NETNS", "/etc/hostname")
        .run()
        .code(code::INVALID_ENVIRONMENT);
    assert!(
        error["details"].as_str().unwrap().contains("CNI_NETNS"),
        "{error}"
    );
    node.assert_empty();
}

#[test]
fn a_pair_of_a_namespace_that_is_gone_is_replaced() {
    let Some(node) = Node::new() else { return };
    node.add();
    // The pod's end is out of sight, as in a namespace that the kernel has not torn down yet.
    let elsewhere = Namespace::new().unwrap();
    node.pod.ip(&format!("link set eth0 netns {}", elsewhere.path()));
    node.add();
    assert_eq!(node.host.links(), [host_name()]);
    assert_eq!(elsewhere.links(), Vec::<String>::new());
}

#[test]
fn ipv6_is_enabled_for_a_pod_with_an_ipv6_address_only() {
    const DISABLE: &str = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
    let Some(node) = Node::new() else { return };
    for namespace in [&node.host, &node.pod] {
        namespace.run(|| std::fs::write(DISABLE, "1").unwrap());
    }
    let disabled = |namespace: &Namespace, ifname: &str| {
        let path = format!("/proc/sys/net/ipv6/conf/{ifname}/disable_ipv6");
        namespace.run(|| std::fs::read_to_string(path).unwrap().trim() == "1")
    };
    node.call("ADD")
        .with(json!({"runtimeConfig": {"ips": ["10.9.9.9/24"]}}))
        .run()
        .ok();
    assert!(disabled(&node.pod, "eth0") && disabled(&node.host, &host_name()));
    node.call("DEL").run().ok();
    node.call("ADD")
        .with(json!({"runtimeConfig": {"ips": ["fd00::9/64"]}}))
        .run()
        .ok();
    assert!(!disabled(&node.pod, "eth0") && !disabled(&node.host, &host_name()));
    assert_eq!(node.host.list("-6 route show proto 77").len(), 1);
    assert_eq!(node.host.list("route show proto 77").len(), 0);
}

#[test]
fn a_second_attachment_of_a_pod_leaves_the_first_its_routes() {
    let Some(node) = Node::new() else { return };
    let first = node.add();
    let second = node.call("ADD").set("CNI_IFNAME", "net1").run().ok();
    for family in ["-4", "-6"] {
        let defaults = node.pod.list(&format!("{family} route show default"));
        assert_eq!(defaults.len(), 1, "{defaults:?}");
        assert_eq!(defaults[0]["dev"], "eth0");
    }
    node.call("CHECK").with(json!({"prevResult": first})).run().ok();
    node.call("CHECK")
        .set("CNI_IFNAME", "net1")
        .with(json!({"prevResult": second}))
        .run()
        .ok();
    node.call("DEL").set("CNI_IFNAME", "net1").run().ok();
    node.call("CHECK").with(json!({"prevResult": first})).run().ok();
}
