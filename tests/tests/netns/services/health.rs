//! What load balancers are told.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use cni_tests::{
    lab::{Lab, Pod, Routing, ServiceManifest, Signal, cluster_ip},
    netns::Namespace,
    traffic::{get, tcp},
};
use serde_json::json;

use super::{plan, publish, reach::restart, serve};
use crate::{eventually, needs_root};

const CHECK: u16 = 31007;
const NODE_PORT: u16 = 30007;
/// Of `services.health`.
const PROXY: u16 = 10256;
/// Of `services.metrics`.
const MODE: u16 = 10249;

#[track_caller]
fn says(from: &Namespace, to: SocketAddr, path: &str, wanted: &[&str]) {
    eventually(|| {
        let answer = get(from, to, path).unwrap_or_default();
        let good = wanted.iter().all(|word| answer.contains(word));
        (!good).then(|| format!("{to}{path} says {answer:?}, not {wanted:?}"))
    });
}

fn service(pod: &Pod, conditions: serde_json::Value, policy: &str) -> ServiceManifest {
    let spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": policy, "healthCheckNodePort": CHECK,
        "ports": [{ "name": "t", "port": 80, "protocol": "TCP", "nodePort": NODE_PORT }],
    });
    ServiceManifest::new(7)
        .spec(spec)
        .endpoint_at(pod, 8080, "node0", conditions)
}

#[test]
fn svc_44_svc_45_health_check_node_ports_answer_on_node_port_addresses_alone() {
    needs_root!();
    let lab = Lab::start(plan(Routing::Direct)).unwrap();
    let [here, there] = [&lab.nodes[0], &lab.nodes[1]];
    let pod = here.add_pod("a").unwrap();
    let _echoes = serve(&pod, 8080);
    publish(&lab, &service(&pod, json!({}), "Local"));
    let at = |node: &cni_tests::lab::Node, v4| SocketAddr::new(node.address(v4), CHECK);
    for v4 in [true, false] {
        says(
            &lab.outside,
            at(here, v4),
            "/",
            &["200 OK", "\"localEndpoints\":1", "nosniff"],
        );
        says(&lab.outside, at(there, v4), "/", &["503", "\"localEndpoints\":0"]);
        let second = SocketAddr::new(here.second_address(v4), CHECK);
        assert_eq!(
            get(&here.namespace, second, "/"),
            None,
            "not an address of NodePorts"
        );
    }
    // With the policy goes the port.
    publish(&lab, &service(&pod, json!({}), "Cluster"));
    eventually(|| get(&lab.outside, at(here, true), "/"));
}

