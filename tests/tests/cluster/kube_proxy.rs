//! A cluster that begins with kube-proxy goes over to Millrace's own Services, as the README says, under traffic.

use std::net::{IpAddr, SocketAddr};

use cni_tests::netns::Namespace;
use serde_json::{Value, json};

use super::{
    agent::{Load, agents, millrace, network},
    kubernetes::{Kubernetes, eventually, workload},
    leftovers::Named,
};

const PORT: u16 = 8080;
const NODE_PORT: u16 = 30080;

/// In the pods' own networks listens the test itself, so that it sees every byte.
fn service() -> Value {
    let ports = ["TCP", "UDP"].map(|protocol| {
        json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 80, "targetPort": PORT, "nodePort": NODE_PORT})
    });
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {
            "type": "NodePort", "selector": {"app": "web"}, "ipFamilyPolicy": "RequireDualStack", "ports": ports,
        },
    })
}

/// The settings that the README names, and the agents one node after the other.
fn switch(cluster: &Kubernetes<()>) {
    let system = "--namespace=kube-system";
    let volumes = cluster.kubectl(["get", system, "daemonset/millrace", "-ojson"]);
    let daemonset: Value = serde_json::from_str(&volumes).unwrap();
    let volumes = daemonset["spec"]["template"]["spec"]["volumes"]
        .as_array()
        .unwrap();
    let map = volumes
        .iter()
        .find_map(|volume| volume["configMap"]["name"].as_str())
        .unwrap();
    let text = cluster.kubectl([
        "get",
        system,
        "configmap",
        map,
        "-ojsonpath={.data.config\\.yaml}",
    ]);
    let mut config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["services"]["proxy"], "stack");
    config["services"]["proxy"] = json!("millrace");
    config["cni"]["chained"] = json!([]);
    let patch = json!({"data": {"config.yaml": config.to_string()}}).to_string();
    cluster.kubectl([
        "patch",
        system,
        "configmap",
        map,
        "--type=merge",
        "--patch",
        &patch,
    ]);
    cluster.kubectl(["rollout", "restart", system, "daemonset/millrace"]);
    cluster.kubectl([
        "rollout",
        "status",
        system,
        "daemonset/millrace",
        "--timeout=120s",
    ]);
}

fn check(cluster: &Kubernetes<()>, node: &str) -> Value {
    let status = millrace(cluster, node, &["status"]);
    let checks = status["checks"].as_array().unwrap().iter();
    let mut checks = checks.filter(|check| check["name"] == "kube-proxy");
    checks.next().cloned().unwrap_or_else(|| panic!("{status}"))
}

#[test]
#[ignore = "datagrams of one socket to a ClusterIP do not always outlive it yet"]
fn a_cluster_with_kube_proxy_goes_over_to_millrace_without_a_lost_packet() {
    let named = Named("mrmove");
    named.run(&["up", "--proxy", "kube-proxy-nft"]);
    let cluster = Kubernetes::of(&named, "move");
    cluster.apply(&workload(
        "DaemonSet",
        "web",
        json!({}),
        json!({"command": ["sleep", "1000000"]}),
    ));
    cluster.apply(&workload(
        "DaemonSet",
        "client",
        json!({}),
        json!({"command": ["sleep", "1000000"]}),
    ));
    cluster.apply(&service());
    cluster.rolled_out("daemonset/web");
    cluster.rolled_out("daemonset/client");
    let object: Value = serde_json::from_str(&cluster.kubectl(["get", "service", "web", "-ojson"])).unwrap();
    let vips: Vec<IpAddr> = serde_json::from_value(object["spec"]["clusterIPs"].clone()).unwrap();
    let about: Value = serde_json::from_str(&cluster.cluster(["status", "--json"])).unwrap();
    let outside = Namespace::open(about["fabric"]["namespace"].as_str().unwrap()).unwrap();
    let nodes: Vec<IpAddr> = serde_json::from_value(about["nodes"][0]["addresses"].clone()).unwrap();
    let servers = cluster.pods("web");
    let _echoes: Vec<_> = servers.iter().flat_map(|pod| Load::serve(pod, PORT)).collect();
    let clients: Vec<Namespace> = cluster.pods("client").iter().map(network).collect();
    for (from, addresses, port) in [(&clients[0], &vips, 80), (&outside, &nodes, NODE_PORT)] {
        for address in addresses {
            let to = SocketAddr::new(*address, port);
            eventually(|| cni_tests::traffic::tcp(from, to, 8).map_err(|error| format!("{error:#}")));
        }
    }
    let towards = |from, addresses: &[IpAddr], port| {
        let all = addresses.iter().map(|address| SocketAddr::new(*address, port));
        Load::of(from, all.map(|to| (to, to)))
    };
    let loads = [
        towards(&clients[0], &vips, 80),
        towards(&clients[1], &vips, 80),
        towards(&outside, &nodes, NODE_PORT),
    ];
    loads.iter().for_each(Load::go_on);

    switch(&cluster);
    loads.iter().for_each(Load::go_on);
    for node in cluster.nodes() {
        let both = check(&cluster, &node);
        assert!(
            both["detail"]
                .as_str()
                .unwrap()
                .contains("one runs (mode nftables)"),
            "{both}"
        );
        cluster.cluster(["exec", &node, "--", "sh", "-c", "kill $(pidof kube-proxy)"]);
    }
    loads.iter().for_each(Load::go_on);
    for node in cluster.nodes() {
        eventually(|| {
            let left = check(&cluster, &node);
            let ended = left["remedy"] == "`millrace kube-proxy cleanup`";
            ended.then_some(()).ok_or_else(|| left.to_string())
        });
        let done = millrace(&cluster, &node, &["kube-proxy", "cleanup"]);
        assert_eq!(
            done["removed"],
            json!(["table ip kube-proxy", "table ip6 kube-proxy"]),
            "{done}"
        );
        eprintln!("{node}: {} connections live on", done["connections"]);
    }
    loads.iter().for_each(Load::go_on);
    loads.into_iter().for_each(Load::end);
    for node in cluster.nodes() {
        // They have ended; what was kept for them goes.
        eventually(|| {
            let done = millrace(&cluster, &node, &["kube-proxy", "cleanup"]);
            let trace = check(&cluster, &node);
            let none = trace["detail"] == "no trace of one";
            none.then_some(()).ok_or_else(|| format!("{done} {trace}"))
        });
        let rules = cluster.cluster(["exec", &node, "--", "nft", "list", "ruleset"]);
        assert!(
            !rules.contains("kube-proxy") && !rules.contains("millrace"),
            "{rules}"
        );
        assert!(rules.contains("KUBE-FIREWALL"), "the kubelet's: {rules}");
    }
    assert_eq!(agents(&cluster).len(), cluster.nodes().len());
    named.run(&["down"]);
}
