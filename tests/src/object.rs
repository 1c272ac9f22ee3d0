//! The BPF object as the agent loads it, one configuration at a time.

use std::path::PathBuf;

use anyhow::{Context, Result};
use aya::programs::{CgroupSockAddr, Program, ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use cni_ebpf::abi::{self, Config};

use crate::signals;

/// The programs of the object.
pub const PROGRAMS: [&str; 4] = ["from_pod", "to_pod", "from_netdev", "to_netdev"];

/// What meets packets before the stack does.
pub const XDP_PROGRAM: &str = "xdp_nodeport";

/// Those of the cgroup root.
pub const SOCKET_PROGRAMS: [&str; 8] = [
    "sock_connect4",
    "sock_connect6",
    "sock_sendmsg4",
    "sock_sendmsg6",
    "sock_recvmsg4",
    "sock_recvmsg6",
    "sock_peername4",
    "sock_peername6",
];

/// The object's path: `MILLRACE_BPF_OBJECT`, or where `cargo xtask build` puts it.
pub fn path() -> PathBuf {
    std::env::var_os("MILLRACE_BPF_OBJECT").map_or_else(
        || {
            PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../target/bpf/millrace.bpf.o"
            ))
        },
        PathBuf::from,
    )
}

pub fn bytes() -> Result<Vec<u8>> {
    let path = path();
    std::fs::read(&path).with_context(|| format!("{}: build it with `cargo xtask build`", path.display()))
}

/// The configuration as aya writes it into the object.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Global(pub Config);
// SAFETY: `Config` is plain integers without padding.
unsafe impl aya::Pod for Global {}

/// Creates the maps, with few entries, and relocates the programs for `config`; nothing is verified yet.
pub fn open(bytes: &[u8], config: &Config) -> Result<Ebpf> {
    open_sized(bytes, config, 4096)
}

/// The same with maps of the product's size, up to `most` entries.
pub fn open_sized(bytes: &[u8], config: &Config, most: u32) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    let global = Global(*config);
    loader.override_global("CONFIG", &global, true);
    for map in abi::MAPS {
        let small = matches!(
            map.map_type,
            abi::MapType::Hash | abi::MapType::LruHash | abi::MapType::Lpm
        );
        if small {
            loader.map_max_entries(map.name, map.entries.min(most));
        }
    }
    loader.load(bytes).context("creating the object's maps")
}

/// Has the kernel verify a program.
pub fn load<'e>(ebpf: &'e mut Ebpf, program: &str) -> Result<&'e mut SchedClassifier> {
    let program: &mut SchedClassifier = find(ebpf, program)?;
    signals::hold_back(|| program.load())?;
    Ok(program)
}

/// The same for one of [`SOCKET_PROGRAMS`].
pub fn load_socket<'e>(ebpf: &'e mut Ebpf, program: &str) -> Result<&'e mut CgroupSockAddr> {
    let program: &mut CgroupSockAddr = find(ebpf, program)?;
    signals::hold_back(|| program.load())?;
    Ok(program)
}

/// The same for [`XDP_PROGRAM`].
pub fn load_xdp<'e>(ebpf: &'e mut Ebpf, program: &str) -> Result<&'e mut Xdp> {
    let program: &mut Xdp = find(ebpf, program)?;
    signals::hold_back(|| program.load())?;
    Ok(program)
}

fn find<'e, P>(ebpf: &'e mut Ebpf, program: &str) -> Result<P>
where
    P: TryFrom<&'e mut Program, Error = ProgramError>,
{
    let found = ebpf.program_mut(program);
    Ok(found
        .with_context(|| format!("no program {program}"))?
        .try_into()?)
}