#[test]
fn svc_44_health_check_node_ports_follow_the_addresses_of_node_ports() {
    needs_root!();
    let lab = Lab::start(plan(Routing::Direct).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let pod = node.add_pod("a").unwrap();
    let _echoes = serve(&pod, 8080);
    publish(&lab, &service(&pod, json!({}), "Local"));
    let first = [true, false].map(|v4| node.address(v4));
    let second = [true, false].map(|v4| node.second_address(v4));
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let all = [first, second, loopback].concat();
    for (ranges, wanted) in [
        (json!(["192.168.128.0/24", "fd78::/16"]), second.to_vec()),
        // One family's range says nothing of the other one.
        (json!([format!("{}/32", second[0])]), vec![second[0]]),
        // Even of all addresses the loopback is nobody's from outside.
        (json!(["0.0.0.0/0", "::/0"]), [first, second].concat()),
        (json!(["primary"]), first.to_vec()),
    ] {
        restart(node, &lab.plan, &json!({ "nodePortAddresses": ranges }));
        for ip in &wanted {
            let to = SocketAddr::new(*ip, CHECK);
            says(&lab.outside, to, "/", &["200 OK", "\"localEndpoints\":1"]);
        }
        for ip in all.iter().filter(|ip| !wanted.contains(ip)) {
            let answer = get(&node.namespace, SocketAddr::new(*ip, CHECK), "/");
            assert_eq!(answer, None, "{ip} is not in {ranges}");
        }
    }
}

#[test]
fn svc_47_only_terminating_endpoints_are_no_health_but_still_serve() {
    needs_root!();
    let lab = Lab::start(plan(Routing::Direct)).unwrap();
    let node = &lab.nodes[0];
    let pod = node.add_pod("a").unwrap();
    let client = node.add_pod("client").unwrap();
    let _echoes = serve(&pod, 8080);
    let leaving = json!({ "ready": false, "serving": true, "terminating": true });
    publish(&lab, &service(&pod, leaving, "Local"));
    says(
        &lab.outside,
        SocketAddr::new(node.address(true), CHECK),
        "/",
        &["503"],
    );
    let vip = SocketAddr::new(cluster_ip(7, true), 80);
    tcp(&client.namespace, vip, 100).unwrap();
}

#[test]
fn svc_48_the_proxy_says_how_it_is() {
    needs_root!();
    let lab = Lab::start(plan(Routing::Direct).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let [proxy, proxy_v6] = [true, false].map(|v4| SocketAddr::new(node.address(v4), PROXY));
    // What upstream's spec "should check kube-proxy urls" looks for, on each node itself.
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    // One listener answers both families: a cluster may have either alone.
    for at in [proxy, proxy_v6] {
        says(&lab.outside, at, "/healthz", &["200 OK"]);
    }
    says(
        &node.namespace,
        local(PROXY),
        "/healthz",
        &["200 OK", "\"lastUpdated\":\"20", "\"nodeEligible\":true"],
    );
    says(
        &node.namespace,
        local(MODE),
        "/proxyMode",
        &["200 OK", "\r\n\r\nebpf"],
    );
    says(&node.namespace, local(MODE), "/healthz", &["200 OK"]);
    says(
        &node.namespace,
        local(MODE),
        "/metrics",
        &["200 OK", "millrace_services"],
    );
    says(&node.namespace, local(MODE), "/else", &["404", "/proxyMode"]);
    assert_eq!(
        get(
            &lab.outside,
            SocketAddr::new(node.address(true), MODE),
            "/proxyMode"
        ),
        None,
        "the node's own business"
    );
    says(&lab.outside, proxy, "/livez", &["200 OK"]);
    let mut leaving = cni_tests::lab::control_plane::node(&lab.plan, 0);
    leaving["spec"]["taints"] = json!([{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" }]);
    node.write_manifest("nodes.yaml", &leaving).unwrap();
    for at in [proxy, proxy_v6] {
        says(&lab.outside, at, "/healthz", &["503"]);
        says(&lab.outside, at, "/livez", &["200 OK"]);
    }
    node.end_agent(Signal::SIGKILL).unwrap();
    assert_eq!(get(&lab.outside, proxy, "/livez"), None);
}

#[test]
fn ports_that_another_proxy_has_are_a_problem_once_and_served_when_it_ends() {
    needs_root!();
    let lab = Lab::prepare(
        plan(Routing::Direct).nodes(1),
        &format!("mrlab-ports-{}", std::process::id()),
    )
    .unwrap();
    let node = &lab.nodes[0];
    let other = node
        .namespace
        .run(|| [PROXY, MODE].map(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()));
    node.start_agent().unwrap();
    node.wait_until_ready().unwrap();
    let problems = || -> Vec<String> {
        let problems = node.ask(["status"]).unwrap()["agent"]["problems"].clone();
        serde_json::from_value(problems).unwrap()
    };
    let about = |port: u16| {
        let problems = problems().into_iter();
        problems
            .filter(|problem| problem.contains(&format!(":{port}: ")))
            .collect::<Vec<_>>()
    };
    eventually(|| {
        let found = [about(PROXY), about(MODE)];
        let said = found[0]
            .iter()
            .any(|text| text.ends_with("or set services.health"))
            && found[1]
                .iter()
                .any(|text| text.ends_with("or set services.metrics"));
        (!said).then(|| format!("{:?}", problems()))
    });
    // A few attempts are made meanwhile.
    thread::sleep(Duration::from_secs(4));
    drop(other);
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    says(&node.namespace, local(PROXY), "/healthz", &["200 OK"]);
    says(&node.namespace, local(MODE), "/proxyMode", &["200 OK"]);
    eventually(|| {
        let left = [about(PROXY), about(MODE)].concat();
        (!left.is_empty()).then(|| format!("{left:?}"))
    });
    let log = node.whole_log();
    for port in [PROXY, MODE] {
        let lines = log.lines().filter(|line| line.contains(&format!(":{port}")));
        assert_eq!(lines.count(), 2, "the beginning and the end: {log}");
    }
}
