//! Where everything that outlives the agent is pinned.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use cni_ebpf::abi::MapSpec;

use super::bpf;

/// The root of the pins, below a mounted bpffs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
}

/// The default root.
pub const ROOT: &str = "/sys/fs/bpf/millrace";

impl Default for Pins {
    fn default() -> Self {
        Self::new(ROOT)
    }
}

impl Pins {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// `NAME_vN`, where the programs and the agent find a map. bpffs refuses every name with a dot.
    pub fn map(&self, spec: &MapSpec) -> PathBuf {
        self.maps().join(format!("{}_v{}", spec.name, spec.version))
    }

    /// Where a map waits that is to replace [`Pins::map`] once no program uses that one any more.
    pub fn next_map(&self, spec: &MapSpec) -> PathBuf {
        self.maps().join(format!("{}_v{}_next", spec.name, spec.version))
    }

    /// The description of the layout of a map that is kept.
    pub fn layout(&self, spec: &MapSpec) -> PathBuf {
        self.maps()
            .join(format!("{}_v{}_layout", spec.name, spec.version))
    }

    pub fn endpoint_links(&self) -> PathBuf {
        self.root.join("links/endpoint")
    }

    pub fn netdev_links(&self) -> PathBuf {
        self.root.join("links/netdev")
    }

    pub fn cgroup_links(&self) -> PathBuf {
        self.root.join("links/cgroup")
    }

    /// `links/cgroup/PROGRAM`.
    pub fn cgroup_link(&self, program: &str) -> PathBuf {
        self.cgroup_links().join(program)
    }

    /// Pins a link where another one may be pinned, in one step.
    pub fn replace_link(&self, link: &OwnedFd, path: &Path) -> io::Result<()> {
        // Beside the folders that are listed: an agent that dies here leaves nothing that looks alive.
        let temporary = self.root.join("links/new");
        remove(&temporary)?;
        bpf::pin(link, &temporary)?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::rename(&temporary, path)
    }

    /// `links/endpoint/ID/PROGRAM`.
    pub fn endpoint_link(&self, id: u32, program: &str) -> PathBuf {
        self.endpoint_links().join(id.to_string()).join(program)
    }

    /// `links/netdev/DEVICE/PROGRAM`. Names of VLAN devices have a dot, which is
    /// written as `%2e`.
    pub fn netdev_link(&self, device: &str, program: &str) -> PathBuf {
        self.netdev_links().join(escape(device)).join(program)
    }
}

/// A device's name as the name of a folder of bpffs.
pub fn escape(device: &str) -> String {
    device.replace('%', "%25").replace('.', "%2e")
}

/// Undoes [`escape`].
pub fn unescape(folder: &str) -> String {
    folder.replace("%2e", ".").replace("%25", "%")
}

/// Names in a folder, sorted; a folder that is not there is empty.
pub fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Removes a pin; one that is not there is fine.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether `path` lies on a bpffs.
pub fn on_bpffs(path: &Path) -> io::Result<bool> {
    let existing = path
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let stat = nix::sys::statfs::statfs(existing)?;
    Ok(stat.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_round_trip() {
        for device in ["eth0", "eth0.100", "a%2eb", "bond0.1.2"] {
            assert!(!escape(device).contains('.'), "{device}");
            assert_eq!(unescape(&escape(device)), device);
        }
    }

    #[test]
    fn a_temporary_folder_is_no_bpffs() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!on_bpffs(&folder.path().join("not/there")).unwrap());
    }
}
