//! The CNI project's own caller, with our plugin alone and with the reference plugins after it.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use cni_tests::{
    lab::{Families, Lab, Node, Plan, Routing},
    netns::Namespace,
    require,
    traffic::{self, Echo},
};
use serde_json::{Value, json};

use super::{Host, find, nothing_is_left, section, succeeded};
use crate::needs_root;

const REFERENCE: &str = "/usr/lib/cni";

struct Tool<'n> {
    host: Host<'n>,
    program: PathBuf,
    capabilities: Value,
}

impl Tool<'_> {
    fn output(&self, verb: &str, netns: &Path) -> Output {
        let mut command = self.host.command(&self.program);
        command.args([verb, "lab"]).arg(netns);
        command.env("NETCONFPATH", "/etc/cni/net.d");
        command.env("CNI_PATH", format!("/opt/cni/bin:{REFERENCE}"));
        command.env("CAP_ARGS", self.capabilities.to_string());
        command.output().unwrap()
    }

    fn run(&self, verb: &str, pod: &Namespace) -> String {
        succeeded(self.output(verb, &pod.path()))
    }

    /// ADD, and the address of a family that it gave.
    fn add(&self, pod: &Namespace) -> Vec<IpAddr> {
        let result: Value = serde_json::from_str(&self.run("add", pod)).unwrap();
        let ips = result["ips"].as_array().unwrap();
        let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
        ips.iter().map(|ip| address(ip).unwrap()).collect()
    }
}

fn list(version: &str, plugins: &[Value]) -> Value {
    json!({ "cniVersion": version, "name": "lab", "plugins": plugins })
}

fn pod(lab: &Lab, name: &str) -> Namespace {
    Namespace::create(&format!("{}-node0-{name}", lab.name())).unwrap()
}

#[test]
fn cnitool_adds_checks_collects_and_deletes() {
    needs_root!();
    let program = find("cnitool");
    require!(program.is_some(), "cnitool is not installed");
    let lab = Lab::start(Plan::new(Routing::Direct, Families::Dual)).unwrap();
    let [near, far] = lab.pair();
    let peer = far.add_pod("peer").unwrap();
    let before = near.intent().unwrap();
    let tool = Tool {
        host: Host::new(near, &list("1.1.0", &[section(near)])),
        program: program.unwrap(),
        capabilities: json!({}),
    };
    let (a, b) = (pod(&lab, "a"), pod(&lab, "b"));
    tool.run("status", &a);
    for address in tool.add(&a) {
        let echo = Echo::tcp(&a, address, 0).unwrap();
        traffic::tcp(&peer.namespace, echo.address, 100_000).unwrap();
        traffic::tcp(&near.namespace, echo.address, 100_000).unwrap();
        traffic::ping(&a, peer.ip(address.is_ipv4()), 56).unwrap();
    }
    tool.run("check", &a);
    a.ip("link set eth0 down").unwrap();
    let finding = tool.output("check", &a.path());
    assert!(
        String::from_utf8_lossy(&finding.stderr).contains("eth0 is down"),
        "{finding:?}"
    );
    tool.run("del", &a);
    tool.run("del", &a);
    nothing_is_left(near, &before);

    // It knows of no attachment that is to stay: its library deletes what it remembers. The list itself it does not
    // send, and without one the plugin collects nothing of others.
    tool.add(&b);
    let collection = tool.output("gc", &b.path());
    let words = String::from_utf8_lossy(&collection.stderr).into_owned();
    assert!(
        !collection.status.success() && words.contains("cni.dev/valid-attachments"),
        "{words}"
    );
    assert_eq!(tool.host.cached_results(), Vec::<PathBuf>::new());
    nothing_is_left(near, &before);

    near.end_agent(cni_tests::lab::Signal::SIGKILL).unwrap();
    let refusal = tool.output("status", &b.path());
    assert!(!refusal.status.success(), "{refusal:?}");
}

