//! `cargo xtask`: the one door to building, testing and measuring Millrace, for people and for CI.
//!
//! One module a command. A command that others need as a step offers a function beside its `run`; none of them runs a
//! shell, and none knows a path that `workspace` does not give it.

mod abi;
mod advisory;
mod bench;
mod build;
mod cluster;
mod crds;
mod demo;
mod go;
mod image;
mod libraries;
mod licence;
mod manifests;
mod object;
mod oci;
mod process;
mod setup;
mod statements;
mod test;
mod tidy;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

/// Build, test and measure Millrace
///
/// On a fresh Debian 12 machine with cargo, `cargo xtask test` as root installs what is missing, builds everything and
/// runs every test. Progress goes to standard error, results to standard output.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    max_term_width = 110,
    disable_help_subcommand = true
)]
enum Cli {
    Setup(setup::Setup),
    Build(build::Build),
    Image(image::Image),
    Manifests(manifests::Manifests),
    Demo(demo::Demo),
    Test(test::Test),
    Bench(bench::Bench),
    Cluster(cluster::Cluster),
    #[command(subcommand)]
    Vm(vm::Vm),
    Tidy(tidy::Tidy),
    Abi(abi::Abi),
    Crds(crds::Crds),
    Statements(statements::Statements),
}

fn main() -> ExitCode {
    if vm::is_guest() {
        return vm::init();
    }
    let done = match Cli::parse() {
        Cli::Setup(setup) => setup.run(),
        Cli::Build(build) => build.run().map(|()| ExitCode::SUCCESS),
        Cli::Image(image) => image.run().map(|()| ExitCode::SUCCESS),
        Cli::Manifests(manifests) => manifests.run().map(|()| ExitCode::SUCCESS),
        Cli::Demo(demo) => demo.run(),
        Cli::Test(test) => test.run(),
        Cli::Bench(bench) => bench.run().map(|()| ExitCode::SUCCESS),
        Cli::Cluster(cluster) => cluster.run(),
        Cli::Vm(vm) => vm.run(),
        Cli::Tidy(tidy) => tidy.run().map(|()| ExitCode::SUCCESS),
        Cli::Abi(abi) => abi.run().map(|()| ExitCode::SUCCESS),
        Cli::Crds(crds) => crds.run().map(|()| ExitCode::SUCCESS),
        Cli::Statements(statements) => statements.run().map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
