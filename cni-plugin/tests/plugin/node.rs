//! A node and its pods as network namespaces, an agent that does all but write maps, and the real binary.
//!
//! Namespaces are held by descriptors and named through `/proc`, so nothing has to be cleaned up after a panic.

pub(crate) mod agent;
pub(crate) mod delegate;

use crate::not_run::cannot_run;
use agent::Agent;
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::Write,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
};
use tempfile::TempDir;

/// A network namespace of its own.
pub(crate) struct Namespace {
    file: File,
}

impl Namespace {
    pub(crate) fn new() -> Option<Self> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map(|()| File::open("/proc/thread-self/ns/net").unwrap())
        });
        match made.join().unwrap() {
            Ok(file) => Some(Self { file }),
            Err(error) => {
                cannot_run(&format!(
                    "no network namespace can be made ({error}); run as root"
                ));
                None
            }
        }
    }

    /// A path for `CNI_NETNS`.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Does `work` inside, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// `ip` with these arguments, which must succeed.
    pub(crate) fn ip(&self, arguments: &str) {
        let output = self.run(|| {
            Command::new("ip")
                .args(arguments.split_whitespace())
                .output()
                .unwrap()
        });
        assert!(
            output.status.success(),
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// What `ip -j` lists; an empty list where the object does not exist.
    pub(crate) fn list(&self, arguments: &str) -> Vec<Value> {
        let output = self.run(|| {
            Command::new("ip")
                .arg("-j")
                .args(arguments.split_whitespace())
                .output()
                .unwrap()
        });
        let list: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let objects = list.as_array().cloned().unwrap_or_default();
        objects
            .into_iter()
            .filter(|object| object.as_object().is_some_and(|fields| !fields.is_empty()))
            .collect()
    }

    /// The names of all links but the loopback.
    pub(crate) fn links(&self) -> Vec<String> {
        let name = |link: &Value| link["ifname"].as_str().unwrap().to_owned();
        self.list("link show")
            .iter()
            .map(name)
            .filter(|name| name != "lo")
            .collect()
    }
}

/// What the plugin answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) succeeded: bool,
    pub(crate) killed: bool,
    pub(crate) json: Value,
    pub(crate) stderr: String,
}

impl Answer {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let stdout = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        let json = if stdout.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&stdout).unwrap()
        };
        Self {
            succeeded: output.status.success(),
            killed: output.status.signal().is_some(),
            json,
            stderr,
        }
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert!(self.succeeded, "{self:?}");
        self.json
    }

    /// Demands a failure with this code, and returns the whole error.
    #[track_caller]
    pub(crate) fn code(self, code: u32) -> Value {
        assert!(!self.succeeded, "{self:?}");
        assert_eq!(self.json["code"], code, "{self:?}");
        assert!(
            self.json["msg"].is_string() && self.json["cniVersion"].is_string(),
            "{self:?}"
        );
        self.json
    }
}

/// A node with one pod, and an agent that listens.
pub(crate) struct Node {
    pub(crate) host: Namespace,
    pub(crate) pod: Namespace,
    pub(crate) folder: TempDir,
    pub(crate) agent: Option<Agent>,
}

impl Node {
    pub(crate) fn new() -> Option<Self> {
        let mut node = Self::without_agent()?;
        node.start_agent();
        Some(node)
    }

    pub(crate) fn without_agent() -> Option<Self> {
        let (host, pod) = (Namespace::new()?, Namespace::new()?);
        Some(Self {
            host,
            pod,
            folder: tempfile::tempdir().unwrap(),
            agent: None,
        })
    }

    pub(crate) fn start_agent(&mut self) {
        // Its predecessor removes the socket.
        self.agent = None;
        self.agent = Some(Agent::start(&self.socket(), &self.host));
    }

    pub(crate) fn agent(&self) -> &Agent {
        self.agent.as_ref().unwrap()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    pub(crate) fn state_dir(&self) -> &Path {
        self.folder.path()
    }

    /// A configuration for this node, with `extra` keys.
    pub(crate) fn config(&self, extra: Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "millrace-cni",
            "agentSocket": self.socket(), "stateDir": self.state_dir(),
        });
        config
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        config
    }

    /// A call for container `c1` and its interface `eth0` in this node's pod.
    pub(crate) fn call<'a>(&'a self, verb: &'a str) -> Call<'a> {
        Call {
            node: self,
            program: env!("CARGO_BIN_EXE_millrace-cni").into(),
            config: self.config(json!({})),
            variables: vec![
                ("CNI_COMMAND", verb.to_owned()),
                ("CNI_CONTAINERID", "c1".to_owned()),
                ("CNI_IFNAME", "eth0".to_owned()),
                ("CNI_NETNS", self.pod.path()),
                ("CNI_PATH", self.folder.path().display().to_string()),
            ],
        }
    }

    pub(crate) fn add(&self) -> Value {
        self.call("ADD").run().ok()
    }

    /// Demands that no trace of any attachment is on the node, in the agent or in the pod.
    #[track_caller]
    pub(crate) fn assert_empty(&self) {
        assert_eq!(self.host.links(), Vec::<String>::new(), "links on the host");
        assert_eq!(self.pod.links(), Vec::<String>::new(), "links in the pod");
        if let Some(agent) = &self.agent {
            agent.settle();
            assert_eq!(agent.endpoints(), [], "endpoints of the agent");
        }
    }
}

/// One run of the binary, to be varied.
pub(crate) struct Call<'a> {
    node: &'a Node,
    program: PathBuf,
    config: Value,
    variables: Vec<(&'a str, String)>,
}

impl<'a> Call<'a> {
    /// Another plugin instead of ours.
    pub(crate) fn program(mut self, program: PathBuf) -> Self {
        self.program = program;
        self
    }

    pub(crate) fn set(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.variables.retain(|(known, _)| *known != name);
        self.variables.push((name, value.into()));
        self
    }

    pub(crate) fn unset(mut self, name: &str) -> Self {
        self.variables.retain(|(known, _)| *known != name);
        self
    }

    pub(crate) fn with(mut self, extra: Value) -> Self {
        self.config
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        self
    }

    pub(crate) fn without(mut self, key: &str) -> Self {
        self.config.as_object_mut().unwrap().remove(key);
        self
    }

    pub(crate) fn run(self) -> Answer {
        let stdin = self.config.to_string();
        self.run_with(stdin.as_bytes())
    }

    pub(crate) fn run_with(self, stdin: &[u8]) -> Answer {
        let output = self.node.host.run(|| {
            let mut child = Command::new(&self.program)
                .env_clear()
                .envs(self.variables.iter().map(|(name, value)| (*name, value.as_str())))
                .env("PATH", std::env::var_os("PATH").unwrap_or_default())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // The plugin may answer before it has read everything.
            let _ = child.stdin.take().unwrap().write_all(stdin);
            child.wait_with_output().unwrap()
        });
        Answer::from(output)
    }
}
