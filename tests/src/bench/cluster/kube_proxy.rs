//! The real kube-proxy, on a host of its own whose pods the reference plugin `ptp` attaches.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    Loader,
    objects::{NODES, Object},
    watched::Watched,
};
use crate::{
    bench::reference::Reference,
    lab::{ControlPlane, Lab, control_plane::program},
};

/// How it tells the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Nftables,
    Iptables,
}

impl Mode {
    pub const ALL: [Self; 2] = [Self::Nftables, Self::Iptables];

    fn word(self) -> &'static str {
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

const LAST_SYNC: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";

/// Ends with this value.
#[derive(Debug)]
pub struct KubeProxy {
    pub host: Reference,
    pub mode: Mode,
    process: Child,
    log: PathBuf,
}

impl KubeProxy {
    pub fn start(lab: &Lab, control: &ControlPlane, mode: Mode) -> Result<Self> {
        let word = mode.word();
        let host = Reference::ptp(&format!("{}-{word}", lab.name()))?;
        let number = mode as u8;
        lab.admit(&host.namespace, number)?;
        let folder = control.folder();
        let kubeconfig = folder.join("admin.kubeconfig");
        let name = format!("peer-{word}");
        // It waits for its own.
        let node = Object {
            collection: NODES,
            body: json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "status": {"addresses": [{"type": "InternalIP", "address": format!("198.18.{number}.2")}]},
            }),
        };
        Loader::new(&lab.fabric, &kubeconfig)?.create("Node", vec![node])?;
        let settings = folder.join(format!("kube-proxy-{word}.json"));
        let text = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": word, "hostnameOverride": name, "clusterCIDR": "10.64.0.0/10",
            "clientConnection": {"kubeconfig": kubeconfig},
            // Read-only outside the machine's first network namespace.
            "conntrack": {"maxPerCore": 0, "min": 0},
        });
        fs::write(&settings, text.to_string())?;
        let log = folder.join(format!("kube-proxy-{word}.log"));
        let file = File::create(&log)?;
        let process = host
            .namespace
            .command(program("kube-proxy"))
            .arg(format!("--config={}", settings.display()))
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("start kube-proxy")?;
        lab.nodes[0].adopt(&process)?;
        Ok(Self {
            host,
            mode,
            process,
            log,
        })
    }

    pub fn watched(&self) -> Watched<'_> {
        Watched {
            name: self.mode.name(),
            process: self.process.id(),
            inside: &self.host.namespace,
            device: "eth0",
        }
    }

    /// A number that it tells of itself; 0 before it does.
    fn metric(&self, name: &str) -> Result<f64> {
        let mut curl = self.host.namespace.command("curl");
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

    /// Waits until everything that it knew is in the kernel for the first time. False: not in this time.
    pub fn wait_until_programmed(&self, patience: Duration) -> Result<bool> {
        let begin = Instant::now();
        while self.metric(LAST_SYNC)? == 0.0 {
            ensure!(
                std::path::Path::new(&format!("/proc/{}/exe", self.process.id())).exists(),
                "kube-proxy ended: {}",
                self.log()
            );
            if begin.elapsed() > patience {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(true)
    }

    /// Waits until it has nothing to do for two seconds. False: not in this time.
    pub fn wait_until_quiet(&self, patience: Duration) -> Result<bool> {
        const STILL: Duration = Duration::from_secs(2);
        let begin = Instant::now();
        let mut last = (begin, self.metric(LAST_SYNC)?, self.watched().sample()?);
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let synced = self.metric(LAST_SYNC)?;
            let busy = self.watched().rates(&last.2)?.cpu > 20.0;
            if synced != last.1 || busy {
                last = (Instant::now(), synced, self.watched().sample()?);
            } else if last.0.elapsed() > STILL {
                return Ok(true);
            }
            if begin.elapsed() > patience {
                return Ok(false);
            }
        }
    }

    /// Seconds that its first look at everything took, by its own clock.
    pub fn full_sync(&self) -> Result<f64> {
        self.metric("kubeproxy_sync_full_proxy_rules_duration_seconds_sum")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
