//! What lies on a node's disk before it is switched on for the first time.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Machine;
use crate::cluster::place::write as write_file;
use crate::cluster::plan::{Plan, Proxy};
use crate::oci::hex;
use crate::process::find;

/// Folders of which the node sees nothing but its own. containerd's layers could not lie on another layer.
pub(crate) const OWN: [&str; 9] = [
    "/etc/cni",
    "/etc/containerd",
    "/etc/kubernetes",
    "/etc/millrace",
    "/opt/cni",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/lib/millrace",
];
pub(crate) const CNI_CONFIGURATION: &str = "/etc/cni/net.d";
const CNI_PROGRAMS: &str = "/opt/cni/bin";
/// Where Debian has the reference plugins.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";
/// containerd needs the first; the others are Millrace's peer and what a user may chain behind it.
const PLUGINS: [&str; 7] = [
    "loopback",
    "bridge",
    "host-local",
    "portmap",
    "bandwidth",
    "firewall",
    "tuning",
];
pub(crate) const PAUSE: &str = "localhost/pause:1";

/// Where a node's disk has what the node sees at `path`.
pub(super) fn kept(disk: &Path, path: &str) -> PathBuf {
    disk.join("root").join(path.trim_start_matches('/'))
}

pub(super) fn write(machine: &Machine<'_>) -> Result<()> {
    let (plan, node) = (machine.plan, machine.node);
    let put = |path: &str, content: &[u8]| write_file(&machine.disk(path), content);
    let addresses = plan
        .layouts()
        .iter()
        .map(|layout| format!("{} {node}\n", layout.node(node)));
    let hosts = "127.0.0.1 localhost\n::1 localhost\n".to_owned() + &addresses.collect::<String>();
    put("/etc/hosts", hosts.as_bytes())?;
    put("/etc/hostname", format!("{node}\n").as_bytes())?;
    put("/etc/machine-id", machine_id(&machine.name()).as_bytes())?;
    put(
        "/etc/resolv.conf",
        format!("nameserver {}\n", plan.first().api).as_bytes(),
    )?;
    put("/etc/containerd/config.toml", containerd()?.as_bytes())?;
    put(
        "/etc/kubernetes/kubelet.json",
        &serde_json::to_vec_pretty(&kubelet(&machine.name(), plan))?,
    )?;
    let proxy = kube_proxy(&node.to_string(), plan);
    put(
        "/etc/kubernetes/kube-proxy.json",
        &serde_json::to_vec_pretty(&proxy)?,
    )?;
    for (from, to) in [
        ("ca.crt".to_owned(), "ca.crt"),
        (format!("kubelet-{node}.kubeconfig"), "kubelet.kubeconfig"),
        (format!("kubelet-{node}-serving.crt"), "kubelet.crt"),
        (format!("kubelet-{node}-serving.key"), "kubelet.key"),
        ("kube-proxy.kubeconfig".to_owned(), "kube-proxy.kubeconfig"),
    ] {
        copy(
            &machine.place.keys().join(from),
            &machine.disk("/etc/kubernetes").join(to),
        )?;
    }
    for plugin in PLUGINS {
        copy(
            &Path::new(REFERENCE_PLUGINS).join(plugin),
            &machine.disk(CNI_PROGRAMS).join(plugin),
        )?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    fs::copy(from, to)
        .with_context(|| format!("copying {} to {}", from.display(), to.display()))
        .map(drop)
}

/// Different for every node and the same over its power cycles.
fn machine_id(name: &str) -> String {
    let mut id = hex(&Sha256::digest(name));
    id.truncate(32);
    id + "\n"
}

fn containerd() -> Result<String> {
    let runc = find("runc").context("runc is not installed; run `cargo xtask setup cluster`")?;
    // Version 2 of the configuration is read by containerd 1.6 and, translated, by 2.x.
    Ok(format!(
        r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # Without the capability CAP_SYS_RESOURCE no container starts otherwise.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "{}"
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PROGRAMS}"
    conf_dir = "{CNI_CONFIGURATION}"
"#,
        runc.display()
    ))
}

fn kubelet(cgroup: &str, plan: &Plan) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": "/etc/kubernetes/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": "/etc/kubernetes/kubelet.crt",
        "tlsPrivateKeyFile": "/etc/kubernetes/kubelet.key",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}"),
        "failCgroupV1": false,
        "clusterDNS": [plan.first().dns_service],
        "clusterDomain": "cluster.local",
        "resolvConf": "/etc/resolv.conf",
        // The machine's disk is not ours to judge: nothing is evicted or collected before it is all but full.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%",
        },
        // Pods that stand in a row wait no longer than the slowest.
        "serializeImagePulls": false,
    })
}

fn kube_proxy(node: &str, plan: &Plan) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": if plan.proxy() == Proxy::KubeProxyIptables { "iptables" } else { "nftables" },
        "clientConnection": {"kubeconfig": "/etc/kubernetes/kube-proxy.kubeconfig"},
        "clusterCIDR": plan.list(|layout| layout.pods.to_owned()),
        "hostnameOverride": node,
        // Read-only outside the machine's first network namespace.
        "conntrack": {"maxPerCore": 0, "min": 0},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::plan::Family;

    #[test]
    fn a_nodes_places_lie_below_its_disk() {
        assert_eq!(
            kept(Path::new("/t/n1"), "/etc/cni"),
            Path::new("/t/n1/root/etc/cni")
        );
    }

    #[test]
    fn a_machine_id_is_thirty_two_digits_and_a_nodes_own() {
        let id = machine_id("millrace-n1");
        assert_eq!(id.trim().len(), 32);
        assert_ne!(id, machine_id("millrace-n2"));
        assert_eq!(id, machine_id("millrace-n1"));
    }

    #[test]
    fn the_kubelet_resolves_names_with_the_clusters_first_family() {
        let kubelet = kubelet("millrace-n1", &Plan::without_nodes(Family::V6));
        assert_eq!(kubelet["clusterDNS"][0], "fd00:10:96::a");
        assert_eq!(kubelet["cgroupRoot"], "/millrace-n1");
    }

    #[test]
    fn containerds_configuration_is_what_it_can_read() {
        let text = containerd().unwrap();
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(
            table["plugins"]["io.containerd.grpc.v1.cri"]["sandbox_image"].as_str(),
            Some(PAUSE)
        );
    }
}
