//! `millrace uninstall` on a node that was in use.

use std::{fs, net::SocketAddr, path::Path};

use cni_tests::{
    lab::{Families, Lab, Node, Plan, Pod, Routing, ServiceManifest, Signal, cluster_ip},
    traffic::{self, Echo},
};
use serde_json::json;

use crate::{eventually, needs_root, services};

/// Every path below a folder.
fn tree(folder: &Path, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            tree(&path, found);
        }
        found.push(path.display().to_string());
    }
}

fn output(node: &Node, program: &str, arguments: &str) -> Vec<String> {
    let output = node
        .namespace
        .command(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// What of a node Millrace could leave something in.
fn state(node: &Node) -> Vec<String> {
    let mut state = Vec::new();
    for folder in [
        node.pins(),
        node.folder().join("state"),
        node.folder().join("run"),
    ] {
        tree(&folder, &mut state);
    }
    for arguments in [
        "-o link show",
        "-o addr show scope global",
        "-4 route show table all",
        "-6 route show table all",
        "rule show",
        "-6 rule show",
        "neigh show nud permanent",
    ] {
        state.extend(output(node, "ip", arguments));
    }
    state.extend(output(node, "tc", "qdisc show"));
    for device in node.namespace.devices().unwrap() {
        for side in ["ingress", "egress"] {
            state.extend(output(node, "tc", &format!("filter show dev {device} {side}")));
        }
    }
    state.extend(output(node, "nft", "list ruleset"));
    // Programs, whoever made them: of devices, and of the cgroup that stands for the root.
    state.extend(output(node, "bpftool", "net show"));
    let cgroup = node.cgroup().display();
    state.extend(output(node, "bpftool", &format!("cgroup show {cgroup}")));
    // What the kernel itself does for a host that forwards (the setting stays), and for itself at any time.
    state.retain(|line| !line.starts_with("anycast ") && !line.contains(" fe80::"));
    state.sort();
    state
}

/// Takes Millrace off a node where this has been done, with pods of two nodes; `marks` is what its state shows meanwhile.
fn uninstalled(name: &str, plan: Plan, marks: &[&str], done: impl FnOnce(&Lab, &Pod)) {
    let lab = Lab::prepare(plan, &format!("mrlab-uninstall-{name}-{}", std::process::id())).unwrap();
    let [node, far] = lab.pair();
    let before = state(node);
    for node in &lab.nodes {
        node.start_agent().unwrap();
    }
    lab.nodes.iter().for_each(|node| node.wait_until_ready().unwrap());
    let (a, b) = (node.add_pod("a").unwrap(), node.add_pod("b").unwrap());
    let c = far.add_pod("c").unwrap();
    for v4 in [true, false] {
        for (there, ip) in [
            (&b.namespace, b.ip(v4)),
            (&c.namespace, c.ip(v4)),
            (&lab.outside, lab.outside_address(v4)),
        ] {
            let echo = Echo::tcp(there, ip, 0).unwrap();
            traffic::tcp(&a.namespace, echo.address, 100_000).unwrap();
        }
    }
    done(&lab, &c);
    let meanwhile = state(node);
    for mark in marks {
        let shows = |state: &[String]| state.iter().any(|line| line.contains(mark));
        assert!(
            shows(&meanwhile) && !shows(&before),
            "{mark}: {before:?}, {meanwhile:?}"
        );
    }
    node.end_agent(Signal::SIGTERM).unwrap();
    let output = node.uninstall().unwrap();
    // The folders were made for the agent, before it was there.
    let made = [
        node.pins(),
        node.folder().join("state"),
        node.folder().join("run"),
    ];
    let made = made.map(|folder| folder.display().to_string());
    // The kernel detaches a link a moment after the last name of it is gone.
    eventually(|| {
        let mut after = state(node);
        after.retain(|line| !made.contains(line));
        (after != before).then(|| format!("{output:?}: {after:#?}, before {before:#?}"))
    });
    // Both ends of the pods' cables are gone.
    for pod in [&a, &b] {
        assert_eq!(pod.namespace.devices().unwrap(), ["lo"]);
    }
    // And the node may begin anew.
    fs::create_dir_all(node.folder().join("state")).unwrap();
    fs::create_dir_all(node.folder().join("run")).unwrap();
    node.start_agent().unwrap();
    node.wait_until_ready().unwrap();
    let again = node.add_pod("again").unwrap();
    traffic::ping(&again.namespace, c.ip(true), 56).unwrap();
}

fn uninstalled_with(attach: &str) {
    needs_root!();
    let plan = Plan::new(Routing::Vxlan, Families::Dual).agent_arguments(&["--attach", attach]);
    uninstalled(attach, plan, &[], |_, _| {});
}

#[test]
fn a_node_that_was_in_use_is_as_it_was_before() {
    uninstalled_with("tcx");
}

#[test]
fn a_node_that_was_in_use_is_as_it_was_before_with_clsact() {
    uninstalled_with("clsact");
}

const NODE_PORT: u16 = 30007;

#[test]
fn svc_63_a_node_that_served_services_is_as_it_was_before() {
    needs_root!();
    let mut plan = services::plan(Routing::Direct);
    plan.config["services"]["socketLb"] = json!("all");
    plan.config["services"]["xdp"] = json!("native");
    // As bpftool shows the program for sockets of a cgroup that connect, and XDP in a driver.
    uninstalled(
        "services",
        plan,
        &[" sock_connect4", " driver id "],
        |lab, pod| {
            let node = &lab.nodes[0];
            let _echoes = services::serve(pod, 8080);
            let spec = json!({
                "type": "NodePort", "ports": [{ "name": "t", "port": 80, "protocol": "TCP", "nodePort": NODE_PORT }],
            });
            let service = ServiceManifest::new(7).spec(spec);
            services::publish(lab, &service.endpoint_at(pod, 8080, "node1", json!({})));
            for v4 in [true, false] {
                let vip = SocketAddr::new(cluster_ip(7, v4), 80);
                node.with_sockets(|| traffic::tcp(&node.namespace, vip, 1000).unwrap());
                let port = SocketAddr::new(node.address(v4), NODE_PORT);
                traffic::tcp(&lab.outside, port, 1000).unwrap();
            }
        },
    );
}
