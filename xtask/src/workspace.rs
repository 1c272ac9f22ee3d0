//! Where things lie in the source tree and in `target`.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process;

/// The root of the source tree that this binary was built from.
pub(crate) fn root() -> &'static Path {
    let member = Path::new(env!("CARGO_MANIFEST_DIR"));
    member.parent().unwrap_or(member)
}

/// Flags for rustc under which no path of this machine gets into what is shipped: neither into panic messages nor into
/// BTF. Every machine then makes the same bytes.
pub(crate) fn nameless_paths() -> Vec<String> {
    let sources = process::cargo_home().map(|home| home.join("registry/src"));
    let registries = sources.and_then(|sources| sources.read_dir().ok());
    let mut places: Vec<_> = registries
        .into_iter()
        .flatten()
        .flatten()
        .map(|registry| (registry.path(), "/registry"))
        .collect();
    places.push((root().to_owned(), "/millrace"));
    let flag = |(from, to): (PathBuf, &str)| format!("--remap-path-prefix={}={to}", from.display());
    places.into_iter().map(flag).collect()
}

pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// The BPF side has a target directory of its own: another compiler and other flags would evict the host's artifacts.
pub(crate) fn bpf_target() -> PathBuf {
    target().join("bpf")
}

/// The finished object: stripped of DWARF, with BTF. `.cargo/config.toml` names the same path.
pub(crate) fn bpf_object() -> PathBuf {
    bpf_target().join("millrace.bpf.o")
}

/// The same programs with those that measure them.
pub(crate) fn bpf_bench_object() -> PathBuf {
    bpf_target().join("millrace-bench.bpf.o")
}

/// The container image, unless somebody wants it elsewhere.
pub(crate) fn image_archive() -> PathBuf {
    target().join("oci/millrace.tar")
}

/// The programs of the release to come that tests upgrade to, and its agent.
pub(crate) fn bpf_next_object() -> PathBuf {
    bpf_target().join("millrace-next.bpf.o")
}

/// A binary of the release to come.
pub(crate) fn next_binary(name: &str) -> PathBuf {
    bpf_target().join(format!("{name}-next"))
}

/// Tools that `setup` builds for this tree alone.
pub(crate) fn tools() -> PathBuf {
    target().join("tools")
}

/// Where cargo puts host binaries.
pub(crate) fn host_binary(name: &str, release: bool) -> PathBuf {
    target()
        .join(if release { "release" } else { "debug" })
        .join(name)
}

/// What became of removing something: that it was not there is as good.
pub(crate) fn removed(result: io::Result<()>, path: &Path) -> Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
