//! Tools that no Debian package has, built into `target/tools`.

use std::fmt;

use anyhow::{Context, Result};

use super::Group;
use crate::go::go;
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

/// A program that the recipe of Go programs has.
pub(super) struct GoTool {
    name: &'static str,
    package: &'static str,
    pub(super) group: Group,
    why: &'static str,
}

pub(super) const GO_TOOLS: [GoTool; 2] = [
    GoTool {
        name: "cnitool",
        package: "github.com/containernetworking/cni/cnitool",
        group: Group::Test,
        why: "calls plugins as a container runtime does",
    },
    GoTool {
        name: "helm",
        package: "helm.sh/helm/v4/cmd/helm",
        group: Group::Deploy,
        why: "renders and checks the chart",
    },
];

impl GoTool {
    pub(super) fn is_present(&self) -> bool {
        find(self.name).is_some()
    }

    pub(super) fn install(&self) -> Result<()> {
        step(format_args!("missing: {self}"));
        let bin = workspace::tools().join("bin");
        std::fs::create_dir_all(&bin).with_context(|| format!("creating {}", bin.display()))?;
        run(go()?
            .args(["build", "-ldflags", "-s -w", "-o"])
            .arg(bin.join(self.name))
            .arg(self.package))
    }
}

impl fmt::Display for GoTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.why)
    }
}
