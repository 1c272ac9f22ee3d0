//! Links of devices, and what can be done with every link.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use super::{Command, call, call_fd, info, raw};

/// Where on a device a program stands. The numbers are the kernel's `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum AttachPoint {
    Ingress = 46,
    Egress = 47,
}

#[repr(C)]
#[derive(Default)]
struct CreateAttr {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    revision: u64,
}

const BPF_F_BEFORE: u32 = 1 << 3;

/// Attaches a program to a device as its first tcx program. The link holds until it is detached, or until neither
/// the descriptor nor a pin of it is left.
pub fn create_link(program: impl AsFd, ifindex: u32, point: AttachPoint) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr {
        program: raw(program.as_fd()),
        ifindex,
        attach_type: point as u32,
        // Before all others: a foreign program behind ours cannot act on a packet that we did not admit.
        flags: BPF_F_BEFORE,
        ..CreateAttr::default()
    };
    // SAFETY: no addresses inside.
    unsafe { call_fd(Command::LinkCreate, &mut attr) }
}

/// How a device runs an XDP program. The numbers are the kernel's `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum XdpMode {
    Generic = 1 << 1,
    Native = 1 << 2,
}

/// Attaches an XDP program to a device that has none.
pub fn create_xdp_link(program: impl AsFd, ifindex: u32, mode: XdpMode) -> io::Result<OwnedFd> {
    const BPF_XDP: u32 = 37;
    let mut attr = CreateAttr {
        program: raw(program.as_fd()),
        ifindex,
        attach_type: BPF_XDP,
        flags: mode as u32,
        ..CreateAttr::default()
    };
    // SAFETY: no addresses inside.
    unsafe { call_fd(Command::LinkCreate, &mut attr) }
}

#[repr(C)]
#[derive(Default)]
struct UpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Exchanges the program under a live link: a packet sees the old one or the new one, never none.
pub fn update_link(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let mut attr = UpdateAttr {
        link: raw(link.as_fd()),
        program: raw(program.as_fd()),
        ..UpdateAttr::default()
    };
    // SAFETY: no addresses inside.
    unsafe { call(Command::LinkUpdate, &mut attr) }.map(drop)
}

#[repr(C)]
struct DetachAttr {
    link: u32,
}

/// Takes the program off its device now, whoever else holds the link.
pub fn detach_link(link: impl AsFd) -> io::Result<()> {
    let mut attr = DetachAttr {
        link: raw(link.as_fd()),
    };
    // SAFETY: no addresses inside.
    unsafe { call(Command::LinkDetach, &mut attr) }.map(drop)
}

/// The head of `struct bpf_link_info`, and the arm of its union for a kind of link.
#[repr(C)]
#[derive(Default)]
pub(super) struct RawLinkInfo<Arm> {
    pub(super) link_type: u32,
    id: u32,
    pub(super) program: u32,
    pad: u32,
    pub(super) arm: Arm,
}

#[repr(C)]
#[derive(Default)]
struct TcxArm {
    ifindex: u32,
    attach_type: u32,
}

/// What a link is one of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkKind {
    Tcx,
    Xdp,
    Other,
}

/// What a link says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkInfo {
    pub kind: LinkKind,
    pub program_id: u32,
    /// 0 once the device is gone.
    pub ifindex: u32,
}

pub fn link_info(link: impl AsFd) -> io::Result<LinkInfo> {
    const BPF_LINK_TYPE_XDP: u32 = 6;
    const BPF_LINK_TYPE_TCX: u32 = 11;
    // SAFETY: plain numbers, as the kernel has them for `tcx`; for `xdp` the first of them.
    let raw = unsafe { info::<RawLinkInfo<TcxArm>>(link.as_fd()) }?;
    Ok(LinkInfo {
        kind: match raw.link_type {
            BPF_LINK_TYPE_TCX => LinkKind::Tcx,
            BPF_LINK_TYPE_XDP => LinkKind::Xdp,
            _ => LinkKind::Other,
        },
        program_id: raw.program,
        ifindex: raw.arm.ifindex,
    })
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    pad: u32,
    program_attach_flags: u64,
    links: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// The numbers of the tcx programs of a device, in the order in which they run. Needs no more than `CAP_NET_ADMIN`.
pub fn attached_programs(ifindex: u32, point: AttachPoint) -> io::Result<Vec<u32>> {
    const MOST: usize = 64;
    let mut programs = [0_u32; MOST];
    let mut attr = QueryAttr {
        ifindex,
        attach_type: point as u32,
        programs: programs.as_mut_ptr() as u64,
        count: MOST as u32,
        ..QueryAttr::default()
    };
    // SAFETY: the kernel writes at most `count` numbers into `programs`.
    unsafe { call(Command::ProgQuery, &mut attr) }?;
    Ok(programs.iter().copied().take(attr.count as usize).collect())
}
