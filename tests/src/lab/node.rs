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

use super::{Families, Plan, Routing};
use crate::netns::Namespace;
pub use query::Drops;

/// How long an agent may take until it is ready, on a machine with nothing to spare.
const PATIENCE: Duration = Duration::from_secs(60);

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
            namespace,
            families: plan.families,
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
            "families": match plan.families { Families::Dual => "dual", Families::V4 => "v4", Families::V6 => "v6" },
            "paths": {
                "bpffs": self.pins(),
                "manifests": self.folder.join("manifests"),
                "state": self.folder.join("state"),
                "agentSocket": self.socket(),
                "adminSocket": self.folder.join("run/admin.sock"),
            },
        });
        merge(&mut config, &plan.config);
        fs::write(self.config_file(), format!("{config:#}\n"))?;
        Ok(())
    }

    /// Node objects of the whole lab.
    pub(super) fn write_manifests(&self, plan: &Plan) -> Result<()> {
        let nodes = (0..plan.nodes).map(|number| {
            let addresses = plan.families.each().map(|v4| {
                json!({ "type": "InternalIP", "address": plan.node_address(number, v4) })
            });
            json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": { "name": format!("node{number}") },
                "spec": { "podCIDRs": plan.families.each().map(|v4| plan.pod_cidr(number, v4)).collect::<Vec<_>>() },
                "status": { "addresses": addresses.collect::<Vec<_>>() },
            })
        });
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

    /// The command line `millrace ARGS` on this node.
    pub fn millrace<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = self.namespace.command(binary("MILLRACE_BIN", "millrace"));
        command.args(arguments).arg("--config").arg(self.config_file());
        command
    }

