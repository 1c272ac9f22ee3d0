//! Programs on devices: tcx links where the kernel has them (6.6), clsact filters elsewhere, and XDP links.
//!
//! None goes away with the agent. A link is pinned, under its owner's name. A clsact filter has no pin; its
//! owner's name is the filter's name, at a handle and priority that only Millrace uses. So both are found again
//! without any memory, and without walking the kernel's ids, which would need `CAP_SYS_ADMIN`.

mod clsact;
mod pinned;
mod watch;
mod xdp;

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use serde::{Deserialize, Serialize};

use super::{KernelError, Pins, bpf, netlink::Netlink};
use crate::{
    config::Xdp,
    desired::{LinkKey, LinkOwner, LinkState, Place, Program},
};

pub use clsact::{HANDLE, PRIORITY};
pub use watch::Watch;

/// How programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attachment {
    Tcx,
    Clsact,
}

/// Finds out what the kernel can do by doing it: a program that passes every packet on is attached to the loopback
/// device for a moment.
pub fn probe() -> Result<Attachment, KernelError> {
    let error = |error: io::Error| {
        KernelError::new("load a probe program", error).with_remedy(
            "the agent needs CAP_BPF and CAP_NET_ADMIN; with lockdown=confidentiality BPF is off",
        )
    };
    let bystander = bpf::load_bystander().map_err(error)?;
    let loopback = nix::net::if_::if_nametoindex("lo").map_err(|errno| error(errno.into()))?;
    match bpf::create_link(&bystander, loopback, bpf::AttachPoint::Ingress) {
        // The link goes away with the descriptor: it was never pinned.
        Ok(_) => Ok(Attachment::Tcx),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            Err(KernelError::new("attach a probe program", error)
                .with_remedy("the agent needs CAP_NET_ADMIN"))
        }
        Err(_) => Ok(Attachment::Clsact),
    }
}

/// A program that is loaded.
#[derive(Debug)]
pub struct LoadedProgram {
    fd: OwnedFd,
    id: u32,
}

impl LoadedProgram {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let id = bpf::program_id(&fd)?;
        Ok(Self { fd, id })
    }

    pub fn id(&self) -> u32 {
        self.id
    }
}

impl AsFd for LoadedProgram {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The programs that this process has loaded.
pub type Programs = BTreeMap<Program, LoadedProgram>;

fn point(program: Program) -> bpf::AttachPoint {
    if program.ingress() {
        bpf::AttachPoint::Ingress
    } else {
        bpf::AttachPoint::Egress
    }
}

/// All attachments that bear Millrace's mark, live or dead.
pub fn list(
    pins: &Pins,
    netlink: &mut Netlink,
    programs: &Programs,
) -> Result<BTreeMap<LinkKey, LinkState>, KernelError> {
    let current = |program: Program, id: u32| programs.get(&program).is_some_and(|loaded| loaded.id == id);
    let mut links = BTreeMap::new();
    let filters = clsact::list(netlink)
        .map_err(|error| KernelError::new("list the filters of clsact qdiscs", error))?;
    for filter in filters {
        let state = LinkState {
            ifindex: filter.ifindex,
            current: current(filter.key.program, filter.program_id),
        };
        links.insert(filter.key, state);
    }
    // A pinned link wins over a filter of the same name, which is a left-over of an older kernel or setting.
    for (key, info) in pinned::list(pins)? {
        let state = LinkState {
            ifindex: info.ifindex,
            current: info.ifindex != 0 && current(key.program, info.program_id),
        };
        links.insert(key, state);
    }
    Ok(links)
}

/// The attachments of `wanted` as they are. Costs what `wanted` costs.
pub fn find(
    pins: &Pins,
    netlink: &mut Netlink,
    programs: &Programs,
    wanted: &BTreeMap<LinkKey, u32>,
) -> Result<BTreeMap<LinkKey, LinkState>, KernelError> {
    let mut links = BTreeMap::new();
    for (key, ifindex) in wanted {
        let current = |id: u32| programs.get(&key.program).is_some_and(|loaded| loaded.id == id);
        if let Some(info) = pinned::find(pins, key)? {
            let state = LinkState {
                ifindex: info.ifindex,
                current: info.ifindex != 0 && current(info.program_id),
            };
            links.insert(key.clone(), state);
            continue;
        }
        if key.program.place() == Place::Driver {
            continue;
        }
        let filter = clsact::find(netlink, *ifindex, key)
            .map_err(|error| KernelError::new(format!("look for filter {key}"), error))?;
        if let Some(filter) = filter {
            let state = LinkState {
                ifindex: filter.ifindex,
                current: current(filter.program_id),
            };
            links.insert(key.clone(), state);
        }
    }
    Ok(links)
}

/// How programs come onto devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ways {
    pub tc: Attachment,
    pub xdp: Xdp,
}

