//! A node whose pods are attached by the reference plugins: `bridge` or `ptp`, with `host-local`.

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::netns::Namespace;

/// Where Debian's containernetworking-plugins are.
const PLUGINS: &str = "/usr/lib/cni";

#[derive(Debug)]
pub struct Reference {
    pub namespace: Namespace,
    plugin: &'static str,
    addresses: TempDir,
}

impl Reference {
    /// Pods on one link.
    pub fn bridge(name: &str) -> Result<Self> {
        Self::new(name, "bridge")
    }

    /// Each pod on a link of its own: all that one sends to another is routed by the node, so that it can be translated.
    pub fn ptp(name: &str) -> Result<Self> {
        Self::new(name, "ptp")
    }

    fn new(name: &str, plugin: &'static str) -> Result<Self> {
        ensure!(
            Path::new(PLUGINS).join(plugin).exists(),
            "no {PLUGINS}/{plugin}: install containernetworking-plugins"
        );
        Ok(Self {
            namespace: Namespace::create(name)?,
            plugin,
            addresses: tempfile::tempdir()?,
        })
    }

    /// The range of pods is as large as the lab's, and none of its Services' (`service_range`): an address there that no Service
    /// has is one that kube-proxy drops.
    fn config(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "bench", "type": self.plugin, "bridge": "cni0", "isGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": self.addresses.path(),
                "ranges": [[{ "subnet": "10.127.0.0/24" }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        })
    }

    /// One run of the plugin; what it printed.
    pub fn cni(&self, verb: &str, container: &str, netns: &Path) -> Result<Value> {
        let mut child = self
            .namespace
            .command(Path::new(PLUGINS).join(self.plugin))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", netns)
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start the reference plugin `{}`", self.plugin))?;
        let config = self.config().to_string();
        child
            .stdin
            .take()
            .context("stdin")?
            .write_all(config.as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success(),
            "{} {verb} {container}: {}",
            self.plugin,
            said.trim()
        );
        match output.stdout.is_empty() {
            true => Ok(Value::Null),
            false => Ok(serde_json::from_slice(&output.stdout)?),
        }
    }

    /// Attaches a namespace and gives its address.
    pub fn attach(&self, container: &str, pod: &Namespace) -> Result<IpAddr> {
        let result = self.cni("ADD", container, &pod.path())?;
        let address = result["ips"][0]["address"]
            .as_str()
            .and_then(|text| text.split('/').next());
        Ok(address.context("a result without address")?.parse()?)
    }
}
