//! Tools that no Debian package has, built into `target/tools`.

use anyhow::{Context, Result};

use crate::process::{cargo, command, find, run, step};
use crate::toolchain::Origin;
use crate::workspace;

/// Builds the linker for the compiler that is here.
pub(super) fn bpf_linker() -> Result<()> {
    step("missing: bpf-linker (links the BPF programs); compiling it takes some minutes");
    let mut install = match Origin::installed()? {
        Origin::Debian => {
            let mut install = cargo();
            install.env("LLVM_PREFIX", "/usr/lib/llvm-22");
            install.args([
                "install",
                "bpf-linker",
                "--no-default-features",
                "--features",
                "llvm-22",
            ]);
            install
        }
        Origin::Nightly => {
            let mut install = command("rustup");
            install.args(["run", "nightly", "cargo", "install", "bpf-linker"]);
            install
        }
    };
    install
        .args(["--version", "0.13.0", "--locked", "--force", "--root"])
        .arg(workspace::tools());
    run(&mut install)
}

pub(super) const CNITOOL: &str = "cnitool (calls plugins as a container runtime does)";

/// Builds the CNI project's own caller of plugins.
pub(super) fn cnitool() -> Result<()> {
    step(format_args!("missing: {CNITOOL}"));
    let go = find("go").context("go is not installed")?;
    let tools = workspace::tools();
    let mut install = command(go);
    install.args(["install", "github.com/containernetworking/cni/cnitool@v1.3.0"]);
    install
        .env("GOBIN", tools.join("bin"))
        .env("GOPATH", tools.join("go"));
    // Go's cache is read-only by default, and `cargo clean` would fail on it.
    install
        .env("GOCACHE", tools.join("go/cache"))
        .env("GOFLAGS", "-modcacherw");
    run(&mut install)
}
