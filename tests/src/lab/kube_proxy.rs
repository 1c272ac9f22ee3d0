//! The real kube-proxy, on a host of the lab or beside it.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::json;

use super::{ControlPlane, Lab, control_plane::program};
use crate::netns::Namespace;

/// How it tells the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Nftables,
    Iptables,
}

impl Mode {
    pub const ALL: [Self; 2] = [Self::Nftables, Self::Iptables];

    pub fn word(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Nftables => "kube-proxy nftables",
            Self::Iptables => "kube-proxy iptables",
        }
    }
}

/// Whether it was built; the layer's runner sees to that.
pub fn is_available() -> bool {
    program("kube-proxy").is_file()
}

/// What it has told the kernel stays when this value, and with it the process, is gone.
#[derive(Debug)]
pub struct KubeProxy {
    host: Namespace,
    process: Child,
    log: PathBuf,
}

impl KubeProxy {
    /// For a Node that the API server knows. Pods have addresses in `pods`.
    pub fn start(
        lab: &Lab,
        control: &ControlPlane,
        host: &Namespace,
        node: &str,
        mode: Mode,
        pods: &str,
    ) -> Result<Self> {
        let folder = control.folder();
        let settings = folder.join(format!("kube-proxy-{node}.json"));
        let text = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": mode.word(), "hostnameOverride": node, "clusterCIDR": pods,
            "clientConnection": {"kubeconfig": folder.join("admin.kubeconfig")},
            // Read-only outside the machine's first network namespace.
            "conntrack": {"maxPerCore": 0, "min": 0},
        });
        fs::write(&settings, text.to_string())?;
        let log = folder.join(format!("kube-proxy-{node}.log"));
        let file = File::create(&log)?;
        let process = host
            .command(program("kube-proxy"))
            .arg(format!("--config={}", settings.display()))
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .context("start kube-proxy")?;
        lab.nodes[0].adopt(&process)?;
        Ok(Self {
            host: host.duplicate()?,
            process,
            log,
        })
    }

    pub fn process(&self) -> u32 {
        self.process.id()
    }

    /// Fails if it has ended.
    pub fn check(&self) -> Result<()> {
        let lives = Path::new(&format!("/proc/{}/exe", self.process.id())).exists();
        ensure!(lives, "kube-proxy ended: {}", self.log());
        Ok(())
    }

    /// A number that it tells of itself; 0 before it does.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let mut curl = self.host.command("curl");
        curl.args(["--silent", "http://127.0.0.1:10249/metrics"]);
        let output = curl.output().context("curl")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let values = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (series, value) = line.rsplit_once(' ')?;
                let of = series.split('{').next()?;
                (of == name).then(|| value.parse::<f64>().ok()).flatten()
            });
        Ok(values.fold(0.0, f64::max))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its own removal of what it has made.
    pub fn cleanup(host: &Namespace) -> Result<Output> {
        let mut command = host.command(program("kube-proxy"));
        command.arg("--cleanup").output().context("start kube-proxy")
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        // With the command that it has begun: some write rules for minutes, and whatever is measured next would wait for them.
        let _ = killpg(Pid::from_raw(self.process.id() as i32), Signal::SIGKILL);
        let _ = self.process.wait();
    }
}
