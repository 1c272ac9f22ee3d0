//! Cgroups of version 2 for threads, which stand for the processes of a host.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};

/// A cgroup below this process's own, gone when this value is.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    pub fn create(name: &str) -> Result<Self> {
        let path = own()?.join(name);
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        let cgroup = Self(path);
        // Threads of one process may be in several of them.
        fs::write(cgroup.0.join("cgroup.type"), "threaded").context("a cgroup of threads")?;
        Ok(cgroup)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Moves the calling thread inside, until the cgroup goes.
    pub fn enter(&self) -> Result<()> {
        fs::write(self.0.join("cgroup.threads"), "0").context("enter the cgroup")
    }

    /// Does `work` inside, on a thread of its own. Sockets that it returns stay its, from wherever they are used; so do
    /// threads that it starts.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| -> Result<T> {
                self.enter()?;
                Ok(work())
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The thread that ends it may be in it.
        if let Some(above) = self.0.parent() {
            let _ = fs::write(above.join("cgroup.threads"), "0");
        }
        remove(&self.0);
    }
}

/// Where this process is in the hierarchy of version 2.
fn own() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = mounts.find(|fields| fields.get(2) == Some(&"cgroup2"));
    let root = mount.context("no cgroup2 is mounted")?[1].to_owned();
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    Ok(Path::new(&root).join(group.context("this process has no cgroup of version 2")?))
}

/// Removes those whose name begins so.
pub fn sweep(prefix: &str) {
    let entries = own().ok().and_then(|own| own.read_dir().ok());
    for entry in entries.into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            remove(&entry.path());
        }
    }
}

fn remove(path: &Path) {
    // Until the last thread is gone it is busy.
    for _ in 0..100 {
        if fs::remove_dir(path).is_ok() || !path.exists() {
            return;
        }
        thread::sleep(std::time::Duration::from_millis(5));
    }
}
