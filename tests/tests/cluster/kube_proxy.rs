//! A cluster that begins with kube-proxy goes over to Millrace's own Services, as the README says, under traffic.

use std::net::{IpAddr, SocketAddr};

use cni_tests::{
    netns::Namespace,
    traffic::{self, Echo, Load, Targets},
};
use serde_json::{Value, json};

use super::{
    agent::{SOME, SYSTEM, addresses, command, millrace, network, outside, replace, sleepers},
    kubernetes::{Kubernetes, Pod, eventually},
    leftovers::Named,
};

/// One port of the Service for each kind of traffic: neither proxy knows which ports the other has masqueraded with.
const NEW: u16 = 0;
const LASTING: u16 = 1;
const DATAGRAMS: u16 = 2;
const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
const TARGET: u16 = 8080;

fn service() -> Value {
    let port = |kind: u16, protocol: &str| {
        json!({
            "name": format!("p{kind}"), "protocol": protocol,
            "port": PORT + kind, "targetPort": TARGET + kind, "nodePort": NODE_PORT + kind,
        })
    };
    let ports = [port(NEW, "TCP"), port(LASTING, "TCP"), port(DATAGRAMS, "UDP")];
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {
            "type": "NodePort", "selector": {"app": "web"}, "ipFamilyPolicy": "RequireDualStack", "ports": ports,
        },
    })
}

/// In a pod's own network listens the test itself, so that it sees every byte.
fn serve(pod: &Pod) -> Vec<Echo> {
    let inside = network(pod);
    let each = |ip: IpAddr| {
        [
            Echo::tcp(&inside, ip, TARGET + NEW).unwrap(),
            Echo::tcp(&inside, ip, TARGET + LASTING).unwrap(),
            Echo::udp(&inside, ip, TARGET + DATAGRAMS).unwrap(),
        ]
    };
    addresses(pod).flat_map(each).collect()
}

/// All kinds of traffic, to ports that begin with `first`.
fn dial(load: &mut Load, from: &Namespace, ip: IpAddr, first: u16) {
    let to = |kind| SocketAddr::new(ip, first + kind);
    eventually(|| traffic::tcp(from, to(NEW), 8).map_err(|error| format!("{error:#}")));
    let targets = Targets {
        new: to(NEW),
        lasting: to(LASTING),
        datagrams: to(DATAGRAMS),
    };
    load.towards(from, targets);
}

/// The settings that the README names, and new agents.
fn switch(cluster: &Kubernetes<()>) {
    let daemonset = cluster.kubectl(["get", SYSTEM, "daemonset/millrace", "-ojson"]);
    let daemonset: Value = serde_json::from_str(&daemonset).unwrap();
    let volumes = daemonset["spec"]["template"]["spec"]["volumes"]
        .as_array()
        .unwrap();
    let map = volumes
        .iter()
        .find_map(|volume| volume["configMap"]["name"].as_str())
        .unwrap();
    let path = "-ojsonpath={.data.config\\.yaml}";
    let text = cluster.kubectl(["get", SYSTEM, "configmap", map, path]);
    let mut config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["services"]["proxy"], "stack");
    config["services"]["proxy"] = json!("millrace");
    config["cni"]["chained"] = json!([]);
    let patch = json!({"data": {"config.yaml": config.to_string()}}).to_string();
    cluster.kubectl([
        "patch",
        SYSTEM,
        "configmap",
        map,
        "--type=merge",
        "--patch",
        &patch,
    ]);
    replace(cluster);
}

fn check(cluster: &Kubernetes<()>, node: &str) -> Value {
    // A warning is an exit status too.
    let output = command(cluster, node, &["status"]).output().unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let checks = status["checks"].as_array().unwrap().iter();
    let mut checks = checks.filter(|check| check["name"] == "kube-proxy");
    checks.next().cloned().unwrap_or_else(|| panic!("{status}"))
}

#[test]
fn a_cluster_with_kube_proxy_goes_over_to_millrace_without_a_lost_packet() {
    let named = Named("mrmove");
    named.run(&["up", "--proxy", "kube-proxy-nft"]);
    let cluster = Kubernetes::of(&named, "move");
    for app in ["web", "client"] {
        cluster.apply(&sleepers(app));
    }
    cluster.apply(&service());
    cluster.rolled_out("daemonset/web");
    cluster.rolled_out("daemonset/client");
    let _servers: Vec<_> = cluster.pods("web").iter().flat_map(serve).collect();
    let object: Value = serde_json::from_str(&cluster.kubectl(["get", "service", "web", "-ojson"])).unwrap();
    let vips: Vec<IpAddr> = serde_json::from_value(object["spec"]["clusterIPs"].clone()).unwrap();
    let about: Value = serde_json::from_str(&cluster.cluster(["status", "--json"])).unwrap();
    let node: Vec<IpAddr> = serde_json::from_value(about["nodes"][0]["addresses"].clone()).unwrap();
    let clients: Vec<Namespace> = cluster.pods("client").iter().map(network).collect();
    let mut load = Load::default();
    for client in &clients {
        vips.iter().for_each(|vip| dial(&mut load, client, *vip, PORT));
    }
    let outside = outside(&cluster);
    node.iter()
        .for_each(|ip| dial(&mut load, &outside, *ip, NODE_PORT));
    load.goes_on(SOME);

    switch(&cluster);
    load.goes_on(SOME);
    for node in cluster.nodes() {
        let both = check(&cluster, &node);
        let detail = both["detail"].as_str().unwrap();
        assert!(detail.contains("one runs (mode nftables)"), "{both}");
        cluster.cluster(["exec", &node, "--", "sh", "-c", "kill $(pidof kube-proxy)"]);
    }
    load.goes_on(SOME);
    for node in cluster.nodes() {
        eventually(|| {
            let left = check(&cluster, &node);
            let ended = left["remedy"] == "`millrace kube-proxy cleanup`";
            ended.then_some(()).ok_or_else(|| left.to_string())
        });
        let done = millrace(&cluster, &node, &["kube-proxy", "cleanup"]);
        let tables = json!(["table ip kube-proxy", "table ip6 kube-proxy"]);
        assert_eq!(done["removed"], tables, "{done}");
        eprintln!("{node}: {} connections live on", done["connections"]);
    }
    load.goes_on(SOME);
    assert_eq!(load.end(), Vec::<String>::new());
    for node in cluster.nodes() {
        // The cluster's own to its API server go on for as long as nobody cuts them.
        let done = millrace(&cluster, &node, &["kube-proxy", "cleanup", "--cut"]);
        let trace = check(&cluster, &node);
        assert_eq!(trace["detail"], "no trace of one", "{done} {trace}");
        let rules = cluster.cluster(["exec", &node, "--", "nft", "list", "ruleset"]);
        let ours = rules.contains("kube-proxy") || rules.contains("millrace");
        assert!(
            !ours && rules.contains("KUBE-FIREWALL"),
            "the kubelet's stays: {rules}"
        );
    }
    named.run(&["down"]);
}
