//! What a node's process 1 does: shows the machine's files with the node's own places among them, and reaps orphans.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname};

use super::files::{OWN, kept};
use super::node_cgroup;
use crate::cluster::place::{NAMESPACES, Place, write};
use crate::cluster::plan::Node;

const NOTHING: Option<&str> = None;
/// Where the machine's files show through and what the node writes is its own.
const LAYERED: [&str; 5] = ["/etc", "/opt", "/usr/libexec", "/var/lib", "/var/log"];
/// Machine-wide settings that the kubelet insists on; it is shown its wishes, and the machine keeps its values.
const SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// The root of the node's cgroups, as `/sys/fs/cgroup` is an ordinary machine's.
pub(crate) const CGROUP: &str = "/run/cgroup";

const BOOT_ID: &str = "kernel/random/boot_id";

/// There once the node can be used.
pub(super) fn ready_file(place: &Place, node: Node) -> PathBuf {
    place.disk(node).join("ready")
}

/// Runs as process 1 in fresh mount, host name, IPC and pid namespaces. Does not return unless it fails.
pub(crate) fn run(place: &Place, node: Node) -> Result<()> {
    sethostname(node.to_string()).context("setting the host's name")?;
    let disk = place.disk(node);
    // Through the node's root it will not be seen any more.
    let ready = ready_file(place, node);
    system(&disk)?;
    settings(&disk)?;
    runtime_folder()?;
    cgroup(place, node)?;
    layers(&disk)?;
    for path in OWN {
        bind(&kept(&disk, path), Path::new(path))?;
    }
    // Containers mount what they are given with the propagation that they ask for.
    propagate("/", MsFlags::MS_SHARED)?;
    write(&ready, "")?;
    reap()
}

/// sysfs shows the network namespace of whoever mounts it, so the node needs its own; cgroups move along.
fn system(disk: &Path) -> Result<()> {
    let cgroups = disk.join("cgroups");
    create(&cgroups)?;
    attach(
        "/sys/fs/cgroup",
        &cgroups,
        NOTHING,
        MsFlags::MS_BIND | MsFlags::MS_REC,
    )?;
    umount2("/sys", MntFlags::MNT_DETACH).context("unmounting /sys")?;
    attach("sysfs", Path::new("/sys"), Some("sysfs"), MsFlags::empty())?;
    let at = Path::new("/sys/fs/cgroup");
    mount(Some(&cgroups), at, NOTHING, MsFlags::MS_MOVE, NOTHING).context("moving the cgroups")?;
    attach("bpf", Path::new("/sys/fs/bpf"), Some("bpf"), MsFlags::empty())?;
    for (kind, at) in [
        ("debugfs", "/sys/kernel/debug"),
        ("tracefs", "/sys/kernel/tracing"),
    ] {
        // Not every kernel has them, and only curious people look.
        let _ = attach(kind, Path::new(at), Some(kind), MsFlags::empty());
    }
    Ok(())
}

fn settings(disk: &Path) -> Result<()> {
    // The machine's own would tell that nothing was ever switched off.
    let boot = fs::read_to_string("/proc/sys/kernel/random/uuid").context("a fresh boot id")?;
    for (name, value) in SETTINGS.into_iter().chain([(BOOT_ID, boot.as_str())]) {
        let setting = Path::new("/proc/sys").join(name);
        // A kernel without keys has no limits for them.
        if setting.exists() {
            let shown = shown_setting(disk, name);
            write(&shown, value)?;
            bind(&shown, &setting)?;
        }
    }
    Ok(())
}

/// The file that is shown in the place of a setting.
fn shown_setting(disk: &Path, name: &str) -> PathBuf {
    disk.join("settings").join(name)
}

pub(super) fn boot_id_file(disk: &Path) -> PathBuf {
    shown_setting(disk, BOOT_ID)
}

fn runtime_folder() -> Result<()> {
    // Copies of other nodes' names would keep their networks alive.
    let _ = umount2(NAMESPACES, MntFlags::MNT_DETACH);
    attach("tmpfs", Path::new("/run"), Some("tmpfs"), MsFlags::empty())?;
    [NAMESPACES, "/run/lock"]
        .into_iter()
        .map(Path::new)
        .try_for_each(create)
}

/// The node's own cgroup under one name on every node.
fn cgroup(place: &Place, node: Node) -> Result<()> {
    match node_cgroup(&place.node(node)) {
        Some(own) => bind(&own, Path::new(CGROUP)),
        None => create(Path::new(CGROUP)),
    }
}

fn layers(disk: &Path) -> Result<()> {
    for path in LAYERED {
        let (upper, work) = (kept(disk, path), kept(&disk.join("work"), path));
        create(&upper)?;
        create(&work)?;
        let options = format!(
            "lowerdir={path},upperdir={},workdir={}",
            upper.display(),
            work.display()
        );
        mount(
            Some("overlay"),
            path,
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .with_context(|| format!("layering the node's files over {path} ({options})"))?;
    }
    Ok(())
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() || !from.exists() {
        create(from)?;
        create(to)?;
    }
    let (flags, what) = (
        MsFlags::MS_BIND,
        format!("{} to {}", from.display(), to.display()),
    );
    mount(Some(from), to, NOTHING, flags, NOTHING).with_context(|| format!("binding {what}"))
}

fn attach(source: &str, at: &Path, kind: Option<&str>, flags: MsFlags) -> Result<()> {
    mount(Some(source), at, kind, flags, NOTHING)
        .with_context(|| format!("mounting {source} at {}", at.display()))
}

fn propagate(at: &str, how: MsFlags) -> Result<()> {
    mount(NOTHING, at, NOTHING, how | MsFlags::MS_REC, NOTHING)
        .with_context(|| format!("setting the propagation of {at}"))
}

fn create(folder: &Path) -> Result<()> {
    match fs::create_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("creating {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Who is left behind in a pid namespace becomes the child of its process 1.
fn reap() -> Result<()> {
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block().context("blocking SIGCHLD")?;
    loop {
        while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        children.wait().context("waiting for children")?;
    }
}