<<<<<<< HEAD
    /// What `millrace ARGS --json` says.
    pub fn ask<const N: usize>(&self, arguments: [&str; N]) -> Result<Value> {
        let mut command = self.millrace(arguments);
        let output = command.arg("--json").output().context("start millrace")?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`millrace {}`: {}", arguments.join(" "), complaint(&output)))
    }

    pub fn start_agent(&self) -> Result<()> {
        let log = self.log_file();
        let log = OpenOptions::new().create(true).append(true).open(&log)?;
        let child = self
            .millrace(["agent"])
            .args(&self.agent_arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // What a person types at the terminal is not for it.
            .process_group(0)
            .spawn()
            .context("start the agent")?;
        folder::note_process(&self.lab, child.id())?;
        let mut agent = self
            .agent
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        ensure!(agent.is_none(), "{} has an agent already", self.name());
        *agent = Some(child);
        Ok(())
    }

    /// Ends a process that was started on this node with the lab, also if the lab's own program is killed.
    pub fn adopt(&self, child: &Child) -> Result<()> {
        folder::note_process(&self.lab, child.id())
    }

    /// Ends the agent by a signal, and waits for its end.
    pub fn end_agent(&self, signal: Signal) -> Result<()> {
        let mut agent = self
            .agent
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut child = agent
            .take()
            .with_context(|| format!("{} has no agent", self.name()))?;
        kill(Pid::from_raw(child.id() as i32), signal)?;
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("the agent did not end by {signal}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    pub fn has_agent(&self) -> bool {
        self.agent
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .is_some()
    }

    /// Waits for `/readyz`.
    pub fn wait_until_ready(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.is_ready() {
                return Ok(());
            }
            if let Some(child) = &mut *self
                .agent
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                && let Some(status) = child.try_wait()?
            {
                bail!(
                    "the agent of {} ended with {status}:\n{}",
                    self.name(),
                    self.log()
                );
            }
            ensure!(
                Instant::now() < deadline,
                "the agent of {} is not ready:\n{}",
                self.name(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_ready(&self) -> bool {
        self.http("/readyz")
            .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// GET from the agent's HTTP server, head and body.
    pub fn http(&self, path: &str) -> Result<String> {
        let address = SocketAddr::from(([127, 0, 0, 1], 9765));
        let wait = Duration::from_secs(5);
        let mut stream = self
            .namespace
            .run(|| TcpStream::connect_timeout(&address, wait))?;
        stream.set_read_timeout(Some(wait))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    /// The end of the agent's log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// What was dropped so far, without what every system says on its link of its own accord (multicast listener
    /// reports), which comes at any time.
    pub fn drops(&self) -> Result<Drops> {
        let mut drops = self.all_drops()?;
        drops.retain(|reason, _| !reason.starts_with("link_local/"));
        Ok(drops)
    }

    pub fn all_drops(&self) -> Result<Drops> {
        let answer = self.ask(["drops"])?;
        let dropped = answer["dropped"]
            .as_array()
            .context("`millrace drops --json` has no list `dropped`")?;
        let mut drops = Drops::new();
        for count in dropped {
            let text = |key: &str| count[key].as_str().unwrap_or_default();
            let packets = count["packets"].as_u64().context("packets")?;
            if packets > 0 {
                drops.insert(format!("{}/{}", text("reason"), text("direction")), packets);
            }
        }
        Ok(drops)
    }

    /// The entries of a map, as `millrace dump` shows them, in a fixed order.
    pub fn dump(&self, map: &str) -> Result<Vec<String>> {
        let entries = self.ask(["dump", map])?;
        let mut lines: Vec<String> = entries
            .as_array()
            .context("a list")?
            .iter()
            .map(Value::to_string)
            .collect();
        lines.sort();
        Ok(lines)
    }

    /// Everything that the agent writes into the kernel for pods and ways: map entries, and the names of links.
    pub fn intent(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for map in [
            "endpoints",
            "peers",
            "routes",
            "devices",
            "rule_sets",
            "classes",
            "cidrs",
            "settings",
        ] {
            all.extend(self.dump(map)?.into_iter().map(|entry| format!("{map} {entry}")));
        }
        all.extend(self.links()?);
        Ok(all)
    }

    /// The pinned links.
    pub fn links(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for kind in ["endpoint", "netdev"] {
            for owner in names(&self.pins().join("links").join(kind)) {
                for program in names(&self.pins().join("links").join(kind).join(&owner)) {
                    found.push(format!("{kind}/{owner}/{program}"));
                }
            }
        }
        Ok(found)
    }

    /// Connections that the programs know.
    pub fn connections(&self) -> Result<Vec<Value>> {
        let list = self.ask(["conntrack", "list"])?;
        Ok(list.as_array().context("a list")?.clone())
    }

    /// Devices with the name of a pod's host side.
    pub fn pod_devices(&self) -> Result<Vec<String>> {
        let mut devices = self.namespace.devices()?;
        devices.retain(|name| name.len() == 13 && name.starts_with("mr"));
        Ok(devices)
    }

    // Pods.

    /// Attaches a new pod: a fresh namespace and `millrace-cni` ADD.
    pub fn add_pod(&self, name: &str) -> Result<Pod> {
        self.add_pod_with(name, &json!({}))
    }

    /// The same, with more keys in the network configuration.
    pub fn add_pod_with(&self, name: &str, config: &Value) -> Result<Pod> {
        let lab = self.lab.file_name().unwrap_or_default().to_string_lossy();
        let namespace = Namespace::create(&format!("{lab}-{}-{name}", self.name()))?;
        let container = format!("{lab}-{}-{name}", self.name());
        let result = self.cni("ADD", &container, &namespace.path(), config)?;
        Pod::from_result(name, container, namespace, result)
    }

    /// `millrace-cni` DEL, and the end of the pod's namespace.
    pub fn delete_pod(&self, pod: Pod) -> Result<()> {
        self.cni("DEL", &pod.container, &pod.namespace.path(), &json!({}))
            .map(drop)
    }

    /// One run of the plugin. Its JSON answer, or its error.
    pub fn cni(&self, verb: &str, container: &str, netns: &Path, config: &Value) -> Result<Value> {
        let output = self.cni_output(verb, container, netns, config)?;
        ensure!(
            output.status.success(),
            "millrace-cni {verb} {container}: {}",
            complaint(&output)
        );
        match output.stdout.is_empty() {
            true => Ok(Value::Null),
            false => Ok(serde_json::from_slice(&output.stdout)?),
        }
    }

    fn cni_output(&self, verb: &str, container: &str, netns: &Path, config: &Value) -> Result<Output> {
        let mut stdin = self.cni_config();
        merge(&mut stdin, config);
        let mut child = self
            .namespace
            .command(binary("MILLRACE_CNI_BIN", "millrace-cni"))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", netns)
            .env("CNI_PATH", "/opt/cni/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start millrace-cni")?;
        // The plugin may answer before it has read everything.
        let _ = child
            .stdin
            .take()
            .context("stdin")?
            .write_all(stdin.to_string().as_bytes());
        Ok(child.wait_with_output()?)
    }

    /// The network configuration of this node.
    pub fn cni_config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "lab", "type": "millrace-cni",
            "agentSocket": self.socket(), "stateDir": self.folder.join("state"),
        })
    }

=======
>>>>>>> 22bed5f (The lab's node by concern: process, plugin, questions)
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
