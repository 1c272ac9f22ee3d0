//! Removing a cluster, also one whose `up` was interrupted: everything is found by the name that it bears.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::daemon::until;
use super::namespace;
use super::place::Place;
use crate::workspace;

const CGROUPS: &str = "/sys/fs/cgroup";

/// Ends every process of the cluster and removes its namespaces, cgroups and files.
pub(crate) fn cluster(place: &Place) -> Result<()> {
    let names: Vec<_> = namespace::names()
        .into_iter()
        .filter(|name| place.owns(name))
        .collect();
    for name in &names {
        end(name)?;
    }
    for name in &names {
        namespace::delete(name)?;
    }
    for folder in cgroup_folders(|name| place.owns(name)) {
        remove_cgroup(&folder)?;
    }
    let folder = place.folder();
    workspace::removed(fs::remove_dir_all(&folder), &folder)
}

/// Ends what runs in a network namespace. A node's process 1 takes its containers along, whatever network they have.
pub(crate) fn end(namespace: &str) -> Result<()> {
    until(&format!("the end of the processes in {namespace}"), || {
        let processes = namespace::processes(namespace).unwrap_or_default();
        for process in &processes {
            // Gone meanwhile is as good.
            let _ = kill(Pid::from_raw(*process), Signal::SIGKILL);
        }
        processes.is_empty()
    })
}

/// Removes what is left of a node's cgroups: each empty one costs the next kubelet seconds.
pub(crate) fn node_cgroups(node: &str) -> Result<()> {
    cgroup_folders(|name| name == node)
        .iter()
        .try_for_each(|folder| remove_cgroup(folder))
}

/// The folders of these names at the top of every hierarchy.
fn cgroup_folders(wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let hierarchies = hierarchies();
    let entries = hierarchies
        .iter()
        .filter_map(|folder| folder.read_dir().ok())
        .flatten()
        .flatten();
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(&wanted))
        .map(|entry| entry.path())
        .collect()
}

/// Where the hierarchies are mounted: one for all, or one for each controller.
pub(crate) fn hierarchies() -> Vec<PathBuf> {
    let top = Path::new(CGROUPS);
    let is_hierarchy = |folder: &PathBuf| folder.join("cgroup.procs").exists();
    if is_hierarchy(&top.to_owned()) {
        return vec![top.to_owned()];
    }
    let entries = top.read_dir().into_iter().flatten().flatten();
    let mut folders: Vec<_> = entries
        .map(|entry| entry.path())
        // Two controllers in one hierarchy are linked under each other's name.
        .filter(|path| is_hierarchy(path) && !path.is_symlink())
        .collect();
    folders.sort();
    folders
}

fn remove_cgroup(folder: &Path) -> Result<()> {
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    // A process that was just killed still counts for a moment.
    until(&format!("removing {}", folder.display()), || {
        fs::remove_dir(folder).is_ok() || !folder.exists()
    })
}
