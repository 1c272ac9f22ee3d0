//! The cluster under test, through the programs that a person would use.

use std::{
    ffi::OsStr,
    io::Write,
    process::{Command, Output, Stdio},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::leftovers::Named;

pub(crate) const TOOLBOX: &str = "localhost/toolbox:1";
const PATIENCE: Duration = Duration::from_secs(120);

/// Tests share the cluster; one that pulls a node's plug has it alone.
static TURN: RwLock<()> = RwLock::new(());

/// `cargo xtask`, as it was built.
pub(crate) fn xtask() -> Command {
    Command::new(std::env::var_os("MILLRACE_XTASK").expect("run by `cargo xtask test cluster`"))
}

/// The cluster, and a namespace in it that is gone when this value is.
pub(crate) struct Kubernetes<Turn> {
    pub(crate) name: String,
    pub(crate) namespace: &'static str,
    _turn: Turn,
}

impl Kubernetes<RwLockReadGuard<'_, ()>> {
    pub(crate) fn shared(namespace: &'static str) -> Self {
        let turn = TURN.read().unwrap_or_else(PoisonError::into_inner);
        Self::new(common(), namespace, turn)
    }
}

impl Kubernetes<RwLockWriteGuard<'_, ()>> {
    pub(crate) fn alone(namespace: &'static str) -> Self {
        let turn = TURN.write().unwrap_or_else(PoisonError::into_inner);
        Self::new(common(), namespace, turn)
    }
}

/// The cluster that the tests share.
fn common() -> String {
    std::env::var("MILLRACE_CLUSTER").expect("run by `cargo xtask test cluster`")
}

impl Kubernetes<()> {
    /// In a cluster of the test's own.
    pub(crate) fn of(cluster: &Named, namespace: &'static str) -> Self {
        Self::new(cluster.0.to_owned(), namespace, ())
    }
}

impl<Turn> Kubernetes<Turn> {
    fn new(name: String, namespace: &'static str, turn: Turn) -> Self {
        let cluster = Self {
            name,
            namespace,
            _turn: turn,
        };
        cluster.kubectl(["create", "namespace", namespace]);
        cluster
    }

    /// A command of `cargo xtask cluster`.
    pub(crate) fn cluster<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> String {
        said(self.command().args(arguments))
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = xtask();
        command.args(["cluster", "--name", &self.name]);
        command
    }

    /// Standard output of kubectl, which must succeed.
    pub(crate) fn kubectl<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> String {
        said(&mut self.kubectl_command(arguments))
    }

    pub(crate) fn kubectl_command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.command();
        command
            .args(["kubectl", "--namespace", self.namespace])
            .args(arguments);
        command
    }

    pub(crate) fn apply(&self, object: &Value) {
        let mut child = self
            .kubectl_command(["apply", "--filename=-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let text = object.to_string();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "kubectl apply: {text}");
    }

    pub(crate) fn rolled_out(&self, what: &str) {
        self.kubectl(["rollout", "status", what, "--timeout=120s"]);
    }

    pub(crate) fn nodes(&self) -> Vec<String> {
        self.list("nodes")
            .iter()
            .map(|node| text(&node["metadata"]["name"]))
            .collect()
    }

    /// Those that stay, sorted by their nodes.
    pub(crate) fn pods(&self, app: &str) -> Vec<Pod> {
        self.pods_in(self.namespace, &format!("app={app}"))
    }

    pub(crate) fn pods_in(&self, namespace: &str, selector: &str) -> Vec<Pod> {
        let namespace = format!("--namespace={namespace}");
        let text = self.kubectl(["get", "pods", &namespace, "--selector", selector, "-ojson"]);
        let list: Value = serde_json::from_str(&text).unwrap();
        let all = list["items"].as_array().unwrap().iter();
        let stay = all.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let mut pods: Vec<_> = stay.map(Pod::from).collect();
        pods.sort_by(|one, other| one.node.cmp(&other.node));
        pods
    }

    fn list(&self, kind: &str) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.kubectl(["get", kind, "-ojson"])).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    /// Runs a command in a pod until it succeeds; gives what it said.
    #[track_caller]
    pub(crate) fn eventually_in(&self, pod: &str, command: &[&str]) -> String {
        eventually(|| self.once_in(pod, command))
    }

    /// Runs a command in a pod; gives what it said, or why it failed.
    fn once_in(&self, pod: &str, command: &[&str]) -> Result<String, String> {
        let arguments = [&["exec", pod, "--"], command].concat();
        let output = self.kubectl_command(&arguments).output().unwrap();
        if output.status.success() {
            Ok(trimmed(&output.stdout))
        } else {
            Err(format!("{pod}: {command:?}: {}", trimmed(&output.stderr)))
        }
    }

    /// Fetches a page from a pod.
    #[track_caller]
    pub(crate) fn fetch(&self, pod: &str, url: &str) -> String {
        eventually(|| self.fetch_once(pod, url))
    }

    /// The same without a second try.
    pub(crate) fn fetch_once(&self, pod: &str, url: &str) -> Result<String, String> {
        self.once_in(pod, &["curl", "--silent", "--show-error", "--max-time", "4", url])
    }
}

impl<Turn> Drop for Kubernetes<Turn> {
    fn drop(&mut self) {
        // After a failure there is more to be seen in what is left than in whether it could be removed.
        let _ = self
            .kubectl_command(["delete", "namespace", self.namespace, "--wait=false"])
            .output();
    }
}

#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) node: String,
    pub(crate) addresses: Vec<String>,
}

impl From<&Value> for Pod {
    fn from(pod: &Value) -> Self {
        let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
        Self {
            name: text(&pod["metadata"]["name"]),
            uid: text(&pod["metadata"]["uid"]),
            node: text(&pod["spec"]["nodeName"]),
            addresses: addresses.map(|address| text(&address["ip"])).collect(),
        }
    }
}

/// An object that keeps one pod on every node, or some anywhere.
pub(crate) fn workload(kind: &str, app: &str, more: Value, container: Value) -> Value {
    let mut pod = json!({
        "terminationGracePeriodSeconds": 1,
        "topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": app}},
        }],
        "containers": [merged(json!({"name": app, "image": TOOLBOX, "imagePullPolicy": "Never"}), container)],
    });
    pod = merged(pod, more);
    let mut spec = json!({
        "selector": {"matchLabels": {"app": app}},
        "template": {"metadata": {"labels": {"app": app}}, "spec": pod},
    });
    if kind == "Deployment" {
        spec["replicas"] = json!(2);
    }
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": app}, "spec": spec})
}

fn merged(mut base: Value, more: Value) -> Value {
    base.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    base
}

/// A web server that says the name of its pod, on two nodes, behind a Service.
pub(crate) fn web<Turn>(cluster: &Kubernetes<Turn>) {
    let container = json!({
        "command": ["sh", "-c", "mkdir /www; hostname > /www/index.html; echo serving on $(hostname); \
                                 exec busybox httpd -f -p 80 -h /www"],
        "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1},
    });
    cluster.apply(&workload("Deployment", "web", json!({}), container));
    cluster.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80}]},
    }));
}

/// Waits until it works; its last words are the failure.
#[track_caller]
pub(crate) fn eventually<T>(mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(words) => assert!(Instant::now() < deadline, "{words}"),
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Standard output of a command that must succeed.
pub(crate) fn said(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {}", trimmed(&stderr));
    trimmed(&stdout)
}

fn trimmed(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
