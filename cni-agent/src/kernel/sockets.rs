//! Programs for all sockets of the node, at the root of its cgroups.
//!
//! Their links are pinned and outlive the agent as those of devices do, and are found again by their names.

mod diag;
mod forsaken;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, socket},
    statfs::{CGROUP2_SUPER_MAGIC, fstatfs},
};

use super::{
    KernelError, Pins, bpf,
    links::LoadedProgram,
    pins::{self, remove},
};
use crate::desired::{SocketProgram, SocketPrograms};

pub use forsaken::{Maps, release};

/// The programs for sockets that this process has loaded.
pub type Programs = BTreeMap<SocketProgram, LoadedProgram>;

/// Where version 2 is mounted on machines that still use version 1 beside it.
const BESIDE_VERSION_1: &str = "unified";

/// The folder of the cgroup whose sockets are served: `path` itself, or what is mounted below it beside version 1.
fn open(path: &Path) -> io::Result<File> {
    for folder in [path.to_owned(), path.join(BESIDE_VERSION_1)] {
        let opened = match File::open(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        if fstatfs(&opened)?.filesystem_type() == CGROUP2_SUPER_MAGIC {
            return Ok(opened);
        }
    }
    Err(io::Error::other("there is no cgroup of version 2"))
}

/// The number by which links know the cgroup.
fn number(cgroup: &File) -> io::Result<u64> {
    cgroup.metadata().map(|folder| folder.ino())
}

fn path(pins: &Pins, program: SocketProgram) -> PathBuf {
    pins.cgroup_link(program.name())
}

fn pinned(path: &Path) -> io::Result<Option<OwnedFd>> {
    match bpf::get(path) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The numbers of the programs that run for the cgroup by pinned links.
pub fn running(pins: &Pins, cgroup: &Path) -> io::Result<BTreeMap<SocketProgram, u32>> {
    let mut running = BTreeMap::new();
    if pins::names(&pins.cgroup_links())?.is_empty() {
        return Ok(running);
    }
    let here = number(&open(cgroup)?)?;
    for program in SocketProgram::ALL {
        let link = pinned(&path(pins, program))?;
        let info = link.map(bpf::cgroup_link_info).transpose()?.flatten();
        if let Some(info) = info.filter(|info| info.cgroup == here) {
            running.insert(program, info.program_id);
        }
    }
    Ok(running)
}

/// What is attached, compared with what this process has loaded.
pub fn observe(pins: &Pins, cgroup: &Path, programs: &Programs) -> Result<SocketPrograms, KernelError> {
    let error = |error| KernelError::new("read the pinned links of sockets", error);
    if pins::names(&pins.cgroup_links()).map_err(error)?.is_empty() {
        return Ok(SocketPrograms::Absent);
    }
    // Where there is no such cgroup nothing runs; attaching says why.
    let running = running(pins, cgroup).unwrap_or_default();
    let current = |program: &SocketProgram| {
        let loaded = programs.get(program).map(LoadedProgram::id);
        loaded.is_some() && loaded == running.get(program).copied()
    };
    Ok(if SocketProgram::ALL.iter().all(current) {
        SocketPrograms::Current
    } else {
        SocketPrograms::Partial
    })
}

/// Has the programs run for every socket of the cgroup. What runs there already is exchanged in place.
pub fn attach(pins: &Pins, cgroup: &Path, programs: &Programs) -> Result<(), KernelError> {
    let action = || format!("attach the programs of sockets to {}", cgroup.display());
    let folder = open(cgroup).map_err(|error| {
        KernelError::new(action(), error).with_remedy(
            "mount the host's cgroup2 there, or set paths.cgroup to where it is; without it, set services.socketLb: off",
        )
    })?;
    let here = number(&folder).map_err(|error| KernelError::new(action(), error))?;
    for program in SocketProgram::ALL {
        let loaded = programs
            .get(&program)
            .ok_or_else(|| KernelError::new(action(), "the programs have not been loaded yet"))?;
        attach_one(pins, &folder, here, program, loaded).map_err(|error| {
            let remedy = match error.raw_os_error() {
                Some(libc::EPERM) => {
                    "the agent needs CAP_BPF and CAP_NET_ADMIN, and no other program may be attached there that admits \
                     none beside it (`bpftool cgroup tree`)"
                }
                _ => "",
            };
            KernelError::new(format!("attach {} to {}", program.name(), cgroup.display()), error)
                .with_remedy(remedy)
        })?;
    }
    Ok(())
}

fn attach_one(
    pins: &Pins,
    cgroup: &File,
    here: u64,
    program: SocketProgram,
    loaded: &LoadedProgram,
) -> io::Result<()> {
    let path = path(pins, program);
    let old = pinned(&path)?;
    if let Some(link) = &old
        && bpf::cgroup_link_info(link)?.is_some_and(|info| info.cgroup == here)
    {
        return bpf::update_link(link, loaded);
    }
    let link = bpf::create_cgroup_link(loaded, cgroup, program)?;
    // The pin of the one before, at another cgroup, was all that held it.
    pins.replace_link(&link, &path)
}

/// Takes all of them off. Those that exchange a peer go first.
pub fn detach(pins: &Pins) -> io::Result<bool> {
    let mut found = false;
    for program in SocketProgram::ALL.into_iter().rev() {
        let path = path(pins, program);
        if let Some(link) = pinned(&path)? {
            found = true;
            match bpf::detach_link(&link) {
                // The cgroup is gone, and with it the attachment.
                Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::ENOENT)) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        remove(&path)?;
    }
    let _ = fs::remove_dir(pins.cgroup_links());
    Ok(found)
}

/// What `bpf_get_netns_cookie` says of this thread's network namespace.
pub fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let any = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let (mut cookie, mut length) = (0_u64, 8);
    // SAFETY: a socket that is open, and an answer of at most eight bytes into eight.
    let result = unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&any),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_cgroups_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("cgroup of version 2"), "{error}");
        assert!(open(Path::new("/nowhere")).is_err());
    }
}
