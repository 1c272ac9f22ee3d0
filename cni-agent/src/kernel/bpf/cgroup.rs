//! Links of programs to a cgroup. They are exchanged and detached as all links are.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use super::{Command, call_fd, info, link::RawLinkInfo, raw};
use crate::desired::SocketProgram;

/// The kernel's `enum bpf_attach_type`.
const fn attach_type(program: SocketProgram) -> u32 {
    match program {
        SocketProgram::Connect4 => 10,
        SocketProgram::Connect6 => 11,
        SocketProgram::Sendmsg4 => 14,
        SocketProgram::Sendmsg6 => 15,
        SocketProgram::Recvmsg4 => 19,
        SocketProgram::Recvmsg6 => 20,
        SocketProgram::Peername4 => 29,
        SocketProgram::Peername6 => 30,
    }
}

#[repr(C)]
#[derive(Default)]
struct CreateAttr {
    program: u32,
    cgroup: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches a program to a cgroup, beside those that others have there. It runs for all sockets of the cgroup and of those
/// below it.
pub fn create_cgroup_link(
    program: impl AsFd,
    cgroup: impl AsFd,
    as_program: SocketProgram,
) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr {
        program: raw(program.as_fd()),
        cgroup: raw(cgroup.as_fd()),
        attach_type: attach_type(as_program),
        flags: 0,
    };
    // SAFETY: no addresses inside.
    unsafe { call_fd(Command::LinkCreate, &mut attr) }
}

#[repr(C)]
#[derive(Default)]
struct CgroupArm {
    cgroup: u64,
    attach_type: u32,
    tail: u32,
}

/// What a link to a cgroup says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CgroupLinkInfo {
    pub program_id: u32,
    /// The inode of the cgroup's folder; 0 once the cgroup is gone.
    pub cgroup: u64,
}

/// `None` if it is another kind of link.
pub fn cgroup_link_info(link: impl AsFd) -> io::Result<Option<CgroupLinkInfo>> {
    const BPF_LINK_TYPE_CGROUP: u32 = 3;
    // SAFETY: plain numbers, as the kernel has them for `cgroup`, and room behind them.
    let raw = unsafe { info::<RawLinkInfo<CgroupArm>>(link.as_fd()) }?;
    Ok((raw.link_type == BPF_LINK_TYPE_CGROUP).then_some(CgroupLinkInfo {
        program_id: raw.program,
        cgroup: raw.arm.cgroup,
    }))
}
