//! A real API server for a lab, without kubelets: etcd and kube-apiserver on the fabric, where every node reaches them.

mod keys;
mod objects;

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::Write,
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{Lab, Plan, fabric, folder};
use crate::netns::Namespace;
pub use keys::authority;
pub use objects::{ACCOUNT, ROLE, node, pod};

const PORT: u16 = 6443;
const PATIENCE: Duration = Duration::from_secs(90);

/// The programs of Kubernetes, built from its modules.
pub fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os("MILLRACE_KUBERNETES_PROGRAMS").map(PathBuf::from);
    folder.unwrap_or_else(|| "/usr/local/bin".into()).join(name)
}

/// Whether the programs are here; the layer's runner sees to that.
pub fn is_available() -> bool {
    ["etcd", "kube-apiserver", "kubectl"]
        .iter()
        .all(|name| program(name).is_file())
}

/// etcd and API servers. They end with this value.
#[derive(Debug)]
pub struct ControlPlane {
    namespace: Namespace,
    lab: PathBuf,
    folder: PathBuf,
    /// Where API servers can listen: two that nodes reach, and the loopback, which they do not.
    pub addresses: [IpAddr; 3],
    families: super::Families,
    etcd: Child,
    servers: Vec<(IpAddr, Child)>,
    /// More arguments for API servers that are started from now on.
    pub arguments: Vec<String>,
}

impl ControlPlane {
    /// Starts both on the fabric of a lab.
    pub(super) fn start(lab: &Lab) -> Result<Self> {
        let folder = lab.folder.path().join("control-plane");
        fs::create_dir_all(&folder)?;
        let v4 = lab.plan.families.v4();
        let loopback = if v4 { "127.0.0.1" } else { "::1" };
        let addresses = [
            fabric::outside_router(v4),
            fabric::router(lab.plan.node_address(0, v4)),
            loopback.parse()?,
        ];
        keys::create(&folder, &addresses)?;
        fs::write(folder.join("audit.yaml"), AUDIT)?;
        let namespace = lab.fabric.duplicate()?;
        let mut etcd = namespace.command(program("etcd"));
        etcd.arg(format!("--data-dir={}", folder.join("etcd").display()))
            .args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
            // Nothing here outlives the machine's power.
            .arg("--unsafe-no-fsync");
        let etcd = spawn(etcd, &folder.join("etcd.log"), lab.folder.path())?;
        let mut plane = Self {
            namespace,
            lab: lab.folder.path().to_owned(),
            folder,
            addresses,
            families: lab.plan.families,
            etcd,
            servers: Vec::new(),
            arguments: Vec::new(),
        };
        plane.start_server(plane.addresses[0])?;
        Ok(plane)
    }

