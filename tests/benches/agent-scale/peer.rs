//! The real kube-proxy, on a host that is no node of ours.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Stdio},
};

use anyhow::{Context, Result};
use cni_tests::lab::{ControlPlane, Lab, control_plane::program};
use serde_json::json;

use super::watched::Watched;

/// Ends with this value.
pub(crate) struct KubeProxy<'a> {
    lab: &'a Lab,
    process: Child,
    log: PathBuf,
}

impl<'a> KubeProxy<'a> {
    pub(crate) fn start(lab: &'a Lab, control: &ControlPlane) -> Result<Self> {
        let folder = control.folder();
        let settings = folder.join("kube-proxy.json");
        let text = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": "nftables", "hostnameOverride": "worker-0", "clusterCIDR": "10.64.0.0/11",
            "clientConnection": {"kubeconfig": folder.join("admin.kubeconfig")},
            // Read-only outside the machine's first network namespace.
            "conntrack": {"maxPerCore": 0, "min": 0},
        });
        fs::write(&settings, text.to_string())?;
        let log = folder.join("kube-proxy.log");
        let file = File::create(&log)?;
        let process = lab
            .outside
            .command(program("kube-proxy"))
            .arg(format!("--config={}", settings.display()))
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("start kube-proxy")?;
        lab.nodes[0].adopt(&process)?;
        Ok(Self { lab, process, log })
    }

    pub(crate) fn watched(&self, name: &'static str) -> Watched<'a> {
        Watched {
            name,
            process: self.process.id(),
            inside: &self.lab.outside,
            device: "eth0",
        }
    }

    /// Once everything that it knows is in the kernel.
    pub(crate) fn is_healthy(&self) -> bool {
        let mut curl = self.lab.outside.command("curl");
        curl.args(["--silent", "--fail", "http://127.0.0.1:10256/healthz"]);
        curl.output().is_ok_and(|output| output.status.success())
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for KubeProxy<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
