//! The agent is replaced by another release, under traffic.

use std::path::Path;

use cni_tests::{
    lab::{Drops, Families, Lab, Node, Plan, Routing, Signal, binary},
    netns::Namespace,
    traffic::ping,
};
use serde_json::{Value, json};

use crate::{eventually, needs_root, next_release, restart};

/// The pinned tables of connections.
fn tables(node: &Node) -> Vec<String> {
    let pins = std::fs::read_dir(node.pins().join("maps")).unwrap();
    let names = pins.map(|pin| pin.unwrap().file_name().into_string().unwrap());
    // Each has a description beside it.
    let mut names: Vec<String> = names
        .filter(|name| name.starts_with("conntrack") && !name.contains("layout"))
        .collect();
    names.sort();
    names
}

/// Replaces the agent by the release to come, whose connections have another layout, and back, while links are exchanged
/// one by one and flows cross old and new programs.
fn replaced_and_back(plan: Plan) {
    needs_root!();
    let next = next_release!("MILLRACE_NEXT_BIN", "millrace");
    let lab = Lab::start(plan).unwrap();
    let node = &lab.nodes[0];
    let (a, b) = (node.add_pod("a").unwrap(), node.add_pod("b").unwrap());
    let c = lab.nodes[1].add_pod("c").unwrap();
    let load = restart::load(&lab, &a, &b, &c);
    load.goes_on(20);
    let before = node.intent().unwrap();
    let ours = binary("MILLRACE_BIN", "millrace");
    for _ in 0..2 {
        for (millrace, version) in [(&next, "v2"), (&ours, "v1")] {
            node.end_agent(Signal::SIGTERM).unwrap();
            load.goes_on(10);
            node.start_agent_of(millrace).unwrap();
            load.goes_on(20);
            node.wait_until_ready().unwrap();
            let wanted = ["conntrack_new", "conntrack"].map(|name| format!("{name}_{version}"));
            eventually(|| {
                let now = tables(node);
                (now != wanted).then(|| format!("{now:?} instead of {wanted:?}"))
            });
            load.goes_on(30);
            assert_eq!(node.intent().unwrap(), before, "with layout {version}");
        }
    }
    let dropped = [node, &lab.nodes[1]].map(|node| node.drops().unwrap());
    assert_eq!(load.end(), Vec::<String>::new(), "{dropped:?}");
    assert_eq!(dropped, [Drops::new(), Drops::new()]);
}

#[test]
fn rel_29_agent_replaced_by_a_newer_layout_and_back_direct() {
    replaced_and_back(Plan::new(Routing::Direct, Families::Dual));
}

#[test]
fn rel_29_agent_replaced_by_a_newer_layout_and_back_vxlan() {
    replaced_and_back(Plan::new(Routing::Vxlan, Families::Dual));
}

/// Where filters are replaced in place instead of links exchanged.
#[test]
fn rel_29_agent_replaced_by_a_newer_layout_and_back_with_clsact() {
    replaced_and_back(Plan::new(Routing::Vxlan, Families::Dual).agent_arguments(&["--attach", "clsact"]));
}

/// During a rolling update a plugin meets the agent of the release before or after its own.
#[test]
fn rel_29_plugin_and_agent_one_release_apart_attach_check_and_detach() {
    needs_root!();
    let agents = [
        binary("MILLRACE_BIN", "millrace"),
        next_release!("MILLRACE_NEXT_BIN", "millrace"),
    ];
    let plugins = [
        binary("MILLRACE_CNI_BIN", "millrace-cni"),
        next_release!("MILLRACE_NEXT_CNI_BIN", "millrace-cni"),
    ];
    let lab = Lab::start(Plan::new(Routing::Direct, Families::Dual).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let before = node.intent().unwrap();
    for agent in [&agents[1], &agents[0]] {
        node.end_agent(Signal::SIGTERM).unwrap();
        node.start_agent_of(agent).unwrap();
        node.wait_until_ready().unwrap();
        for (number, plugin) in plugins.iter().enumerate() {
            let namespace = Namespace::create(&format!("{}-skew{number}", lab.name())).unwrap();
            let run = |plugin: &Path, verb, config: Value| {
                let (container, netns) = (namespace.name(), namespace.path());
                node.cni_of(plugin, verb, container, &netns, &config).unwrap()
            };
            let result = run(plugin, "ADD", json!({}));
            let addresses = result["ips"].as_array().unwrap();
            assert_eq!(addresses.len(), 2, "{result}");
            assert_eq!(node.ask(["endpoints"]).unwrap().as_array().unwrap().len(), 1);
            for address in addresses {
                let ip = address["address"].as_str().unwrap().split_once('/').unwrap().0;
                ping(&node.namespace, ip.parse().unwrap(), 56).unwrap();
            }
            // The runtime finds the other plugin in its folder from one moment to the next.
            let other = &plugins[1 - number];
            for plugin in [plugin, other] {
                run(plugin, "CHECK", json!({ "prevResult": result }));
            }
            run(other, "DEL", json!({}));
            eventually(|| {
                let now = node.intent().unwrap();
                (now != before).then(|| format!("{now:?} instead of {before:?}"))
            });
        }
    }
}
