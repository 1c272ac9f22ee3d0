//! A real containerd on the node, with containers that `ctr run --cni` attaches.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use cni_tests::{
    lab::{Families, Lab, Node, Plan, Routing, Signal},
    require,
};
use serde_json::{Value, json};

use super::{Host, find, nothing_is_left, section, succeeded};
use crate::{eventually, needs_root};

const BUSYBOX: &str = "/bin/busybox";
const IMAGE: &str = "lab.invalid/busybox:1";

/// `/run` holds the sockets of containerd's shims, under names that cannot be chosen. `$2` is where the node's folder
/// stays visible, `$3` containerd's configuration.
const START: &str = r#"
mount --bind "$2" /mnt
mount -t tmpfs tmpfs /run
mkdir -p "$2"
mount --move /mnt "$2"
exec containerd --config "$3"
"#;

struct Containerd<'n> {
    host: Host<'n>,
    folder: PathBuf,
    /// `unshare`, with which everything inside its process namespace ends.
    process: Child,
    /// containerd itself, as this machine counts.
    pid: u32,
}

impl<'n> Containerd<'n> {
    fn start(node: &'n Node, list: &Value) -> Self {
        let host = Host::new(node, list);
        let folder = node.folder().join("containerd");
        fs::create_dir_all(&folder).unwrap();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            folder.join("root"),
            folder.join("state"),
            folder.join("sock"),
        );
        fs::write(folder.join("config.toml"), config).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let mut command = host.shell(&["--pid", "--fork", "--kill-child", "--mount-proc"], START);
        command.arg(node.folder()).arg(folder.join("config.toml"));
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let process = command.spawn().unwrap();
        node.adopt(&process).unwrap();
        let mut containerd = Self {
            host,
            folder,
            process,
            pid: 0,
        };
        containerd.wait();
        containerd
    }

    fn wait(&mut self) {
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        eventually(|| {
            let child = fs::read_to_string(&children).unwrap_or_default();
            self.pid = child.trim().parse().unwrap_or(0);
            let answers = self.pid != 0 && self.ctr(["version"]).output().unwrap().status.success();
            (!answers).then(|| format!("no answer: {}", self.log()))
        });
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn ctr<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = self.host.node.namespace.command("nsenter");
        command.args(["--target", &self.pid.to_string(), "--mount", "--pid", "ctr"]);
        command.arg("--address").arg(self.folder.join("sock"));
        command.args(["--namespace", "lab"]).args(arguments);
        command
    }

    /// A container that lives as long as this `ctr`, which attaches and detaches it.
    fn run(&self, name: &str, script: &str) -> Command {
        let mut command = self.ctr(["run", "--rm", "--cni", "--snapshotter", "native"]);
        // No cgroup of the container's own: those of a parent would stay behind.
        command
            .args(["--cgroup", "", "--fifo-dir"])
            .arg(self.folder.join("fifo"));
        command.args([IMAGE, name, BUSYBOX, "sh", "-c", script]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- containerd:\n{}", self.log());
        }
    }
}

fn tar(archive: &Path, folder: &Path, files: &[&str]) {
    let mut command = Command::new("tar");
    command
        .args(["--owner=0", "--group=0", "--create", "--file"])
        .arg(archive);
    succeeded(
        command
            .arg("--directory")
            .arg(folder)
            .args(files)
            .output()
            .unwrap(),
    );
}

/// An image of one layer: busybox, and a page for its web server.
fn image(folder: &Path) -> PathBuf {
    let root = folder.join("image");
    for inside in ["bin", "www", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join("root").join(inside)).unwrap();
    }
    fs::copy(BUSYBOX, root.join("root/bin/busybox")).unwrap();
    symlink("busybox", root.join("root/bin/sh")).unwrap();
    fs::write(root.join("root/www/page"), "the server's page\n").unwrap();
    tar(&root.join("layer.tar"), &root.join("root"), &["."]);
    let digest = succeeded(
        Command::new("sha256sum")
            .arg(root.join("layer.tar"))
            .output()
            .unwrap(),
    );
    let digest = digest.split_whitespace().next().unwrap();
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": machine, "os": "linux", "config": { "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
    fs::write(root.join("config.json"), config.to_string()).unwrap();
    fs::write(root.join("manifest.json"), manifest.to_string()).unwrap();
    let archive = folder.join("image.tar");
    tar(&archive, &root, &["config.json", "manifest.json", "layer.tar"]);
    archive
}

/// Pings the server and fetches its page, from each address.
fn client(addresses: &[String]) -> String {
    let mut script = String::from("set -e\n");
    for address in addresses {
        let (ping, host) = match address.contains(':') {
            true => ("ping6", format!("[{address}]")),
            false => ("ping", address.clone()),
        };
        script += &format!("{ping} -c 1 -w 5 {address}\n");
        // The server is on its way.
        script += "tries=0\n";
        script += &format!("until wget -q -O - http://{host}:8080/page; do\n");
        script += "tries=$((tries + 1)); [ $tries -lt 100 ]; sleep 0.1\ndone\n";
    }
    script
}

#[test]
fn containers_of_containerd_talk_to_each_other() {
    needs_root!();
    require!(
        find("containerd").is_some() && find("runc").is_some(),
        "containerd and runc are not installed"
    );
    require!(Path::new(BUSYBOX).exists(), "busybox-static is not installed");
    let lab = Lab::start(Plan::new(Routing::Direct, Families::Dual).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let before = node.intent().unwrap();
    // The library in Debian's containerd knows nothing newer than 1.0.0.
    let list = json!({ "cniVersion": "1.0.0", "name": "lab", "plugins": [section(node)] });
    let containerd = Containerd::start(node, &list);
    let archive = image(&containerd.folder);
    let mut import = containerd.ctr(["images", "import", "--snapshotter", "native"]);
    succeeded(import.arg(&archive).output().unwrap());

    let server = containerd
        .run("server", "exec /bin/busybox httpd -f -p 8080 -h /www")
        .spawn()
        .unwrap();
    let mut addresses = Vec::new();
    eventually(|| {
        let endpoints = node.ask(["endpoints"]).unwrap();
        let list = endpoints[0]["addresses"].as_array().cloned().unwrap_or_default();
        addresses = list
            .iter()
            .filter_map(|ip| ip.as_str().map(str::to_owned))
            .collect();
        (addresses.len() < 2).then(|| format!("the server is not attached: {endpoints}"))
    });
    let said = succeeded(containerd.run("client", &client(&addresses)).output().unwrap());
    assert_eq!(said.matches("1 packets received").count(), 2, "{said}");
    assert_eq!(said.matches("the server's page").count(), 2, "{said}");
    assert_eq!(node.drops().unwrap(), Default::default());

    // The agent does not live to see the last one go: what it is to forget waits for it on the disk.
    node.end_agent(Signal::SIGKILL).unwrap();
    let mut end = containerd.ctr(["task", "kill", "--signal", "SIGKILL", "server"]);
    succeeded(end.output().unwrap());
    server.wait_with_output().unwrap();
    assert_eq!(containerd.host.cached_results(), Vec::<PathBuf>::new());
    let left = succeeded(
        containerd
            .ctr(["containers", "list", "--quiet"])
            .output()
            .unwrap(),
    );
    assert_eq!(left, "");
    node.start_agent().unwrap();
    node.wait_until_ready().unwrap();
    nothing_is_left(node, &before);
}
