//! The folder of a lab: what it holds, and its removal by whoever comes after a crash.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{cgroup, netns};

/// All labs' folders.
const ROOT: &str = "/run/mrlab";
/// All labs' names begin so.
const PREFIX: &str = "mrlab";
const PROCESSES: &str = "processes";
const KEPT: &str = "kept";
const BPFFS: &str = "bpf";

pub(super) fn fresh_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}-{}-{number}", std::process::id())
}

/// A lab's folder with a bpffs in it. Whoever holds the lock is alive.
#[derive(Debug)]
pub(super) struct Folder {
    name: String,
    path: PathBuf,
    _lock: Flock<File>,
    kept: bool,
}

impl Folder {
    pub(super) fn create(name: &str) -> Result<Self> {
        if !name.starts_with(PREFIX) {
            bail!("a lab's name begins with {PREFIX}, {name:?} does not");
        }
        let path = Path::new(ROOT).join(name);
        fs::create_dir_all(ROOT).with_context(|| format!("make {ROOT}; the lab needs root"))?;
        // Between making the folder and taking its lock nobody may think it abandoned.
        let _root = lock(Path::new(ROOT), FlockArg::LockExclusive)?.context("lock the folder of labs")?;
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        let lock = lock(&path, FlockArg::LockExclusiveNonblock)?.context("lock the lab")?;
        let folder = Self {
            name: name.to_owned(),
            path,
            _lock: lock,
            kept: false,
        };
        let bpffs = folder.path.join(BPFFS);
        fs::create_dir(&bpffs)?;
        mount(
            Some("bpf"),
            &bpffs,
            Some("bpf"),
            MsFlags::empty(),
            Some("mode=0700"),
        )
        .with_context(|| format!("mount a bpffs at {}", bpffs.display()))?;
        Ok(folder)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn keep(&mut self) -> Result<()> {
        File::create(self.path.join(KEPT))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.kept {
            remove(&self.path);
        }
    }
}

fn lock(folder: &Path, how: FlockArg) -> Result<Option<Flock<File>>> {
    let file = File::open(folder).with_context(|| format!("open {}", folder.display()))?;
    Ok(Flock::lock(file, how).ok())
}

/// Writes down a process of the lab, so that it can be ended after a crash.
pub(super) fn note_process(lab: &Path, pid: u32) -> Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(lab.join(PROCESSES))?;
    writeln!(file, "{pid} {}", started(pid).unwrap_or_default())?;
    Ok(())
}

/// When a process started, which tells it from another one of the same number.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything; the fields behind its closing bracket count from the third.
    let fields = stat.rsplit_once(')')?.1;
    fields.split_whitespace().nth(19).map(str::to_owned)
}

/// Removes what labs of dead processes have left.
pub(super) fn sweep() {
    let Ok(Some(_root)) = lock(Path::new(ROOT), FlockArg::LockExclusive) else {
        return;
    };
    for path in folders() {
        if path.join(KEPT).exists() {
            continue;
        }
        if let Ok(Some(_lock)) = lock(&path, FlockArg::LockExclusiveNonblock) {
            remove(&path);
        }
    }
}

fn folders() -> Vec<PathBuf> {
    let entries = fs::read_dir(ROOT).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

/// Ends a lab that was [kept](super::Lab::keep). False if there is none of this name.
pub fn bring_down(name: &str) -> bool {
    let path = Path::new(ROOT).join(name);
    let exists = path.is_dir();
    if exists {
        remove(&path);
    }
    exists
}

/// Whatever stands in this machine that bears a lab's name: namespaces and folders. For tests of the lab itself.
pub fn leftovers(lab: &str) -> Vec<String> {
    let mut found: Vec<String> = namespaces(lab)
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    found.extend(
        folders()
            .iter()
            .filter(|path| path.ends_with(lab))
            .map(|path| path.display().to_string()),
    );
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&format!("/{lab}")))
            .map(str::to_owned),
    );
    found
}

fn namespaces(lab: &str) -> Vec<PathBuf> {
    let prefix = format!("{lab}-");
    let entries = fs::read_dir(netns::FOLDER).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect()
}

/// Everything of one lab, as far as it goes.
fn remove(path: &Path) {
    for line in fs::read_to_string(path.join(PROCESSES))
        .unwrap_or_default()
        .lines()
    {
        if let Some((pid, start)) = line.split_once(' ')
            && let Ok(pid) = pid.parse::<u32>()
            && started(pid).is_some_and(|now| now == start)
        {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
    }
    if let Some(name) = path.file_name() {
        for namespace in namespaces(&name.to_string_lossy()) {
            netns::remove(&namespace);
        }
        cgroup::sweep(&format!("{}-", name.to_string_lossy()));
    }
    // With the mount go its pins, and with them the links and maps.
    let _ = umount2(&path.join(BPFFS), MntFlags::MNT_DETACH);
    let _ = fs::remove_dir_all(path);
}