/// Has `program` run on a device. What already runs there under this name is exchanged in place.
pub fn attach(
    pins: &Pins,
    netlink: &mut Netlink,
    ways: Ways,
    program: &LoadedProgram,
    key: &LinkKey,
    ifindex: u32,
) -> Result<(), KernelError> {
    let error = |error: io::Error| attach_error(key, ifindex, &error);
    if key.program.place() == Place::Driver {
        return xdp::attach(pins, netlink, ways.xdp, program, key, ifindex);
    }
    match ways.tc {
        Attachment::Tcx => {
            let create = || bpf::create_link(program, ifindex, point(key.program));
            pinned::attach(pins, program, key, ifindex, create).map_err(error)?;
            // tcx runs before clsact and ends there, so that for a moment both is the same as one.
            clsact::detach(netlink, ifindex, key).map_err(error)
        }
        Attachment::Clsact => {
            clsact::attach(netlink, program, key, ifindex).map_err(error)?;
            pinned::detach(pins, key).map_err(error)
        }
    }
}

fn attach_error(key: &LinkKey, ifindex: u32, error: &io::Error) -> KernelError {
    let remedy = match error.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO) => "the device is gone",
        Some(libc::EPERM | libc::EACCES) => "the agent needs CAP_BPF and CAP_NET_ADMIN",
        _ => "",
    };
    KernelError::new(format!("attach {key} to device {ifindex}"), error).with_remedy(remedy)
}

/// Takes a program off its device, and removes the pin.
pub fn detach(pins: &Pins, netlink: &mut Netlink, key: &LinkKey) -> Result<(), KernelError> {
    let error = |error: io::Error| KernelError::new(format!("detach {key}"), error);
    pinned::detach(pins, key).map_err(error)?;
    for filter in clsact::list(netlink).map_err(error)? {
        if filter.key == *key {
            clsact::detach(netlink, filter.ifindex, key).map_err(error)?;
        }
    }
    Ok(())
}

/// Devices on which somebody else's program runs before ours: it may take packets away that policy should see.
pub fn overtaken(pins: &Pins) -> Result<Vec<LinkKey>, KernelError> {
    let mut overtaken = Vec::new();
    for (key, info) in pinned::list(pins)? {
        if info.ifindex == 0 || key.program.place() == Place::Driver {
            continue;
        }
        let running = bpf::attached_programs(info.ifindex, point(key.program))
            .map_err(|error| KernelError::new(format!("audit {key}"), error))?;
        if running.first() != Some(&info.program_id) {
            overtaken.push(key);
        }
    }
    Ok(overtaken)
}

/// The inverse of the key's `Display`.
fn parse_key(text: &str) -> Option<LinkKey> {
    let mut parts = text.split('/');
    let (kind, owner, program) = (parts.next()?, parts.next()?, parts.next()?);
    let owner = match kind {
        "endpoint" => LinkOwner::Endpoint(owner.parse().ok()?),
        "netdev" => LinkOwner::Netdev(owner.to_owned()),
        _ => return None,
    };
    parts.next().is_none().then_some(LinkKey {
        owner,
        program: Program::from_name(program)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back_from_their_text() {
        for owner in [LinkOwner::Endpoint(7), LinkOwner::Netdev("eth0.5".into())] {
            for program in Program::ALL {
                let key = LinkKey {
                    owner: owner.clone(),
                    program,
                };
                assert_eq!(parse_key(&key.to_string()), Some(key));
            }
        }
        for text in [
            "",
            "endpoint/x/from_pod",
            "endpoint/1/other",
            "endpoint/1/from_pod/more",
            "pod/1/from_pod",
        ] {
            assert_eq!(parse_key(text), None, "{text}");
        }
    }
}
