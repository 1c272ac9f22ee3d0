//! A node: a network namespace, the real agent in it, and the pods that the real plugin attaches.

mod agent;
mod plugin;
mod query;

use std::{
    fs::{self, File},
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, Result};
pub use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Families, Plan, Routing, control_plane};
use crate::{cgroup::Cgroup, netns::Namespace, patience};
pub use plugin::Stopped;
pub use query::Drops;

/// How long an agent may take until it is ready, on a machine with nothing to spare.
fn limit() -> Duration {
    patience(Duration::from_secs(60))
}

/// A built binary: what the environment variable names, or what cargo has built beside this program.
pub fn binary(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let own = std::env::current_exe().unwrap_or_default();
    let profile = own.ancestors().find(|folder| folder.join(name).is_file());
    profile.unwrap_or(Path::new("/usr/bin")).join(name)
}

#[derive(Debug)]
pub struct Node {
    pub number: usize,
    pub namespace: Namespace,
    pub families: Families,
    cgroup: Cgroup,
    addresses: [IpAddr; 2],
    second: [IpAddr; 2],
    lab: PathBuf,
    folder: PathBuf,
    agent_arguments: Vec<String>,
    agent: Mutex<Option<Child>>,
}

impl Node {
    pub(super) fn create(plan: &Plan, number: usize, namespace: Namespace, lab: &Path) -> Result<Self> {
        let name = format!("node{number}");
        let node = Self {
            number,
            families: plan.families,
            cgroup: Cgroup::create(namespace.name())?,
            namespace,
            addresses: [true, false].map(|v4| plan.node_address(number, v4)),
            second: [true, false].map(|v4| plan.second_address(number, v4)),
            lab: lab.to_owned(),
            folder: lab.join(&name),
            agent_arguments: plan.agent_arguments.clone(),
            agent: Mutex::new(None),
        };
        for folder in ["manifests", "state", "run"] {
            fs::create_dir_all(node.folder.join(folder))?;
        }
        node.write_config(plan)?;
        Ok(node)
    }

    pub fn name(&self) -> String {
        format!("node{}", self.number)
    }

    /// The folder with this node's configuration, records, sockets and logs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The root of the pins.
    pub fn pins(&self) -> PathBuf {
        self.lab.join("bpf").join(self.name())
    }

    /// What stands for the root of its cgroups.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    pub fn address(&self, v4: bool) -> IpAddr {
        self.addresses[usize::from(!v4)]
    }

    /// Another address of the node, on a device of its own.
    pub fn second_address(&self, v4: bool) -> IpAddr {
        self.second[usize::from(!v4)]
    }

    pub fn config_file(&self) -> PathBuf {
        self.folder.join("config.yaml")
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("run/agent.sock")
    }

    /// Writes the agent's configuration (JSON is YAML).
    pub fn write_config(&self, plan: &Plan) -> Result<()> {
        let mut config = json!({
            "nodeName": self.name(),
            "routing": match plan.routing { Routing::Direct => "direct", Routing::Vxlan => "vxlan" },
            "kubernetes": { "mode": "disabled" },
            // Nodes here share the machine's files, and no runtime looks.
            "cni": { "install": false },
            "families": match plan.families { Families::Dual => "dual", Families::V4 => "v4", Families::V6 => "v6" },
            "paths": {
                "bpffs": self.pins(),
                "cgroup": self.cgroup.path(),
                "manifests": self.folder.join("manifests"),
                "resolvConf": self.folder.join("resolv.conf"),
                "state": self.folder.join("state"),
                "agentSocket": self.socket(),
                "adminSocket": self.folder.join("run/admin.sock"),
            },
        });
        if std::env::var_os("MILLRACE_VM").is_some() {
            merge(&mut config, &json!({ "maps": small() }));
        }
        merge(&mut config, &plan.config);
        fs::write(self.config_file(), format!("{config:#}\n"))?;
        Ok(())
    }

    /// Node objects of the whole lab.
    pub(super) fn write_manifests(&self, plan: &Plan) -> Result<()> {
        let nodes = (0..plan.nodes).map(|number| control_plane::node(plan, number));
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": nodes.collect::<Vec<_>>() });
        self.write_manifest("nodes.yaml", &list)
    }

    /// Puts a manifest in place by rename.
    pub fn write_manifest(&self, name: &str, object: &Value) -> Result<()> {
        let folder = self.folder.join("manifests");
        let aside = self.folder.join(name);
        fs::write(&aside, format!("{object:#}\n"))?;
        fs::rename(aside, folder.join(name)).context("put a manifest in place")
    }

    /// Does `work` as the node's own processes and those of its pods do it: sockets that it makes are the node's. In which
    /// namespace they are made is another matter.
    pub fn with_sockets<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.cgroup.run(work).expect("entering the node's cgroup")
    }

    /// The command line `millrace ARGS` on this node.
    pub fn millrace<const N: usize>(&self, arguments: [&str; N]) -> Command {
        self.program(&binary("MILLRACE_BIN", "millrace"), arguments)
    }

    fn program<const N: usize>(&self, millrace: &Path, arguments: [&str; N]) -> Command {
        let mut command = self.namespace.command(millrace);
        command.args(arguments).arg("--config").arg(self.config_file());
        command
    }

    pub(super) fn keep(&mut self) {
        self.namespace.keep();
        // Dropping a child does not end it.
        let agent = self
            .agent
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        drop(agent.take());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let agent = self
            .agent
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(mut child) = agent.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking()
            && let Ok(mut log) = File::open(self.log_file())
        {
            let mut text = String::new();
            let _ = log.read_to_string(&mut text);
            let end: Vec<&str> = text.lines().rev().take(25).collect();
            eprintln!("--- the end of the log of {}:", self.name());
            end.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Sizes of maps where an emulated processor would have to clear the memory of ordinary ones.
fn small() -> Value {
    json!({
        "peers": 1024, "routes": 1024, "conntrack": 8192, "conntrackNew": 8192, "fragments": 1024, "services": 1024,
        "serviceSlots": 1024, "backends": 1024, "serviceRanges": 1024, "maglev": 1024, "events": 65_536,
    })
}

fn merge(into: &mut Value, more: &Value) {
    if let (Some(into), Some(more)) = (into.as_object_mut(), more.as_object()) {
        into.extend(more.clone());
    }
}

fn complaint(output: &Output) -> String {
    format!(
        "{}, stdout: {}, stderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout).trim(),
        String::from_utf8_lossy(&output.stderr).trim()
    )
}
