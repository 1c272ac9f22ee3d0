//! What a cluster leaves behind: nothing.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use super::kubernetes::{eventually, xtask};

/// A cluster of its own that is removed in any case.
pub(crate) struct Named(pub(crate) &'static str);

impl Named {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = xtask();
        command.args(["cluster", "--name", self.0]).args(arguments);
        command
    }

    /// What it says.
    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        self.tried(arguments)
            .unwrap_or_else(|complaint| panic!("{complaint}"))
    }

    /// What it says, or why it failed.
    pub(crate) fn tried(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.command(arguments).output().unwrap();
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(format!("{arguments:?}: {complaint}"))
    }

    /// Everything on this machine that bears the name.
    fn traces(&self) -> BTreeSet<String> {
        let mut traces = BTreeSet::new();
        let mark = format!("{}-", self.0);
        let mut look = |folder: PathBuf| {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(&mark) {
                    traces.insert(entry.path().display().to_string());
                }
            }
        };
        look("/run/netns".into());
        look("/sys/fs/cgroup".into());
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            look(hierarchy.path());
        }
        let folder = format!("/target/cluster/{}", self.0);
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("..{folder}"));
        traces.extend(place.exists().then(|| place.display().to_string()));
        traces.extend(mentions(Path::new("/proc/self/mountinfo"), &folder));
        for process in fs::read_dir("/proc").unwrap().flatten() {
            // kubelet, containerd and shims name no cluster; their node's process 1 and the control plane do. The former
            // stand in its cgroup, which could not be removed with them in it.
            traces.extend(mentions(&process.path().join("cmdline"), &folder));
        }
        traces
    }

    /// Neither under its name nor in the machine's own network.
    #[track_caller]
    pub(crate) fn left_nothing(&self, before: &BTreeSet<String>) {
        assert_eq!(self.traces(), BTreeSet::new());
        // Others may be at work there for a moment.
        eventually(|| {
            let now = machine();
            let left: Vec<_> = now.difference(before).collect();
            left.is_empty().then_some(()).ok_or_else(|| format!("{left:#?}"))
        });
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = self.command(&["down"]).output();
    }
}

/// What this machine's own network has: devices, routes, rules of the firewall.
pub(crate) fn machine() -> BTreeSet<String> {
    [
        &["ip", "-brief", "link"][..],
        &["ip", "-4", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "-4", "rule"],
        &["ip", "-6", "rule"],
        &["nft", "--stateless", "list", "ruleset"],
    ]
    .into_iter()
    .flat_map(|words| {
        let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        // How long a router's word still lasts is another number each time.
        let lasting = text
            .lines()
            .map(|line| line.split(" expires ").next().unwrap_or(line));
        let lines = lasting.map(|line| format!("{}: {line}", words.join(" ")));
        lines.collect::<Vec<_>>()
    })
    .collect()
}

fn mentions(file: &Path, what: &str) -> Option<String> {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.contains(what)
        .then(|| format!("{}: {}", file.display(), text.replace('\0', " ")))
}

const SMALL: [&str; 7] = ["up", "--nodes", "1", "--cni", "none", "--proxy", "none"];

#[test]
fn a_cluster_that_is_down_has_left_nothing() {
    let before = machine();
    let cluster = Named("mrgone");
    cluster.run(&SMALL);
    assert!(cluster.traces().len() > 5, "{:?}", cluster.traces());
    cluster.run(&["down"]);
    cluster.left_nothing(&before);
    // Once more is no error.
    cluster.run(&["down"]);
}

#[test]
fn what_a_killed_up_left_is_cleared_by_the_next() {
    let cluster = Named("mrkilled");
    let mut up = cluster
        .command(&SMALL)
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Its node has begun to boot.
    eventually(|| {
        let begun = cluster.traces().iter().any(|trace| trace.contains("mrkilled-n1"));
        begun
            .then_some(())
            .ok_or_else(|| "the node never began".to_owned())
    });
    thread::sleep(Duration::from_millis(200));
    up.kill().unwrap();
    up.wait().unwrap();
    assert_ne!(cluster.traces(), BTreeSet::new());
    cluster.run(&SMALL);
    cluster.run(&["down"]);
    assert_eq!(cluster.traces(), BTreeSet::new());
}