#[test]
fn a_runtime_may_choose_addresses_and_mac() {
    needs_root!();
    let program = find("cnitool");
    require!(program.is_some(), "cnitool is not installed");
    let lab = Lab::start(Plan::new(Routing::Direct, Families::Dual)).unwrap();
    let [near, far] = lab.pair();
    let peer = far.add_pod("peer").unwrap();
    let before = near.intent().unwrap();
    let mut ours = section(near);
    ours["capabilities"] = json!({ "ips": true, "mac": true });
    let (ips, mac) = (["10.77.1.99", "fd00:10:77:1::99"], "02:00:00:00:99:01");
    let tool = Tool {
        host: Host::new(near, &list("1.1.0", &[ours])),
        program: program.unwrap(),
        capabilities: json!({ "ips": ips, "mac": mac }),
    };
    let (a, b) = (pod(&lab, "a"), pod(&lab, "b"));
    let addresses = tool.add(&a);
    let wanted: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    assert_eq!(addresses, wanted);
    assert_eq!(a.mac("eth0").unwrap(), cni_tests::netns::parse_mac(mac).unwrap());
    for ip in wanted {
        let echo = Echo::tcp(&a, ip, 0).unwrap();
        traffic::tcp(&peer.namespace, echo.address, 10_000).unwrap();
        traffic::tcp(&near.namespace, echo.address, 10_000).unwrap();
    }
    tool.run("check", &a);
    // Somebody has them.
    let refused = tool.output("add", &b.path());
    assert!(
        !refused.status.success() && refused.stderr.len() > 10,
        "{refused:?}"
    );
    tool.run("del", &b);
    tool.run("del", &a);
    nothing_is_left(near, &before);
}

fn tuning() -> Value {
    json!({ "type": "tuning", "sysctl": { "net.core.somaxconn": "517" } })
}

fn reference_bandwidth() -> Value {
    json!({ "type": "bandwidth", "ingressRate": 80_000_000, "ingressBurst": 80_000_000 })
}

/// What `portmap` has in the packet filter for one attachment.
fn portmap_rules(node: &Node) -> Vec<String> {
    let mut rules = Vec::new();
    for program in ["iptables-save", "ip6tables-save"] {
        let mut save: Command = node.namespace.command(find(program).unwrap());
        let text = succeeded(save.output().unwrap());
        rules.extend(
            text.lines()
                .filter(|line| line.contains("CNI-DN-"))
                .map(str::to_owned),
        );
    }
    rules
}

/// What the queue of the reference `bandwidth` plugin, at the host's end of the pod behind `viaStack`, has let through.
fn shaped_bytes(node: &Node) -> u64 {
    let mut tc = node.namespace.command(find("tc").unwrap());
    let text = succeeded(
        tc.args(["-statistics", "-json", "qdisc", "show"])
            .output()
            .unwrap(),
    );
    let queues: Vec<Value> = serde_json::from_str(&text).unwrap();
    let shaper = queues
        .iter()
        .find(|queue| queue["kind"] == "tbf")
        .expect("a tbf queue");
    shaper["bytes"].as_u64().unwrap()
}

/// Who asks, where, and how the pod must see him.
fn reaches(from: &Namespace, to: SocketAddr, echo: &Echo, seen: Option<IpAddr>, who: &str) {
    traffic::tcp(from, to, 100_000).unwrap_or_else(|error| panic!("{who}: {error:#}"));
    if let Some(seen) = seen {
        let peers = echo.peers();
        assert!(peers.iter().any(|peer| peer.ip() == seen), "{who}: {peers:?}");
    }
}

