//! `cargo xtask build`: the BPF object, then the binaries that embed it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{self, cargo, command, output, run, step};
use crate::toolchain::{TARGET, Toolchain};
use crate::{object, workspace};

/// The BPF programs, for cargo.
pub(crate) const PROGRAMS: [&str; 6] = [
    "--profile",
    "bpf",
    "--package",
    "cni-ebpf",
    "--bin",
    "millrace-bpf",
];
/// The feature of `cni-ebpf` that has the programs log.
const DEBUG_LOG: &str = "debug-log";
/// The programs that `cargo xtask bench` measures with are there.
const BENCH: &str = "bench";
/// The features with which the programs are built beside the release.
pub(crate) const PROGRAM_FEATURES: [&str; 3] = [DEBUG_LOG, BENCH, NEXT_LAYOUT];
/// Connections have another layout, the protocol its next version.
const NEXT_LAYOUT: &str = "next-layout";

/// Build the BPF programs, the agent and the plugin
///
/// The programs are compiled for BPF, stripped of everything but BTF, checked (no undefined symbol, no path that can
/// panic) and left at target/bpf/millrace.bpf.o. The agent embeds that file.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Build {
    /// Optimise the binaries: target/release instead of target/debug (the programs always are)
    #[arg(long)]
    pub(crate) release: bool,
    /// Let the programs log to the agent: costs instructions in every packet, never for production
    #[arg(long)]
    pub(crate) debug_log: bool,
}

impl Build {
    pub(crate) fn run(&self) -> Result<()> {
        self.programs()?;
        self.binaries()
    }

    /// The BPF object alone.
    pub(crate) fn programs(&self) -> Result<()> {
        let features: &[&str] = if self.debug_log { &[DEBUG_LOG] } else { &[] };
        programs(features, &workspace::bpf_object())
    }

    fn binaries(&self) -> Result<()> {
        step("agent and plugin");
        let mut cargo = agent_and_plugin();
        if self.release {
            cargo.arg("--release");
        }
        run(&mut cargo)
    }
}

/// The build of what a user runs, in whichever profile.
fn agent_and_plugin() -> Command {
    let mut cargo = cargo();
    cargo.args([
        "build",
        "--package",
        "cni-agent",
        "--package",
        "cni-plugin",
        "--bins",
    ]);
    cargo
}

/// The binaries of the image, which need nothing of the system that they run on, or others in their place.
pub(crate) struct StaticBinaries {
    pub(crate) agent: PathBuf,
    pub(crate) plugin: PathBuf,
}

impl StaticBinaries {
    /// Compiles them. The BPF object must be there.
    pub(crate) fn build() -> Result<Self> {
        let mut cargo = agent_and_plugin();
        cargo.args(["--profile", "image", "--target", &static_target()]);
        cargo.env("CARGO_ENCODED_RUSTFLAGS", static_flags().join("\x1f"));
        run(&mut cargo)?;
        Ok(Self::built())
    }

    /// Those of the last build.
    pub(crate) fn built() -> Self {
        let folder = workspace::target().join(static_target()).join("image");
        Self {
            agent: folder.join("millrace"),
            plugin: folder.join("millrace-cni"),
        }
    }
}

/// Agent and plugin, optimised, as they run on this machine alone.
pub(crate) fn release() -> Result<StaticBinaries> {
    run(agent_and_plugin().arg("--release"))?;
    Ok(StaticBinaries {
        agent: workspace::host_binary("millrace", true),
        plugin: workspace::host_binary("millrace-cni", true),
    })
}

/// Named so that the flags are not those of build scripts and macros, which cannot be static.
fn static_target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// glibc without its shared parts: it resolves names by `files` and `dns` without them, and nothing here asks for more.
fn static_flags() -> Vec<String> {
    let mut flags = workspace::nameless_paths();
    flags.push("-Ctarget-feature=+crt-static".to_owned());
    flags
}

/// Agent and plugin of a release to come. Cargo leaves them where the real ones belong, so those are built after them.
pub(crate) fn next_release() -> Result<()> {
    let object = workspace::bpf_next_object();
    programs(&[NEXT_LAYOUT], &object)?;
    step("agent and plugin of the release to come");
    let mut cargo = agent_and_plugin();
    cargo.args([
        "--features",
        &format!("cni-agent/{NEXT_LAYOUT},cni-plugin/{NEXT_LAYOUT}"),
    ]);
    run(cargo.env("MILLRACE_BPF_OBJECT", object))?;
    for name in ["millrace", "millrace-cni"] {
        let (from, to) = (workspace::host_binary(name, false), workspace::next_binary(name));
        std::fs::copy(&from, &to)
            .with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}

/// The object with the programs that `cargo xtask bench` measures with.
pub(crate) fn bench_programs() -> Result<()> {
    programs(&[BENCH], &workspace::bpf_bench_object())
}

fn programs(features: &[&str], object: &Path) -> Result<()> {
    let toolchain = Toolchain::find()?;
    step(format_args!("BPF programs ({toolchain})"));
    let mut cargo = toolchain.cargo_build();
    cargo.args(PROGRAMS);
    if !features.is_empty() {
        cargo.arg("--features").arg(features.join(","));
    }
    run(&mut cargo)?;
    let linked = workspace::bpf_target().join(TARGET).join("bpf/millrace-bpf");
    let stripped = object.with_extension("stripped");
    // DWARF is two thirds of the file, and nobody reads it after the linker has made BTF of it.
    let objcopy = objcopy().context("llvm-objcopy is not installed; run `cargo xtask setup`")?;
    output(command(objcopy).arg("--strip-debug").arg(&linked).arg(&stripped))?;
    object::check(&stripped, features.contains(&DEBUG_LOG))?;
    publish(&stripped, object)
}

/// An unchanged object keeps its time stamp, so that the agent is not compiled anew.
fn publish(stripped: &Path, object: &Path) -> Result<()> {
    let new = std::fs::read(stripped).with_context(|| format!("reading {}", stripped.display()))?;
    if std::fs::read(object).is_ok_and(|old| old == new) {
        return Ok(());
    }
    std::fs::rename(stripped, object).with_context(|| format!("renaming to {}", object.display()))
}

pub(crate) fn objcopy() -> Option<PathBuf> {
    let versioned = (20..=24).rev().map(|version| format!("llvm-objcopy-{version}"));
    std::iter::once("llvm-objcopy".to_owned())
        .chain(versioned)
        .find_map(|name| process::find(&name))
}
