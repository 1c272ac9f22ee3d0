//! The `bpf(2)` calls that the agent makes itself: batches over maps, pins, links and their exchange.
//!
//! The ELF object is loaded by aya. Links and maps are handled here, because everything that the packet path needs
//! must outlive this process: nothing in this module detaches or deletes when a value is dropped.

mod cgroup;
mod link;
mod map;

use std::{
    ffi::CString,
    fs, io,
    mem::size_of,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

pub use cgroup::{CgroupLinkInfo, cgroup_link_info, create_cgroup_link};
pub use link::{
    AttachPoint, LinkInfo, LinkKind, XdpMode, attached_programs, create_link, create_xdp_link, detach_link,
    link_info, update_link,
};
pub use map::{
    MapInfo, create_map, delete, delete_batch, lookup, lookup_batch, map_info, next_key, possible_cpus,
    update, update_batch,
};

/// Commands of `bpf(2)`.
#[derive(Clone, Copy, Debug)]
#[repr(i64)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ProgLoad = 5,
    ObjPin = 6,
    ObjGet = 7,
    ObjInfo = 15,
    ProgQuery = 16,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    MapDeleteBatch = 27,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// # Safety
/// Every address in `attr` must be valid for what `command` reads and writes there.
unsafe fn call<T>(command: Command, attr: &mut T) -> io::Result<i64> {
    // SAFETY: `attr` is a live value of the size given; the caller vouches for the addresses inside.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as i64,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// # Safety
/// As [`call`], and `command` must be one that returns a new file descriptor.
unsafe fn call_fd<T>(command: Command, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { call(command, attr) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // A descriptor that exists is not negative.
    fd.as_raw_fd().unsigned_abs()
}

#[repr(C)]
#[derive(Default)]
struct ObjAttr {
    path: u64,
    fd: u32,
    flags: u32,
    dir_fd: u32,
    pad: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Opens what is pinned at `path`.
pub fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjAttr {
        path: path.as_ptr() as u64,
        ..ObjAttr::default()
    };
    // SAFETY: the path lives across the call.
    unsafe { call_fd(Command::ObjGet, &mut attr) }
}

/// Pins an object; the folder is made where it is missing.
pub fn pin(fd: impl AsFd, path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let path = c_path(path)?;
    let mut attr = ObjAttr {
        path: path.as_ptr() as u64,
        fd: raw(fd.as_fd()),
        ..ObjAttr::default()
    };
    // SAFETY: the path lives across the call.
    unsafe { call(Command::ObjPin, &mut attr) }.map(drop)
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// # Safety
/// `T` must be plain numbers in the kernel's order for the kind of object that `fd` is.
unsafe fn info<T: Default>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let mut attr = InfoAttr {
        fd: raw(fd),
        len: u32::try_from(size_of::<T>()).map_err(io::Error::other)?,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: the kernel writes at most `len` bytes into `info`, and any bytes are a valid `T` (the caller's promise).
    unsafe { call(Command::ObjInfo, &mut attr) }?;
    Ok(info)
}

#[repr(C)]
#[derive(Default)]
struct RawProgInfo {
    prog_type: u32,
    id: u32,
}

/// The kernel's number of a loaded program.
pub fn program_id(fd: impl AsFd) -> io::Result<u32> {
    // SAFETY: the first two numbers of `struct bpf_prog_info`.
    unsafe { info::<RawProgInfo>(fd.as_fd()) }.map(|info| info.id)
}

#[repr(C)]
#[derive(Default)]
struct ProgLoadAttr {
    prog_type: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// Loads a classifier that hands every packet to the next program: what attachments are probed with.
pub fn load_bystander() -> io::Result<OwnedFd> {
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    // r0 = -1 (TC_ACT_UNSPEC); exit
    let code: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
    let mut attr = ProgLoadAttr {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        instructions: 2,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        name: *b"millrace_probe\0\0",
        ..ProgLoadAttr::default()
    };
    // SAFETY: code and licence live across the call.
    unsafe { call_fd(Command::ProgLoad, &mut attr) }
}