/// Traffic in all directions by and past the mapped ports, then DEL.
fn mapped(routing: Routing, families: Families) {
    let lab = Lab::start(Plan::new(routing, families)).unwrap();
    let [near, far] = lab.pair();
    let peer = far.add_pod("peer").unwrap();
    let before = near.intent().unwrap();
    let mut ours = section(near);
    ours["viaStack"] = json!(true);
    // The reference plugins of a distribution may know nothing newer than 1.0.0.
    let list = list(
        "1.0.0",
        &[
            ours,
            json!({ "type": "portmap", "capabilities": { "portMappings": true } }),
            tuning(),
            reference_bandwidth(),
        ],
    );
    let tool = Tool {
        host: Host::new(near, &list),
        program: find("cnitool").unwrap(),
        capabilities: json!({ "portMappings": [
            { "hostPort": 8080, "containerPort": 7000, "protocol": "tcp" },
            { "hostPort": 8081, "containerPort": 7000, "protocol": "udp" },
        ] }),
    };
    let a = pod(&lab, "a");
    let addresses = tool.add(&a);
    let beside = near.add_pod("beside").unwrap();
    for ip in addresses {
        let v4 = ip.is_ipv4();
        let echo = Echo::tcp(&a, ip, 7000).unwrap();
        let datagrams = Echo::udp(&a, ip, 7000).unwrap();
        let to = SocketAddr::new(near.address(v4), 8080);
        let (node, outside) = (far.address(v4), lab.outside_address(v4));
        reaches(&far.namespace, to, &echo, Some(node), "other node");
        reaches(&lab.outside, to, &echo, Some(outside), "outside");
        reaches(&near.namespace, to, &echo, None, "the host itself");
        if v4 {
            let loopback = SocketAddr::from(([127, 0, 0, 1], 8080));
            reaches(&near.namespace, loopback, &echo, None, "the host's loopback");
        }
        let pod = peer.ip(v4);
        reaches(&peer.namespace, to, &echo, Some(pod), "pod of the other node");
        let pod = beside.ip(v4);
        reaches(&beside.namespace, to, &echo, Some(pod), "pod of this node");
        reaches(&a, to, &echo, None, "the pod itself");
        traffic::udp(&lab.outside, SocketAddr::new(to.ip(), 8081), 900).unwrap();
        assert!(datagrams.peers().iter().any(|peer| peer.ip() == outside));
        // By its own address as well. What programs hand straight to a pod passes no queue: this goes through the stack.
        let direct = SocketAddr::new(ip, 7000);
        for (from, who) in [
            (&peer.namespace, "pod of the other node, directly"),
            (&beside.namespace, "pod of this node, directly"),
            (&near.namespace, "the host, directly"),
        ] {
            let before = shaped_bytes(near);
            reaches(from, direct, &echo, None, who);
            assert!(shaped_bytes(near) > before + 100_000, "{who} goes past the queue");
        }
        let back = Echo::tcp(&lab.outside, outside, 0).unwrap();
        reaches(&a, back.address, &back, Some(near.address(v4)), "to the outside");
    }
    near.delete_pod(beside).unwrap();
    assert_ne!(portmap_rules(near), Vec::<String>::new());
    assert_eq!(
        a.run(|| std::fs::read_to_string("/proc/sys/net/core/somaxconn"))
            .unwrap()
            .trim(),
        "517"
    );
    // Ours is the first that is asked. The reference `portmap` 1.1.1 then looks for the rules of each family in the
    // tables of both and finds some missing (containernetworking/plugins#819).
    let check = tool.output("check", &a.path());
    let words = String::from_utf8_lossy(&check.stderr);
    assert!(
        check.status.success() || words.starts_with("could not check ipv6 dnat"),
        "{words}"
    );
    assert_eq!(near.drops().unwrap(), Default::default());
    tool.run("del", &a);
    assert_eq!(portmap_rules(near), Vec::<String>::new());
    assert_eq!(tool.host.cached_results(), Vec::<PathBuf>::new());
    nothing_is_left(near, &before);
}

fn has_reference_plugins() -> bool {
    find("cnitool").is_some() && Path::new(REFERENCE).join("portmap").exists()
}

#[test]
fn reference_plugins_act_behind_a_via_stack_endpoint() {
    needs_root!();
    require!(
        has_reference_plugins(),
        "cnitool or the reference plugins are not installed"
    );
    mapped(Routing::Direct, Families::Dual);
}

#[test]
fn reference_plugins_act_behind_a_via_stack_endpoint_and_the_tunnel() {
    needs_root!();
    require!(
        has_reference_plugins(),
        "cnitool or the reference plugins are not installed"
    );
    mapped(Routing::Vxlan, Families::V4);
}

#[test]
fn check_passes_our_plugin_and_the_reference_plugins_after_it() {
    needs_root!();
    require!(
        has_reference_plugins(),
        "cnitool or the reference plugins are not installed"
    );
    let lab = Lab::start(Plan::new(Routing::Direct, Families::Dual).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let before = node.intent().unwrap();
    let mut ours = section(node);
    ours["viaStack"] = json!(true);
    let tool = Tool {
        host: Host::new(node, &list("1.0.0", &[ours, tuning(), reference_bandwidth()])),
        program: find("cnitool").unwrap(),
        capabilities: json!({}),
    };
    let a = pod(&lab, "a");
    tool.add(&a);
    tool.run("check", &a);
    tool.run("del", &a);
    nothing_is_left(node, &before);
}
