//! Real callers of the plugin, and what they bring with them: capabilities and the reference plugins.

mod bandwidth;
mod cnitool;
mod containerd;

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use cni_tests::lab::{Node, binary};
use serde_json::Value;

/// Lays a node's own folders over the machine's; then comes the command. `$1` is the folder.
const OVERLAY: &str = r#"
set -e
mount -t overlay overlay -o "lowerdir=$1/etc:/etc" /etc
mount --bind "$1/opt" /opt
mount --bind "$1/lib" /var/lib
"#;

/// What a runtime on a node finds in the usual places: our plugin in `/opt/cni/bin`, one network list in
/// `/etc/cni/net.d`, and `/var/lib` for its own cache. Nothing of it touches this machine's folders.
struct Host<'n> {
    node: &'n Node,
    folder: PathBuf,
}

impl<'n> Host<'n> {
    fn new(node: &'n Node, list: &Value) -> Self {
        let folder = node.folder().join("host");
        for inside in ["etc/cni/net.d", "opt/cni/bin", "lib"] {
            fs::create_dir_all(folder.join(inside)).unwrap();
        }
        fs::copy(
            binary("MILLRACE_CNI_BIN", "millrace-cni"),
            folder.join("opt/cni/bin/millrace-cni"),
        )
        .unwrap();
        fs::write(
            folder.join("etc/cni/net.d/05-millrace.conflist"),
            list.to_string(),
        )
        .unwrap();
        Self { node, folder }
    }

    /// `unshare` that runs `script` after the folders are laid; the caller adds what becomes its `$2` and on.
    fn shell(&self, options: &[&str], script: &str) -> Command {
        let mut command = self.node.namespace.command("unshare");
        command.arg("--mount").args(options);
        command
            .args(["sh", "-c", &format!("{OVERLAY}\n{script}"), "sh"])
            .arg(&self.folder);
        command
    }

    /// A command that finds these folders.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.shell(&[], r#"shift; exec "$@""#);
        command.arg(program);
        command
    }

    /// What the runtime's library remembers of attachments.
    fn cached_results(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.join("lib/cni/results"))
            .into_iter()
            .flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

/// A plugin's section for this node, for a list.
fn section(node: &Node) -> Value {
    let mut section = node.cni_config();
    let keys = section.as_object_mut().unwrap();
    keys.remove("cniVersion");
    keys.remove("name");
    section
}

/// A program that `cargo xtask setup` installs.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path);
    folders
        .find(|folder| folder.join(program).is_file())
        .map(|folder| folder.join(program))
        .or_else(|| Some(Path::new("/usr/sbin").join(program)).filter(|path| path.is_file()))
}

#[track_caller]
fn succeeded(output: Output) -> String {
    assert!(
        output.status.success(),
        "{}, stdout: {}, stderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until the node's kernel holds exactly what it held before, and no pod's device.
#[track_caller]
pub(crate) fn nothing_is_left(node: &Node, before: &[String]) {
    assert_eq!(node.pod_devices().unwrap(), Vec::<String>::new());
    assert_eq!(node.ask(["endpoints"]).unwrap(), serde_json::json!([]));
    crate::eventually(|| {
        let now = node.intent().unwrap();
        (now != before).then(|| format!("before: {before:#?}\nleft: {now:#?}"))
    });
}
