//! Millrace as its users have it: a DaemonSet that is updated, drained away and taken off.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    process::Command,
};

use cni_tests::{netns::Namespace, traffic::Load};
use serde_json::{Value, json};

use super::kubernetes::{Kubernetes, Pod, eventually, said, web, workload};

pub(crate) const SYSTEM: &str = "--namespace=kube-system";
/// Exchanges that show that traffic goes on.
pub(crate) const SOME: u64 = 50;

pub(crate) fn sleepers(app: &str) -> Value {
    workload(
        "DaemonSet",
        app,
        json!({}),
        json!({"command": ["sleep", "1000000"]}),
    )
}

/// The network of a pod, by one of its processes: their cgroup has its name.
pub(crate) fn network(pod: &Pod) -> Namespace {
    let is_in = |process: u32| {
        let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
        groups.contains(&format!("pod{}", pod.uid))
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let process = numbers
        .find(|process| is_in(*process))
        .expect("a process of the pod");
    Namespace::of_process(&pod.name, process).unwrap()
}

pub(crate) fn addresses(pod: &Pod) -> impl Iterator<Item = IpAddr> {
    pod.addresses.iter().map(|address| address.parse().unwrap())
}

/// What is outside of the cluster.
pub(crate) fn outside(cluster: &Kubernetes<impl Sized>) -> Namespace {
    let about: Value = serde_json::from_str(&cluster.cluster(["status", "--json"])).unwrap();
    Namespace::open(about["fabric"]["namespace"].as_str().unwrap()).unwrap()
}

/// New agents, one node after the other.
pub(crate) fn replace(cluster: &Kubernetes<impl Sized>) {
    let agents = "daemonset/millrace";
    cluster.kubectl(["rollout", "restart", SYSTEM, agents]);
    cluster.kubectl(["rollout", "status", SYSTEM, agents, "--timeout=120s"]);
}

pub(crate) fn agents(cluster: &Kubernetes<impl Sized>) -> Vec<Pod> {
    cluster.pods_in("kube-system", "app.kubernetes.io/name=millrace")
}

/// `millrace` on a node, in the agent's pod.
pub(crate) fn command(cluster: &Kubernetes<impl Sized>, node: &str, words: &[&str]) -> Command {
    let agents = agents(cluster);
    let agent = agents.iter().find(|agent| agent.node == node).unwrap();
    let exec = ["exec", SYSTEM, agent.name.as_str(), "--", "millrace"];
    cluster.kubectl_command([&exec, words, &["--json"]].concat())
}

/// What it says there.
pub(crate) fn millrace(cluster: &Kubernetes<impl Sized>, node: &str, words: &[&str]) -> Value {
    serde_json::from_str(&said(&mut command(cluster, node, words))).unwrap()
}

#[test]
fn an_agents_own_pod_says_that_all_is_well() {
    let cluster = Kubernetes::shared("status");
    for node in cluster.nodes() {
        // Another test's objects may be wrong for a moment; then the command fails.
        eventually(|| {
            let output = command(&cluster, &node, &["status"]).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            let said: Value = serde_json::from_str(&text).unwrap_or_default();
            let well = output.status.success() && said["state"] == "ok" && said["agent"]["node"] == *node;
            well.then_some(()).ok_or_else(|| format!("{node}: {output:?}"))
        });
    }
}

#[test]
fn a_rolling_update_of_the_agents_loses_no_packet() {
    let cluster = Kubernetes::alone("rolling");
    cluster.apply(&sleepers("end"));
    cluster.rolled_out("daemonset/end");
    let [first, second] = <[Pod; 2]>::try_from(cluster.pods("end")).unwrap();
    let (near, far) = (network(&first), network(&second));
    let mut load = Load::default();
    for (from, there, ips) in [(&near, &far, &second), (&far, &near, &first)] {
        addresses(ips).for_each(|ip| load.between(from, there, ip));
    }
    // Masqueraded.
    let outside = outside(&cluster);
    for gateway in ["192.168.77.1", "fd00:77::1"] {
        load.between(&near, &outside, gateway.parse().unwrap());
    }
    load.goes_on(SOME);
    let before = agents(&cluster);
    replace(&cluster);
    load.goes_on(SOME);
    let after = agents(&cluster);
    assert_eq!(after.len(), before.len());
    assert!(
        after
            .iter()
            .all(|new| before.iter().all(|old| old.name != new.name))
    );
    assert_eq!(load.end(), Vec::<String>::new());
    for node in cluster.nodes() {
        let drops = millrace(&cluster, &node, &["drops"]);
        eprintln!("{node}: {drops}");
    }
}

/// A drained node takes pods again when this value is gone, also for the tests after a failure.
struct Drained<'a, Turn>(&'a Kubernetes<Turn>);

impl<Turn> Drop for Drained<'_, Turn> {
    fn drop(&mut self) {
        let _ = self.0.kubectl_command(["uncordon", "n2"]).output();
    }
}

#[test]
fn a_drained_node_gives_its_pods_away_and_takes_new_ones_afterwards() {
    let cluster = Kubernetes::alone("drain");
    web(&cluster);
    // Anywhere: on one node both, if need be.
    let anywhere = json!([{"op": "remove", "path": "/spec/template/spec/topologySpreadConstraints"}]);
    cluster.kubectl([
        "patch",
        "deployment/web",
        "--type=json",
        "--patch",
        &anywhere.to_string(),
    ]);
    cluster.apply(&sleepers("client"));
    cluster.rolled_out("deployment/web");
    cluster.rolled_out("daemonset/client");
    let local = |cluster: &Kubernetes<_>| {
        let endpoints = millrace(cluster, "n2", &["endpoints"]);
        let list = endpoints.as_array().unwrap();
        let of_test = list
            .iter()
            .filter(|one| one["pod"].as_str().is_some_and(|pod| pod.starts_with("drain/")));
        of_test.map(Value::to_string).collect::<Vec<_>>()
    };
    let drained = Drained(&cluster);
    cluster.kubectl([
        "drain",
        "n2",
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--force",
        "--timeout=100s",
    ]);
    cluster.rolled_out("deployment/web");
    let servers = cluster.pods("web");
    assert!(servers.iter().all(|pod| pod.node == "n1"), "{servers:?}");
    // Of this test the DaemonSet's pod alone is left there.
    let left = local(&cluster);
    assert_eq!(left.len(), 1, "{left:?}");
    for client in cluster.pods("client") {
        for server in &servers {
            for address in addresses(server) {
                let page = cluster.fetch(&client.name, &format!("http://{}/", SocketAddr::new(address, 80)));
                assert_eq!(page, server.name);
            }
        }
    }
    drop(drained);
    cluster.kubectl(["scale", "deployment/web", "--replicas=6"]);
    cluster.rolled_out("deployment/web");
    eventually(|| {
        let there = local(&cluster).len();
        (there > 1)
            .then_some(())
            .ok_or_else(|| format!("{there} endpoints on n2"))
    });
}
