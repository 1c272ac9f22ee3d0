//! `cargo xtask crds`: the definitions of our kinds, written where they are deployed from.

use std::fs;

use anyhow::{Context, Result};

use crate::process::{cargo, output};
use crate::workspace;

/// Write cni-agent/deploy/crds from the kinds' Rust types
///
/// A unit test of the agent compares the two, so that a change of a schema belongs to the change that causes it.
#[derive(Debug, clap::Args)]
pub(crate) struct Crds {
    /// Only print them
    #[arg(long)]
    print: bool,
}

impl Crds {
    pub(crate) fn run(&self) -> Result<()> {
        let text = output(cargo().args(["run", "--quiet", "--package", "cni-agent", "--", "crds"]))?;
        if self.print {
            print!("{text}");
            return Ok(());
        }
        let folder = workspace::root().join("cni-agent/deploy/crds");
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let path = folder.join("millrace.dev.yaml");
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }
}
