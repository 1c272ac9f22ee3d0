//! Pods, attached and detached by the real plugin.

use std::{
    io::Write,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
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
        let result = answer(&format!("ADD {container}"), &output)?;
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
        answer(&format!("{verb} {container}"), &output)
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
        answer(&format!("{verb} {container}"), &output)
    }

    /// One run of the plugin that is killed at one of its steps (debug builds).
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

    /// One run of the plugin that stops at one of its steps (debug builds), until it is told to go on.
    pub fn cni_stopped(&self, step: &str, verb: &str, container: &str, netns: &Path) -> Result<Stopped> {
        let mut command = self.cni_command(verb, container, netns);
        command.env("MILLRACE_CNI_FAIL_AT", format!("{step}:stop"));
        let child = self.begin(command, &json!({}))?;
        let process = Pid::from_raw(child.id().try_into()?);
        let stopped = Stopped {
            child: Some(child),
            process,
            what: format!("{verb} {container}"),
        };
        let flags = WaitPidFlag::WUNTRACED;
        let status = waitpid(process, Some(flags))?;
        ensure!(
            matches!(status, WaitStatus::Stopped(..)),
            "{} did not stop at {step}: {status:?}",
            stopped.what
        );
        Ok(stopped)
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
    pub fn feed(&self, command: Command, config: &Value) -> Result<Output> {
        Ok(self.begin(command, config)?.wait_with_output()?)
    }

    fn begin(&self, mut command: Command, config: &Value) -> Result<Child> {
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
        Ok(child)
    }

    /// The network configuration of this node.
    pub fn cni_config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "lab", "type": "millrace-cni",
            "agentSocket": self.socket(), "stateDir": self.folder.join("state"),
        })
    }
}

/// A plugin in the middle of its work. Killed if it is dropped.
pub struct Stopped {
    child: Option<Child>,
    process: Pid,
    what: String,
}

impl Stopped {
    /// To the end of it.
    pub fn go_on(mut self) -> Result<Value> {
        kill(self.process, Signal::SIGCONT)?;
        let child = self.child.take().context("it has gone on")?;
        answer(&self.what, &child.wait_with_output()?)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn answer(what: &str, output: &Output) -> Result<Value> {
    ensure!(
        output.status.success(),
        "millrace-cni {what}: {}",
        complaint(output)
    );
    match output.stdout.is_empty() {
        true => Ok(Value::Null),
        false => Ok(serde_json::from_slice(&output.stdout)?),
    }
}
