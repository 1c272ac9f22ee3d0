//! From the real kube-proxy to Millrace while traffic runs.

use std::{net::SocketAddr, process::Output};

use cni_tests::{
    lab::{
        ControlPlane, Families, Lab, Node, Plan, Pod, Routing, Signal,
        kube_proxy::{self, KubeProxy, Mode},
    },
    netns::Namespace,
    traffic::{self, Echo, Load, Targets},
};
use serde_json::{Value, json};

use crate::{eventually, needs_control_plane};

/// One port for each kind of traffic, counted from the first: neither proxy knows which ports the other has masqueraded with.
const KINDS: [(u16, &str); 3] = [(0, "TCP"), (1, "TCP"), (2, "UDP")];
/// Of the Service and of the node, of the servers behind it, and of those that are dialled directly.
const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
const TARGET: u16 = 8080;
const DIRECT: u16 = 8090;
const VIPS: [&str; 2] = ["10.96.0.77", "fd00:10:96::77"];
/// No node has them: packets for them are the stack's as long as it translates them.
const BALANCERS: [&str; 2] = ["198.51.100.77", "2001:db8:77::1"];
pub(crate) const PODS: &str = "10.77.0.0/16,fd00:10:77::/48";
/// Exchanges that show that traffic goes on.
const SOME: u64 = 50;

fn objects(servers: &[&Pod]) -> Vec<Value> {
    let ports = KINDS.map(|(kind, protocol)| {
        json!({
            "name": format!("p{kind}"), "protocol": protocol, "port": PORT + kind, "nodePort": NODE_PORT + kind,
        })
    });
    let targets = KINDS.map(
        |(kind, protocol)| json!({ "name": format!("p{kind}"), "protocol": protocol, "port": TARGET + kind }),
    );
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "type": "LoadBalancer", "clusterIPs": VIPS, "clusterIP": VIPS[0], "ipFamilyPolicy": "RequireDualStack",
            "ipFamilies": ["IPv4", "IPv6"], "ports": ports,
        },
        "status": { "loadBalancer": { "ingress": BALANCERS.map(|ip| json!({ "ip": ip })) } },
    })];
    objects.extend([true, false].map(|v4| {
        let kind = if v4 { "IPv4" } else { "IPv6" };
        let endpoint =
            |server: &&Pod| json!({ "addresses": [server.ip(v4)], "conditions": { "ready": true } });
        let endpoints: Vec<_> = servers.iter().map(endpoint).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
            "metadata": {
                "name": format!("web-{}", kind.to_lowercase()), "namespace": "default",
                "labels": { "kubernetes.io/service-name": "web" },
            },
            "ports": targets,
            "endpoints": endpoints,
        })
    }));
    objects
}

