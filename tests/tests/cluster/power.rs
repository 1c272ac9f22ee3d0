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
    // A rollout, and a pod's address, may be seen as they stood before the cut.
    eventually(|| {
        let [clients, servers] = ["client", "web"].map(|app| cluster.pods(app));
        for client in &clients {
            for server in &servers {
                let address = server.addresses.first().ok_or("a pod without an address")?;
                let page = cluster.fetch_once(&client.name, &format!("http://{address}/"))?;
                if page != server.name {
                    return Err(format!("{} to {}, {address}: {page}", client.name, server.name));
                }
            }
            let page = cluster.fetch_once(&client.name, "http://web/")?;
            if !page.starts_with("web-") {
                return Err(format!("{}: {page}", client.name));
            }
        }
        Ok(())
    });
}
