//! The command line of a bench program.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use super::{ROUNDS, Report};

#[derive(Debug, Parser)]
pub struct Command {
    /// Rounds to take medians over
    #[arg(long, default_value_t = ROUNDS)]
    pub rounds: usize,
    /// Write the report here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only metrics and parts whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Share of the full number of objects, where there are many
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    pub scale: f64,
    /// Numbers of Services to measure at, where they count
    #[arg(long, value_name = "NUMBER,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    services: Vec<u32>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

impl Command {
    /// Reads the arguments of this process.
    pub fn read() -> Result<Self> {
        let command = Self::parse();
        ensure!(command.rounds > 0, "--rounds: at least one");
        ensure!(
            command.scale > 0.0 && command.scale <= 1.0,
            "--scale: more than 0 and at most 1"
        );
        ensure!(
            nix::unistd::geteuid().is_root(),
            "network namespaces and programs need root; run as root"
        );
        Ok(command)
    }

    pub fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }

    /// The numbers of Services that were asked for, or these.
    pub fn services(&self, usual: &[u32]) -> Vec<u32> {
        match self.services.as_slice() {
            [] => usual.to_vec(),
            asked => asked.to_vec(),
        }
    }

    /// Prints the table, writes the file.
    pub fn publish(&self, report: &Report) -> Result<()> {
        print!("{report}");
        let Some(path) = &self.json else {
            return Ok(());
        };
        let text = serde_json::to_string_pretty(report)?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
    }
}