fn said(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

fn run(node: &Node, program: &str, arguments: &str) -> String {
    let words = arguments.split_whitespace();
    let output = node.namespace.command(program).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments}: {}",
        said(&output)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// What a kubelet makes, and what a firewall has.
fn furnish(node: &Node) {
    for tool in ["iptables", "ip6tables"] {
        run(node, tool, "-w -t mangle -N KUBE-IPTABLES-HINT");
        for table in ["mangle", "nat", "filter"] {
            run(node, tool, &format!("-w -t {table} -N KUBE-KUBELET-CANARY"));
        }
    }
    run(node, "iptables", "-w -N KUBE-FIREWALL");
    for chain in ["INPUT", "OUTPUT"] {
        run(node, "iptables", &format!("-w -I {chain} -j KUBE-FIREWALL"));
    }
    let rule = "-w -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP";
    run(node, "iptables", rule);
    // Two minutes otherwise, until what is kept for them goes.
    run(
        node,
        "sysctl",
        "-w net.netfilter.nf_conntrack_udp_timeout_stream=5",
    );
    run(node, "nft", "add table inet firewall");
    run(
        node,
        "nft",
        "add chain inet firewall services { type filter hook input priority 5 ; }",
    );
}

fn ruleset(node: &Node) -> String {
    run(node, "nft", "--stateless list ruleset")
}

/// Without the table in which connections are held.
fn of_others(ruleset: &str) -> String {
    let mut ours = false;
    let lines = ruleset.lines().filter(|line| {
        ours |= line.starts_with("table") && line.contains("millrace-connections");
        let keep = !ours;
        ours &= *line != "}";
        keep
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn check(node: &Node) -> Value {
    let status = node.ask(["status"]).unwrap();
    let checks = status["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["name"] == "kube-proxy");
    found.cloned().unwrap_or_else(|| panic!("{status}"))
}

fn cleanup<const N: usize>(node: &Node, options: [&str; N]) -> Output {
    node.millrace(["kube-proxy", "cleanup"])
        .args(options)
        .output()
        .unwrap()
}

fn load(client: &Namespace, outside: &Namespace, node: &Node, server: &Pod) -> Load {
    let mut load = Load::default();
    for v4 in [true, false] {
        let vip = VIPS[usize::from(!v4)].parse().unwrap();
        for (from, ip, first) in [
            (client, vip, PORT),
            // Once more: of two sockets each server is likely to have one.
            (client, vip, PORT),
            (outside, node.address(v4), NODE_PORT),
            (outside, BALANCERS[usize::from(!v4)].parse().unwrap(), PORT),
            (client, server.ip(v4), DIRECT),
        ] {
            let [new, lasting, datagrams] = KINDS.map(|(kind, _)| SocketAddr::new(ip, first + kind));
            eventually(|| traffic::tcp(from, new, 8).err().map(|error| format!("{error:#}")));
            load.towards(
                from,
                Targets {
                    lasting,
                    new,
                    datagrams,
                },
            );
        }
    }
    load
}

/// At all ports, for the life of the value.
fn serve(server: &Pod) -> Vec<Echo> {
    let mut echoes = Vec::new();
    for ip in [true, false].map(|v4| server.ip(v4)) {
        for (kind, protocol) in KINDS {
            let serve = if protocol == "UDP" { Echo::udp } else { Echo::tcp };
            for first in [TARGET, DIRECT] {
                echoes.push(serve(&server.namespace, ip, first + kind).unwrap());
            }
        }
    }
    echoes
}

fn begins(mode: Mode) -> (ControlPlane, Lab, Vec<KubeProxy>) {
    let plan = Plan::new(Routing::Direct, Families::Dual);
    let (control, lab) = Lab::start_with_control_plane(plan).unwrap();
    lab.nodes.iter().for_each(furnish);
    let [node, far] = lab.pair();
    assert_eq!(ruleset(node), ruleset(far));
    let start =
        |node: &Node| KubeProxy::start(&lab, &control, &node.namespace, &node.name(), mode, PODS).unwrap();
    let proxies = lab.nodes.iter().map(start).collect();
    (control, lab, proxies)
}

/// As an operator does it: another setting, and the agents one after the other.
fn switch(lab: &Lab) {
    let mut plan = lab.plan.clone();
    plan.config["services"] = json!({ "proxy": "millrace" });
    for node in &lab.nodes {
        node.write_config(&plan).unwrap();
        node.end_agent(Signal::SIGTERM).unwrap();
        node.start_agent().unwrap();
        node.wait_until_ready().unwrap();
        eventually(|| {
            let services = node
                .ask(["services"])
                .map_or_else(|error| error.to_string(), |all| all.to_string());
            (!services.contains("30080")).then_some(services)
        });
    }
}

/// Pods that are `viaStack` by their network's configuration stay so; others are, while Services are the stack's business.
fn migrates(mode: Mode, by_configuration: bool) {
    needs_control_plane!();
    cni_tests::require!(
        kube_proxy::is_available(),
        "no kube-proxy; `cargo xtask test kubernetes` builds it"
    );
    let (control, lab, proxies) = begins(mode);
    let [node, far] = lab.pair();
    // What the stack translates must come back through it.
    let via_stack = if by_configuration {
        json!({ "viaStack": true })
    } else {
        json!({})
    };
    let (client, server) = (
        node.add_pod_with("client", &via_stack).unwrap(),
        far.add_pod_with("server", &via_stack).unwrap(),
    );
    let near = node.add_pod_with("near", &via_stack).unwrap();
    let servers = [&server, &near];
    let _echoes = servers.map(serve);
    let objects = objects(&servers);
    control.apply(&objects).unwrap();
    control.set_status(&objects[0]).unwrap();
    for (balancer, v4) in BALANCERS.iter().zip([true, false]) {
        let route = format!("route add {balancer} via {}", node.address(v4));
        lab.fabric.ip(&route).unwrap();
    }
    let load = load(&client.namespace, &lab.outside, node, &server);
    load.goes_on(SOME);
    // Only now is it sure that it has begun.
    let refused = cleanup(node, []);
    assert!(
        !refused.status.success() && said(&refused).contains("a kube-proxy runs"),
        "{refused:?}"
    );

    switch(&lab);
    load.goes_on(SOME);
    let both = check(node);
    assert_eq!(both["state"], "warning");
    assert!(both["detail"].as_str().unwrap().contains(mode.word()), "{both}");
    let refused = cleanup(node, []);
    assert!(
        !refused.status.success() && said(&refused).contains("a kube-proxy runs"),
        "{refused:?}"
    );

    drop(proxies);
    load.goes_on(SOME);
    let left = check(node);
    assert_eq!(left["state"], "warning");
    assert_eq!(left["remedy"], "`millrace kube-proxy cleanup`", "{left}");
    eventually(|| {
        let status = node.ask(["status"]).unwrap();
        let problems = status["agent"]["problems"].to_string();
        (!problems.contains("kube-proxy")).then_some(problems)
    });
    let before = ruleset(node);
    let dry = cleanup(node, ["--dry-run", "--json"]);
    let dry: Value = serde_json::from_slice(&dry.stdout).unwrap();
    assert!(!dry["removed"].as_array().unwrap().is_empty(), "{dry}");
    assert_eq!(ruleset(node), before);

    let done = cleanup(node, []);
    assert!(done.status.success(), "{}", said(&done));
    load.goes_on(SOME);
    let after = ruleset(node);
    assert!(
        after.contains("millrace-connections") && after.contains("KUBE-FIREWALL"),
        "{after}"
    );
    let held = check(node);
    assert_eq!(held["state"], "ok", "{held}");
    assert!(held["remedy"].as_str().unwrap().contains("once more"), "{held}");
    let dropped = [node, far].map(|node| node.all_drops().unwrap());
    assert_eq!(load.end(), Vec::<String>::new(), "{dropped:?}");
    // On the other node by kube-proxy itself, which is not asked to spare connections: the same is left.
    KubeProxy::cleanup(&far.namespace).unwrap();
    assert_eq!(of_others(&after), of_others(&ruleset(far)));

    // They have ended; what was kept for them goes.
    eventually(|| {
        let again = cleanup(node, []);
        let after = ruleset(node);
        after.contains("millrace-connections").then(|| said(&again))
    });
    assert_eq!(ruleset(node), ruleset(far));
    assert_eq!(check(node)["detail"], "no trace of one");
}

#[test]
fn traffic_goes_on_from_kube_proxy_with_nftables_to_millrace() {
    migrates(Mode::Nftables, false);
}

#[test]
fn traffic_goes_on_from_kube_proxy_with_iptables_to_millrace() {
    migrates(Mode::Iptables, true);
}

/// Nobody would serve them.
#[test]
fn rules_stay_while_services_are_the_stacks_business() {
    needs_control_plane!();
    let plan = Plan::new(Routing::Direct, Families::V4).nodes(1);
    let lab = Lab::start(plan).unwrap();
    let node = &lab.nodes[0];
    run(node, "nft", "add table ip kube-proxy");
    let refused = cleanup(node, []);
    assert!(
        !refused.status.success() && said(&refused).contains("services.proxy"),
        "{refused:?}"
    );
    let dry = cleanup(node, ["--dry-run"]);
    let note = "note: it would refuse: Services are the stack's business";
    assert!(
        dry.status.success() && said(&dry).contains(note) && said(&dry).contains("would remove table"),
        "{dry:?}"
    );
    assert!(ruleset(node).contains("kube-proxy"));
    let forced = cleanup(node, ["--force"]);
    assert!(
        forced.status.success() && said(&forced).contains("warning: "),
        "{forced:?}"
    );
    assert!(!ruleset(node).contains("kube-proxy"));
}
