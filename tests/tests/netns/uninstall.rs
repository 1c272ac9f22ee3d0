//! `millrace uninstall` on a node that was in use.

use std::{fs, path::Path};

use cni_tests::{
    lab::{Families, Lab, Node, Plan, Routing, Signal},
    traffic::{self, Echo},
};

use crate::needs_root;

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
    // What the kernel itself does for a host that forwards (the setting stays), and for itself at any time.
    state.retain(|line| !line.starts_with("anycast ") && !line.contains(" fe80::"));
    state.sort();
    state
}

fn uninstalled(attach: &str) {
    needs_root!();
    let plan = Plan::new(Routing::Vxlan, Families::Dual).agent_arguments(&["--attach", attach]);
    let lab = Lab::prepare(plan, &format!("mrlab-uninstall-{attach}-{}", std::process::id())).unwrap();
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
    node.end_agent(Signal::SIGTERM).unwrap();
    let output = node.uninstall().unwrap();
    // The folders were made for the agent, before it was there.
    let made = [
        node.pins(),
        node.folder().join("state"),
        node.folder().join("run"),
    ];
    let made = made.map(|folder| folder.display().to_string());
    let mut after = state(node);
    after.retain(|line| !made.contains(line));
    assert_eq!(after, before, "{output:?}");
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

#[test]
fn a_node_that_was_in_use_is_as_it_was_before() {
    uninstalled("tcx");
}

#[test]
fn a_node_that_was_in_use_is_as_it_was_before_with_clsact() {
    uninstalled("clsact");
}
