//! The lint layer: each check counts as one test.

use std::process::Command;

use anyhow::Result;

use super::tally::Tally;
use crate::build::{PROGRAM_FEATURES, PROGRAMS};
use crate::process::{self, cargo, step};
use crate::toolchain::Toolchain;
use crate::{abi, advisory, licence, statements, tidy};

type Check = (&'static str, fn() -> Result<()>);

const CHECKS: [Check; 8] = [
    ("rustfmt", formatting),
    ("tidy", tidy::check),
    ("map layout", abi::check),
    ("statements", statements::check),
    ("licences", licence::check),
    ("clippy on the host", host_clippy),
    ("clippy on BPF", bpf_clippy),
    ("documentation", documentation),
];

pub(crate) fn run() -> Tally {
    let mut tally = Tally::default();
    for (name, check) in CHECKS {
        step(name);
        tally += judged(name, check());
    }
    tally += match advisory::check() {
        Ok(result) => judged("advisories", result),
        Err(missing) => Tally::skipped("advisories", missing),
    };
    tally
}

fn judged(name: &str, result: Result<()>) -> Tally {
    match result {
        Ok(()) => Tally::success(),
        Err(error) => {
            eprintln!("{name}: {error:#}");
            Tally::failure(name)
        }
    }
}

fn formatting() -> Result<()> {
    process::run(cargo().args(["fmt", "--all", "--check"]))
}

fn host_clippy() -> Result<()> {
    process::run(deny_warnings(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
    ])))
}

fn bpf_clippy() -> Result<()> {
    let toolchain = Toolchain::find()?;
    // The release, and each build beside it.
    for features in std::iter::once("").chain(PROGRAM_FEATURES) {
        let mut clippy = toolchain.clippy()?;
        clippy.args(PROGRAMS).args(["--features", features]);
        process::run(deny_warnings(&mut clippy))?;
    }
    Ok(())
}

fn documentation() -> Result<()> {
    process::run(
        cargo()
            .args(["doc", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}

fn deny_warnings(clippy: &mut Command) -> &mut Command {
    clippy.args(["--", "-D", "warnings"])
}
