//! A node whose plug is pulled.

use super::kubernetes::{Kubernetes, eventually, web, workload};
use serde_json::json;

#[test]
fn a_node_comes_back_from_a_power_cycle_with_its_disk_and_without_its_memory() {
    let cluster = Kubernetes::alone("power");
    web(&cluster);
    cluster.apply(&workload(
        "DaemonSet",
        "client",
        json!({}),
        json!({"command": ["sleep", "1000000"]}),
    ));
    cluster.rolled_out("deployment/web");
    cluster.rolled_out("daemonset/client");
    let boot = |cluster: &Kubernetes<_>| {
        cluster.kubectl(["get", "node", "n2", "-ojsonpath={.status.nodeInfo.bootID}"])
    };
    let before = boot(&cluster);
    for path in ["/var/lib/millrace/kept", "/run/lost", "/sys/fs/bpf/lost"] {
        cluster.cluster(["exec", "n2", "--", "mkdir", "-p", path]);
    }
    cluster.cluster(["power-cycle", "n2"]);
    assert_ne!(boot(&cluster), before);
    let there = |path: &str| {
        let look = cluster
            .command()
            .args(["exec", "n2", "--", "test", "-d", path])
            .status();
        look.unwrap().success()
    };
    assert!(there("/var/lib/millrace/kept"));
    assert!(!there("/run/lost") && !there("/sys/fs/bpf/lost"));
    // Its pods run again, on the same node, and are reached from the other.
    cluster.rolled_out("daemonset/client");
    cluster.rolled_out("deployment/web");
    // A rollout may be seen as it stood before the cut.
    let [clients, servers] = ["client", "web"].map(|app| {
        eventually(|| {
            let pods = cluster.pods(app);
            let all = pods.iter().all(|pod| !pod.addresses.is_empty());
            if all {
                Ok(pods)
            } else {
                Err(format!("not all have addresses: {pods:?}"))
            }
        })
    });
    for client in clients {
        for server in &servers {
            let page = cluster.fetch(&client.name, &format!("http://{}/", server.addresses[0]));
            assert_eq!(page, server.name);
        }
        assert!(cluster.fetch(&client.name, "http://web/").starts_with("web-"));
    }
}
