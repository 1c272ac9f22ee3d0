//! `cargo xtask setup`: what this machine lacks, and its installation by package name.

pub(crate) mod apt;
mod from_source;
mod package;

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::process::{cargo, command, find, output, run, step};
use crate::toolchain::{Origin, Toolchain};

use from_source::{GO_TOOLS, GoTool};
pub(crate) use package::Group;
use package::{PACKAGES, Package, Suite};

/// Install what this machine lacks for building and testing, and say what
///
/// Looks for each tool, not for its package, so that a tool from elsewhere counts. Installs with apt-get and therefore
/// needs root; without it the command to run is printed. bpf-linker is built into target/tools.
#[derive(Debug, clap::Args)]
pub(crate) struct Setup {
    /// Only report; the exit status is 0 if nothing is missing
    #[arg(long)]
    check: bool,
    /// What to prepare for; everything if none is named
    #[arg(value_enum, value_name = "GROUP")]
    groups: Vec<Group>,
}

impl Setup {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let groups: &[Group] = if self.groups.is_empty() {
            &Group::ALL
        } else {
            &self.groups
        };
        if !self.check {
            ensure(groups)?;
        }
        let missing = Missing::on_this_machine(groups);
        for package in &missing.packages {
            println!("missing: {package}");
        }
        if let Some(why) = &missing.toolchain {
            println!("missing: {why}");
        }
        for tool in &missing.tools {
            println!("missing: {tool}");
        }
        if let Ok(toolchain) = Toolchain::find() {
            println!("BPF toolchain: {toolchain}");
        }
        if missing.is_empty() {
            println!("nothing is missing");
            return Ok(ExitCode::SUCCESS);
        }
        Ok(ExitCode::FAILURE)
    }
}

/// What a machine lacks.
struct Missing {
    packages: Vec<&'static Package>,
    /// Why there is no BPF toolchain, if one is needed.
    toolchain: Option<String>,
    tools: Vec<&'static GoTool>,
}

impl Missing {
    fn on_this_machine(groups: &[Group]) -> Self {
        let wanted = PACKAGES.iter().filter(|package| groups.contains(&package.group));
        let mut packages: Vec<_> = wanted.filter(|package| !package.is_present()).collect();
        // What several groups need is listed in each.
        let mut names = BTreeSet::new();
        packages.retain(|package| names.insert(package.name));
        let mut toolchain = None;
        if groups.contains(&Group::Build) {
            match Toolchain::find() {
                // It works without some package of the list.
                Ok(_) => packages.retain(|package| !package.only_for_toolchain),
                Err(error) => toolchain = Some(format!("{error:#}")),
            }
            if build::objcopy().is_some() {
                packages.retain(|package| package.name != package::OBJCOPY);
            }
        }
        let wanted = GO_TOOLS.iter().filter(|tool| groups.contains(&tool.group));
        let tools = wanted.filter(|tool| !tool.is_present()).collect();
        Self {
            packages,
            toolchain,
            tools,
        }
    }

    fn is_empty(&self) -> bool {
        self.packages.is_empty() && self.toolchain.is_none() && self.tools.is_empty()
    }
}

/// Installs what these groups lack.
pub(crate) fn ensure(groups: &[Group]) -> Result<()> {
    if groups.is_empty() {
        return Ok(());
    }
    let missing = Missing::on_this_machine(groups);
    install_packages(&missing.packages)?;
    if missing.toolchain.is_some() {
        from_source::bpf_linker()?;
    }
    missing.tools.iter().try_for_each(|tool| tool.install())?;
    if groups.contains(&Group::Lint) {
        install_host_lints()?;
    }
    let still = Missing::on_this_machine(groups);
    if let Some(package) = still.packages.first() {
        bail!("{package}: still missing after its installation");
    }
    still.toolchain.map_or(Ok(()), |why| bail!(why))
}

fn install_packages(packages: &[&Package]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if find("apt-get").is_none() {
        let names: Vec<_> = packages.iter().map(ToString::to_string).collect();
        bail!(
            "this machine has no apt-get; install what has these in your distribution:\n  {}",
            names.join("\n  ")
        );
    }
    for package in packages {
        step(format_args!("missing: {package}"));
    }
    let from = |suite| {
        packages
            .iter()
            .filter(move |package| package.suite == suite)
            .map(|package| package.name)
    };
    apt::install(
        &from(Suite::Release).collect::<Vec<_>>(),
        &from(Suite::Backports).collect::<Vec<_>>(),
    )
}

/// rustfmt and clippy of the host's compiler; rustup's minimal profile has neither.
fn install_host_lints() -> Result<()> {
    for (component, probe, package) in [
        ("rustfmt", "fmt", "rustfmt-web"),
        ("clippy", "clippy", "rust-web-clippy"),
    ] {
        if output(cargo().args([probe, "--version"])).is_ok() {
            continue;
        }
        step(format_args!("missing: {component}, for the lint layer"));
        match std::env::var("RUSTUP_TOOLCHAIN") {
            Ok(toolchain) => {
                run(command("rustup").args(["component", "add", component, "--toolchain", &toolchain]))?;
            }
            Err(_) => apt::install(&[package], &[])?,
        }
    }
    let toolchain = Toolchain::find()?;
    if toolchain.has_clippy() {
        return Ok(());
    }
    step("missing: clippy for the BPF target");
    match toolchain.origin() {
        Origin::Debian => apt::install(&["rust-web-clippy"], &[]),
        Origin::Nightly => {
            let mut add = command("rustup");
            run(add.args(["component", "add", "clippy", "--toolchain", "nightly"]))
                .context("clippy for nightly")
        }
    }
}
