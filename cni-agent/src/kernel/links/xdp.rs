//! XDP programs: which way a device runs one, and whose place it is.

use std::{io, os::fd::OwnedFd};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached},
};

use super::{
    super::{KernelError, Pins, bpf, bpf::XdpMode, netlink::Netlink},
    LoadedProgram, pinned,
};
use crate::{config::Xdp, desired::LinkKey};

/// The ways that the configuration allows, the best first.
fn ways(wish: Xdp) -> &'static [XdpMode] {
    match wish {
        Xdp::Off => &[],
        Xdp::Native => &[XdpMode::Native],
        Xdp::Generic => &[XdpMode::Generic],
        Xdp::Auto => &[XdpMode::Native, XdpMode::Generic],
    }
}

/// How the device runs the program that it has.
fn mode(netlink: &mut Netlink, ifindex: u32) -> io::Result<Option<XdpMode>> {
    let mut query = LinkMessage::default();
    query.header.index = ifindex;
    let Some(RouteNetlinkMessage::NewLink(link)) = netlink.get(RouteNetlinkMessage::GetLink(query))? else {
        return Ok(None);
    };
    let attached = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(parts) => parts.iter().find_map(|part| match part {
            LinkXdp::Attached(attached) => Some(*attached),
            _ => None,
        }),
        _ => None,
    });
    Ok(match attached {
        Some(XdpAttached::Driver) => Some(XdpMode::Native),
        Some(XdpAttached::SocketBuffer) => Some(XdpMode::Generic),
        _ => None,
    })
}

pub(super) fn attach(
    pins: &Pins,
    netlink: &mut Netlink,
    wish: Xdp,
    program: &LoadedProgram,
    key: &LinkKey,
    ifindex: u32,
) -> Result<(), KernelError> {
    let failed = |error: &io::Error| error_of(wish, key, ifindex, error);
    let there = pinned::find(pins, key)?.is_some_and(|link| link.ifindex == ifindex);
    if there
        && !mode(netlink, ifindex)
            .map_err(|error| failed(&error))?
            .is_some_and(|mode| ways(wish).contains(&mode))
    {
        // The way cannot be changed under a link. What it did, the programs behind do meanwhile.
        pinned::detach(pins, key).map_err(|error| failed(&error))?;
    }
    pinned::attach(pins, program, key, ifindex, || {
        create(program, wish, key, ifindex)
    })
    .map_err(|error| failed(&error))
}

fn create(program: &LoadedProgram, wish: Xdp, key: &LinkKey, ifindex: u32) -> io::Result<OwnedFd> {
    let mut last = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
    for mode in ways(wish) {
        match bpf::create_xdp_link(program, ifindex, *mode) {
            Ok(link) => {
                tracing::info!(%key, ?mode, "the program meets this device's packets before the stack does");
                return Ok(link);
            }
            // Somebody else's program is in the way of both.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn error_of(wish: Xdp, key: &LinkKey, ifindex: u32, error: &io::Error) -> KernelError {
    let remedy = match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => {
            "another XDP program is there and is left alone; its packets go on to the programs behind, as without XDP. \
             Take it off the device, or set services.xdp to off"
        }
        Some(libc::EPERM | libc::EACCES) => "the agent needs CAP_BPF and CAP_NET_ADMIN",
        Some(libc::ENODEV | libc::ENXIO) => "the device is gone",
        _ if wish == Xdp::Native => {
            "the driver cannot, or not with this MTU or these queues; its packets take the longer way through the stack. Set \
             services.xdp to auto or off"
        }
        _ => "its packets take the longer way through the stack; set services.xdp to off",
    };
    KernelError::new(format!("attach {key} to device {ifindex}"), error).with_remedy(remedy)
}