    /// Starts an API server, and waits until it is ready.
    pub fn start_server(&mut self, at: IpAddr) -> Result<()> {
        let mut server = self.namespace.command(program("kube-apiserver"));
        server.args(self.server_arguments(at)).args(&self.arguments);
        let log = self
            .folder
            .join(format!("kube-apiserver-{}.log", self.servers.len()));
        let child = spawn(server, &log, &self.lab)?;
        self.servers.push((at, child));
        let deadline = Instant::now() + PATIENCE;
        while !self
            .kubectl_at(at, &["get", "--raw", "/readyz"])
            .output()?
            .status
            .success()
        {
            if let Some((_, child)) = self.servers.last_mut()
                && let Some(status) = child.try_wait()?
            {
                bail!("kube-apiserver ended with {status}:\n{}", tail(&log));
            }
            ensure!(
                Instant::now() < deadline,
                "kube-apiserver is not ready:\n{}",
                tail(&log)
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Ends an API server as a power cut does.
    pub fn kill_server(&mut self, at: IpAddr) -> Result<()> {
        let place = self.servers.iter().position(|(place, _)| *place == at);
        let (_, mut child) = self.servers.remove(place.context("no such API server")?);
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    fn server_arguments(&self, at: IpAddr) -> Vec<String> {
        let key = |file: &str| self.folder.join(file).display().to_string();
        let ranges = self.families.each().map(service_range).collect::<Vec<_>>();
        // What is told of the loopback would lead nobody there.
        let advertised = if at.is_loopback() { self.addresses[0] } else { at };
        vec![
            format!("--etcd-servers={ETCD}"),
            format!("--bind-address={at}"),
            format!("--advertise-address={advertised}"),
            format!("--secure-port={PORT}"),
            format!("--audit-policy-file={}", key("audit.yaml")),
            format!("--audit-log-path={}", key("audit.log")),
            "--audit-log-mode=blocking".to_owned(),
            format!("--service-cluster-ip-range={}", ranges.join(",")),
            "--authorization-mode=RBAC".to_owned(),
            // Nobody makes the ServiceAccounts of pods here.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            format!("--client-ca-file={}", key("ca.crt")),
            format!("--tls-cert-file={}", key("apiserver.crt")),
            format!("--tls-private-key-file={}", key("apiserver.key")),
            format!("--service-account-issuer={ISSUER}"),
            format!("--service-account-key-file={}", key("accounts.pub")),
            format!("--service-account-signing-key-file={}", key("accounts.key")),
        ]
    }

    /// The numbers of etcd's process and of the API servers'.
    pub fn processes(&self) -> impl Iterator<Item = u32> {
        let servers = self.servers.iter().map(|(_, child)| child.id());
        std::iter::once(self.etcd.id()).chain(servers)
    }

    /// The URL of an API server.
    pub fn url(at: IpAddr) -> String {
        format!("https://{}", SocketAddr::new(at, PORT))
    }

    /// What agents have asked: verb and resource with its group (`patch nodes/status`, `watch servicecidrs.networking.k8s.io`).
    pub fn requests(&self) -> Result<BTreeSet<String>> {
        let mut requests = BTreeSet::new();
        for event in self.audited()? {
            let object = |key: &str| event["objectRef"][key].as_str();
            let Some(resource) = object("resource") else {
                continue;
            };
            let group = object("apiGroup")
                .map(|group| format!(".{group}"))
                .unwrap_or_default();
            let part = object("subresource")
                .map(|part| format!("/{part}"))
                .unwrap_or_default();
            requests.insert(format!(
                "{} {resource}{part}{group}",
                event["verb"].as_str().unwrap_or_default()
            ));
        }
        Ok(requests)
    }

    /// The paths of the watches that agents have begun, with what they asked for.
    pub fn watches(&self) -> Result<Vec<String>> {
        let begun = |event: &Value| {
            let good = event["stage"] == "ResponseStarted" && event["responseStatus"]["code"] == 200;
            let path = event["requestURI"].as_str().filter(|_| good)?;
            (event["verb"] == "watch").then(|| path.to_owned())
        };
        Ok(self.audited()?.iter().filter_map(begun).collect())
    }

    /// How often agents have asked for this, with a verb and a resource.
    pub fn times(&self, verb: &str, resource: &str, part: &str) -> Result<usize> {
        let is_it = |event: &&Value| {
            let object = &event["objectRef"];
            event["verb"] == verb && object["resource"] == resource && object["subresource"] == part
        };
        Ok(self.audited()?.iter().filter(is_it).count())
    }

    fn audited(&self) -> Result<Vec<Value>> {
        let log = fs::read_to_string(self.folder.join("audit.log"))?;
        // The last line may be on its way.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    }

    /// The file of the authority that signed the server's certificate.
    pub fn authority(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Puts an object into etcd past all checks, as one of an earlier release may stand there.
    pub fn store(&self, key: &str, object: &Value) -> Result<()> {
        let mut curl = self.namespace.command("curl");
        curl.args(["--silent", "--show-error", "--fail-with-body", "--data"])
            .arg(put(key, object).to_string())
            .arg(format!("{ETCD}/v3/kv/put"));
        let output = curl.output().context("start curl")?;
        ensure!(output.status.success(), "etcd: {output:?}");
        Ok(())
    }

    /// `kubectl ARGS` with all rights.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let at = self.servers.first().map_or(self.addresses[0], |(at, _)| *at);
        let output = self.kubectl_at(at, arguments).output().context("start kubectl")?;
        ensure!(
            output.status.success(),
            "kubectl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    fn kubectl_at(&self, at: IpAddr, arguments: &[&str]) -> Command {
        let mut kubectl = self.namespace.command(program("kubectl"));
        kubectl
            .arg("--kubeconfig")
            .arg(self.folder.join("admin.kubeconfig"))
            .arg(format!("--server={}", Self::url(at)))
            .args(arguments);
        kubectl
    }

    /// Runs kubectl with something on its standard input; its complaint is the error.
    pub fn feed(&self, arguments: &[&str], input: &str) -> Result<()> {
        let at = self.servers.first().map_or(self.addresses[0], |(at, _)| *at);
        let mut child = self
            .kubectl_at(at, arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start kubectl")?;
        // If it ends before it has read all, its own words tell why.
        let _ = child.stdin.take().context("stdin")?.write_all(input.as_bytes());
        let output = child.wait_with_output()?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "kubectl {}: {}",
            arguments.join(" "),
            complaint.trim()
        );
        Ok(())
    }

    /// Creates objects or changes them, all but their status.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let mut objects = objects.to_vec();
        for object in &mut objects {
            object.as_object_mut().map(|fields| fields.remove("status"));
        }
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        self.feed(
            &["apply", "--server-side", "--force-conflicts", "-f", "-"],
            &list.to_string(),
        )
    }

    /// Replaces what is said in an object's status. By a merge of JSON: a server-side apply refuses a Node with two
    /// addresses of a type, which is what a dual-stack node has.
    pub fn set_status(&self, object: &Value) -> Result<()> {
        let text = |pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let status = json!({ "status": object["status"] }).to_string();
        let namespace = match text("/metadata/namespace") {
            "" => "default",
            namespace => namespace,
        };
        self.kubectl(&[
            "patch",
            text("/kind"),
            text("/metadata/name"),
            "--namespace",
            namespace,
            "--subresource=status",
            "--type=merge",
            "--patch",
            &status,
        ])
        .map(drop)
    }

    /// The settings that lead an agent here, with the rights of the agent's account and no others.
    pub fn settings(&self, plan: &Plan) -> Plan {
        let mut plan = plan.clone();
        let section = json!({
            "mode": "enabled", "apiServers": [Self::url(self.addresses[0])],
            "caFile": self.authority(), "tokenFile": self.token_file(),
        });
        if let Some(config) = plan.config.as_object_mut() {
            config.insert("kubernetes".to_owned(), section);
        }
        plan
    }

    pub fn token_file(&self) -> PathBuf {
        self.folder.join("token")
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for child in self
            .servers
            .iter_mut()
            .map(|(_, child)| child)
            .chain([&mut self.etcd])
        {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What the agents ask, and nothing else.
const AUDIT: &str = r#"{"apiVersion":"audit.k8s.io/v1","kind":"Policy","omitStages":["RequestReceived"],
"rules":[{"level":"Metadata","users":["system:serviceaccount:kube-system:millrace"]},{"level":"None"}]}"#;

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// What etcd is asked to keep an object under a name by.
pub(crate) fn put(key: &str, object: &Value) -> Value {
    let [key, value] = [key, &object.to_string()].map(|text| STANDARD.encode(text));
    json!({ "key": key, "value": value })
}

/// In the namespace of the fabric.
pub(crate) const ETCD: &str = "http://127.0.0.1:2379";

/// The range of Service addresses of a family.
pub fn service_range(v4: bool) -> &'static str {
    if v4 { "10.96.0.0/14" } else { "fd00:10:96::/112" }
}

fn spawn(mut command: Command, log: &Path, lab: &Path) -> Result<Child> {
    let file = OpenOptions::new().create(true).append(true).open(log)?;
    let child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    folder::note_process(lab, child.id())?;
    Ok(child)
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
