//! Pinned links: tcx and XDP.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use super::{
    super::{
        KernelError, Pins, bpf,
        bpf::{LinkInfo, LinkKind},
        pins::{names, remove, unescape},
    },
    LoadedProgram,
};
use crate::desired::{LinkKey, LinkOwner, Place, Program};

fn path(pins: &Pins, key: &LinkKey) -> PathBuf {
    match &key.owner {
        LinkOwner::Endpoint(id) => pins.endpoint_link(*id, key.program.name()),
        LinkOwner::Netdev(device) => pins.netdev_link(device, key.program.name()),
    }
}

fn keys(pins: &Pins) -> io::Result<Vec<LinkKey>> {
    let mut keys = Vec::new();
    let mut take = |folder: &Path, owner: LinkOwner| -> io::Result<()> {
        for program in names(folder)?.iter().filter_map(|name| Program::from_name(name)) {
            keys.push(LinkKey {
                owner: owner.clone(),
                program,
            });
        }
        Ok(())
    };
    for id in names(&pins.endpoint_links())? {
        if let Ok(number) = id.parse() {
            take(&pins.endpoint_links().join(&id), LinkOwner::Endpoint(number))?;
        }
    }
    for folder in names(&pins.netdev_links())? {
        take(
            &pins.netdev_links().join(&folder),
            LinkOwner::Netdev(unescape(&folder)),
        )?;
    }
    Ok(keys)
}

pub(super) fn list(pins: &Pins) -> Result<Vec<(LinkKey, LinkInfo)>, KernelError> {
    let keys = keys(pins).map_err(|error| KernelError::new("list the pinned links", error))?;
    let mut links = Vec::new();
    for key in keys {
        if let Some(info) = find(pins, &key)? {
            links.push((key, info));
        }
    }
    Ok(links)
}

pub(super) fn find(pins: &Pins, key: &LinkKey) -> Result<Option<LinkInfo>, KernelError> {
    let error = |error| KernelError::new(format!("read the pinned link {key}"), error);
    let Some(link) = open(&path(pins, key)).map_err(error)? else {
        return Ok(None);
    };
    let info = bpf::link_info(&link).map_err(error)?;
    let wanted = match key.program.place() {
        Place::Ingress | Place::Egress => LinkKind::Tcx,
        Place::Driver => LinkKind::Xdp,
    };
    if info.kind != wanted {
        let cause = format!("it is no {wanted:?} link");
        return Err(KernelError::new(format!("read the pinned link {key}"), cause)
            .with_remedy(format!("remove {}", path(pins, key).display())));
    }
    Ok(Some(info))
}

fn open(path: &Path) -> io::Result<Option<OwnedFd>> {
    match bpf::get(path) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Exchanges the program under the link of this key, or pins what `create` makes.
pub(super) fn attach(
    pins: &Pins,
    program: &LoadedProgram,
    key: &LinkKey,
    ifindex: u32,
    create: impl FnOnce() -> io::Result<OwnedFd>,
) -> io::Result<()> {
    let path = path(pins, key);
    if let Some(link) = open(&path)?
        && bpf::link_info(&link)?.ifindex == ifindex
    {
        return bpf::update_link(&link, program);
    }
    if matches!(key.owner, LinkOwner::Netdev(_))
        && let Some(old) = renamed(pins, key, ifindex)?
    {
        let link = bpf::get(&old)?;
        bpf::update_link(&link, program)?;
        pins.replace_link(&link, &path)?;
        return unpin(&old);
    }
    pins.replace_link(&create()?, &path)
}

/// A device that was renamed has our link under its old name: that one is taken over, for two links would be two runs.
fn renamed(pins: &Pins, key: &LinkKey, ifindex: u32) -> io::Result<Option<PathBuf>> {
    for other in keys(pins)? {
        if !matches!(other.owner, LinkOwner::Netdev(_)) || other.program != key.program || other == *key {
            continue;
        }
        let old = path(pins, &other);
        if let Some(link) = open(&old)?
            && bpf::link_info(&link)?.ifindex == ifindex
        {
            return Ok(Some(old));
        }
    }
    Ok(None)
}

fn unpin(path: &Path) -> io::Result<()> {
    remove(path)?;
    if let Some(folder) = path.parent() {
        // Fails while the owner's other program is there.
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

pub(super) fn detach(pins: &Pins, key: &LinkKey) -> io::Result<()> {
    let path = path(pins, key);
    if let Some(link) = open(&path)? {
        match bpf::detach_link(&link) {
            // The device, and with it the attachment, is gone.
            Err(error)
                if !matches!(
                    error.raw_os_error(),
                    Some(libc::ENOLINK | libc::ENODEV | libc::ENOENT)
                ) =>
            {
                return Err(error);
            }
            _ => {}
        }
    }
    unpin(&path)
}
