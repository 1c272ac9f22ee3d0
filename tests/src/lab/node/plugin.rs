//! Pods, attached and detached by the real plugin.

use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{super::Pod, Node, binary, complaint, merge};
use crate::netns::Namespace;

impl Node {
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

    /// The same for a pod of Kubernetes, which a runtime describes in `CNI_ARGS`.
    pub fn add_pod_of(&self, name: &str, arguments: &str) -> Result<Pod> {
        let lab = self.lab.file_name().unwrap_or_default().to_string_lossy();
        let container = format!("{lab}-{}-{name}", self.name());
        let namespace = Namespace::create(&container)?;
        let mut command = self.cni_command("ADD", &container, &namespace.path());
        command.env("CNI_ARGS", arguments);
        let output = self.feed(command, &json!({}))?;
        let result = answer("ADD", &container, &output)?;
        Pod::from_result(name, container, namespace, result)
    }

    /// `millrace-cni` DEL, and the end of the pod's namespace.
    pub fn delete_pod(&self, pod: Pod) -> Result<()> {
        self.cni("DEL", &pod.container, &pod.namespace.path(), &json!({}))
            .map(drop)
    }

    /// One run of the plugin. Its JSON answer, or its error.
    pub fn cni(&self, verb: &str, container: &str, netns: &Path, config: &Value) -> Result<Value> {
        let output = self.feed(self.cni_command(verb, container, netns), config)?;
        answer(verb, container, &output)
    }

    /// The same with the plugin of another build.
    pub fn cni_of(
        &self,
        plugin: &Path,
        verb: &str,
        container: &str,
        netns: &Path,
        config: &Value,
    ) -> Result<Value> {
        let output = self.feed(self.plugin_command(plugin, verb, container, netns), config)?;
        answer(verb, container, &output)
    }

    /// One run of the plugin that is killed at one of its steps (debug builds), before it has said anything.
    pub fn cni_killed(&self, step: &str, verb: &str, container: &str, netns: &Path) -> Result<()> {
        let mut command = self.cni_command(verb, container, netns);
        command.env("MILLRACE_CNI_FAIL_AT", format!("{step}:kill"));
        let output = self.feed(command, &json!({}))?;
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
        ensure!(
            signal == Some(9),
            "{verb} was not killed at {step}: {}",
            complaint(&output)
        );
        Ok(())
    }

    /// The plugin's command with its variables, as a runtime sets them.
    pub fn cni_command(&self, verb: &str, container: &str, netns: &Path) -> Command {
        self.plugin_command(
            &binary("MILLRACE_CNI_BIN", "millrace-cni"),
            verb,
            container,
            netns,
        )
    }

    fn plugin_command(&self, plugin: &Path, verb: &str, container: &str, netns: &Path) -> Command {
        let mut command = self.namespace.command(plugin);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", netns)
            .env("CNI_PATH", "/opt/cni/bin");
        command
    }

    /// Runs a command of the plugin with this node's network configuration, and more keys.
    pub fn feed(&self, mut command: Command, config: &Value) -> Result<Output> {
        let mut stdin = self.cni_config();
        merge(&mut stdin, config);
        let mut child = command
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
}

fn answer(verb: &str, container: &str, output: &Output) -> Result<Value> {
    ensure!(
        output.status.success(),
        "millrace-cni {verb} {container}: {}",
        complaint(output)
    );
    match output.stdout.is_empty() {
        true => Ok(Value::Null),
        false => Ok(serde_json::from_slice(&output.stdout)?),
    }
}
