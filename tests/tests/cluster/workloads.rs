//! What every cluster must do for the things that people run.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::Stdio,
};

use serde_json::{Value, json};

use super::kubernetes::{Kubernetes, web, workload};

fn url(address: &str) -> String {
    if address.contains(':') {
        format!("http://[{address}]/")
    } else {
        format!("http://{address}/")
    }
}

fn sleeper(kind: &str, app: &str) -> Value {
    workload(kind, app, json!({}), json!({"command": ["sleep", "1000000"]}))
}

#[test]
fn pods_reach_pods_services_and_names_from_every_node_in_every_family() {
    everybody_reaches_everything(&Kubernetes::shared("reach"));
}

/// Pods reach pods, Services and names from every node in every family.
pub(crate) fn everybody_reaches_everything(cluster: &Kubernetes<impl Sized>) {
    web(cluster);
    cluster.apply(&sleeper("DaemonSet", "client"));
    cluster.rolled_out("deployment/web");
    cluster.rolled_out("daemonset/client");
    let (servers, clients) = (cluster.pods("web"), cluster.pods("client"));
    assert_ne!(servers[0].node, servers[1].node);
    let service: Value = serde_json::from_str(&cluster.kubectl(["get", "service", "web", "-ojson"])).unwrap();
    let services = service["spec"]["clusterIPs"].as_array().unwrap();
    assert_eq!(services.len(), servers[0].addresses.len());
    for client in &clients {
        for server in &servers {
            for address in &server.addresses {
                assert_eq!(cluster.fetch(&client.name, &url(address)), server.name);
            }
        }
        for address in services.iter().map(|address| address.as_str().unwrap()) {
            assert!(cluster.fetch(&client.name, &url(address)).starts_with("web-"));
        }
        for name in [
            "web".to_owned(),
            format!("web.{}.svc.cluster.local", cluster.namespace),
        ] {
            assert!(cluster.fetch(&client.name, &url(&name)).starts_with("web-"));
        }
    }
}

#[test]
fn a_host_network_daemon_finds_its_nodes_places_and_not_the_others() {
    let cluster = Kubernetes::shared("places");
    let paths = [
        "/sys/fs/bpf",
        "/opt/cni/bin",
        "/etc/cni/net.d",
        "/run/millrace",
        "/var/lib/millrace",
    ];
    let volume = |(number, path): (usize, &&str)| json!({"name": format!("v{number}"), "hostPath": {"path": path, "type": "DirectoryOrCreate"}});
    let mount = |(number, path): (usize, &&str)| json!({"name": format!("v{number}"), "mountPath": path});
    let volumes: Vec<_> = paths.iter().enumerate().map(volume).collect();
    let mounts: Vec<_> = paths.iter().enumerate().map(mount).collect();
    cluster.apply(&workload(
        "DaemonSet",
        "daemon",
        json!({"hostNetwork": true, "tolerations": [{"operator": "Exists"}], "volumes": volumes}),
        json!({"command": ["sleep", "1000000"], "volumeMounts": mounts}),
    ));
    cluster.rolled_out("daemonset/daemon");
    let pods = cluster.pods("daemon");
    assert_eq!(pods.len(), cluster.nodes().len());
    for pod in &pods {
        let own = cluster.eventually_in(&pod.name, &["readlink", "/proc/self/ns/net"]);
        let nodes = cluster.cluster(["exec", &pod.node, "--", "readlink", "/proc/self/ns/net"]);
        assert_eq!(own, nodes);
        let mounts = cluster.eventually_in(&pod.name, &["cat", "/proc/self/mounts"]);
        assert!(mounts.contains(" /sys/fs/bpf bpf "), "{mounts}");
        for path in paths {
            let file = format!("{path}/of_{}", pod.node);
            cluster.eventually_in(&pod.name, &["mkdir", "-p", &file]);
            for node in cluster.nodes() {
                let look = cluster
                    .command()
                    .args(["exec", &node, "--", "test", "-d", &file])
                    .status()
                    .unwrap();
                assert_eq!(look.success(), node == pod.node, "{file} on {node}");
            }
        }
    }
}

#[test]
fn logs_exec_and_port_forward_lead_into_a_pod() {
    let cluster = Kubernetes::shared("reads");
    web(&cluster);
    cluster.rolled_out("deployment/web");
    let pod = &cluster.pods("web")[0].name;
    assert_eq!(cluster.kubectl(["logs", pod]), format!("serving on {pod}"));
    assert_eq!(cluster.kubectl(["exec", pod, "--", "hostname"]), *pod);
    let mut forward = cluster
        .kubectl_command(["port-forward", &format!("pod/{pod}"), ":80"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(forward.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    // Forwarding from 127.0.0.1:34567 -> 80
    let port = line
        .split([':', ' '])
        .find_map(|word| word.parse::<u16>().ok())
        .unwrap();
    let mut page = String::new();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    stream.read_to_string(&mut page).unwrap();
    forward.kill().unwrap();
    forward.wait().unwrap();
    assert!(page.trim_end().ends_with(pod), "{page}");
}

#[test]
fn limits_of_a_pod_stand_in_its_nodes_cgroup() {
    let cluster = Kubernetes::shared("limits");
    cluster.apply(&workload(
        "DaemonSet",
        "limited",
        json!({}),
        json!({"command": ["sleep", "1000000"], "resources": {"limits": {"memory": "64Mi", "cpu": "200m"}}}),
    ));
    cluster.rolled_out("daemonset/limited");
    for pod in cluster.pods("limited") {
        let own = format!("{}-{}", cluster.name, pod.node);
        // Of version 1 the controller has a hierarchy of its own.
        let limit = [("memory", "memory.limit_in_bytes"), ("", "memory.max")]
            .into_iter()
            .find_map(|(at, file)| {
                let guaranteed = Path::new("/sys/fs/cgroup").join(at).join(&own).join("kubepods");
                fs::read_to_string(guaranteed.join(format!("pod{}", pod.uid)).join(file)).ok()
            });
        assert_eq!(limit.as_deref().map(str::trim), Some("67108864"), "{own}");
    }
}

#[test]
fn a_failed_command_on_a_node_is_a_failure() {
    let cluster = Kubernetes::shared("fails");
    let status = cluster
        .command()
        .args(["exec", "n1", "--", "sh", "-c", "exit 7"])
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(7));
    let output = cluster
        .command()
        .args(["exec", "n9", "--", "true"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("it has: n1 n2"));
}
