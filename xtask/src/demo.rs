//! `cargo xtask demo`: the main job on this machine, shown step by step.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::build::Build;
use crate::process::{self, cargo, shown, step};
use crate::setup::{self, Group};
use crate::test::environment;

/// Show pods on two nodes talking to each other, to the nodes and to the outside
///
/// Installs what this machine lacks, builds everything, brings up two nodes as network namespaces with the real agent and
/// the real CNI plugin, and shows traffic over direct routing and over VXLAN, in IPv4 and IPv6, a dropped packet with its
/// reason, and a restart of the agent under traffic. Needs root. Leaves nothing behind unless asked to.
#[derive(Debug, clap::Args)]
pub(crate) struct Demo {
    /// Leave the lab up, and print how to use it
    #[arg(long)]
    keep: bool,
    /// Remove the lab that an earlier --keep left
    #[arg(long, conflicts_with = "keep")]
    down: bool,
}

impl Demo {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        if !self.down {
            setup::ensure(&[Group::Build, Group::Test])?;
            Build::default().run()?;
            step("the lab");
        }
        let mut demo = cargo();
        demo.args(["run", "--quiet", "--package", "cni-tests", "--bin", "demo", "--"]);
        demo.args(self.keep.then_some("--keep"));
        demo.args(self.down.then_some("--down"));
        demo.envs(environment()).env("PATH", process::path());
        let status = demo
            .status()
            .with_context(|| format!("cannot start `{}`", shown(&demo)))?;
        Ok(if status.success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}
