//! `cargo xtask vm`: layers inside virtual machines, on the kernels that Millrace supports.
//!
//! A machine has no disk and no distribution: Debian's kernel, and an initramfs with the test program, what it links, its
//! data at the paths it has here, and this binary as `init` (`guest`).

mod cpio;
mod guest;
mod image;
mod kernel;
mod machine;
mod modules;
mod record;

use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, available_parallelism};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};

use crate::build::Build;
use crate::process::step;
use crate::setup::{self, Group};
use crate::test::{Layer, Tally};

use guest::{After, Job};
pub(crate) use guest::{init, is_guest};
use kernel::{Flavour, Kernel, Series};
use machine::Machine;

/// Seconds. Verifying everything takes one minute under emulation, several on a machine that has other work.
const DEFAULT_LIMIT: u64 = 600;

/// Run layers on other kernels, in virtual machines
///
/// Debian's kernels are fetched by package name into target/vm and never installed. The processor is emulated, so it works
/// where virtualisation does not; a machine is up in some ten seconds.
#[derive(Debug, Subcommand)]
#[command(after_long_help = "\
Examples:
  cargo xtask vm run --kernel 6.1 verifier
          Load every program in every configuration on Debian 12's kernel
  cargo xtask vm run --kernel 6.1 netns -- restart::
          Some tests of the netns layer; without a filter, those that suit a machine
  cargo xtask vm debug --kernel 6.12 netns -- cni_02
          Some tests with the kernel's messages, then a shell in the same machine")]
pub(crate) enum Vm {
    /// Show the supported kernels and which of Debian's packages each one is
    List,
    /// Run a layer's tests inside a machine; the exit status is theirs
    Run(Run),
    /// A shell inside a machine; leave it with `exit`
    Shell(On),
    /// Record how many instructions each supported kernel, and this one, verifies; the verifier layer compares with it
    Record,
    /// Run a layer's tests with the kernel's messages shown, then a shell in the same machine
    Debug(Run),
}

#[derive(Debug, Args)]
pub(crate) struct On {
    /// A series such as 6.1, or `newest` for the newest that Debian has
    #[arg(long, default_value = "newest")]
    kernel: Series,
    #[command(flatten)]
    devices: Devices,
}

#[derive(Clone, Copy, Debug, Args)]
struct Devices {
    /// Take Debian's kernel with all drivers instead of that for clouds, and give the machine two igb devices
    #[arg(long)]
    full: bool,
}

impl Devices {
    fn flavour(self) -> Flavour {
        if self.full { Flavour::Full } else { Flavour::Cloud }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Series such as 6.1, or `newest`; repeatable; all supported ones if not given
    #[arg(long = "kernel", value_name = "SERIES")]
    kernels: Vec<Series>,
    #[command(flatten)]
    devices: Devices,
    /// Which tests
    #[arg(default_value = "verifier", value_parser = in_machines())]
    layer: Layer,
    /// End a machine that has not finished after this many seconds
    #[arg(long, default_value_t = DEFAULT_LIMIT, value_name = "SECONDS")]
    timeout: u64,
    /// Passed to the test program
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<String>,
}

impl Run {
    /// What was given, or for the netns layer those tests that suit a machine.
    fn arguments(&self) -> Vec<String> {
        match self.layer {
            Layer::Netns if self.arguments.is_empty() => netns_in_machines(self.devices),
            _ => self.arguments.clone(),
        }
    }
}

impl Vm {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        setup::ensure(&[Group::Vm])?;
        match self {
            Self::List => list().map(|()| ExitCode::SUCCESS),
            Self::Shell(On { kernel, devices }) => {
                Machine::interactive(&Kernel::fetch(*kernel, devices.flavour())?, &Job::shell())?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Record => {
                setup::ensure(&[Group::Build, Group::Test])?;
                Build::default().run()?;
                record::all().map(|()| ExitCode::SUCCESS)
            }
            Self::Run(run) => {
                setup::ensure(&[Group::Build])?;
                Build::default().run()?;
                let series = if run.kernels.is_empty() {
                    &Series::SUPPORTED[..]
                } else {
                    &run.kernels
                };
                let arguments = run.arguments();
                let job = Job::test(&run.layer.program()?, &arguments, After::PowerOff);
                let what = run.layer.to_string();
                let machines = errands(series, run.devices.flavour(), &job, &what)?;
                let tally = all(&machines, Duration::from_secs(run.timeout))?;
                Ok(if tally.failed == 0 {
                    ExitCode::SUCCESS
                } else {
                    ExitCode::FAILURE
                })
            }
            Self::Debug(run) => {
                setup::ensure(&[Group::Build])?;
                Build::default().run()?;
                let series = run.kernels.first().copied().unwrap_or(Series::Newest);
                let program = run.layer.program()?;
                Machine::interactive(
                    &Kernel::fetch(series, run.devices.flavour())?,
                    &Job::test(&program, &run.arguments(), After::Shell),
                )?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// The layers that are a test program, which is all that a machine gets.
fn in_machines() -> impl TypedValueParser<Value = Layer> {
    PossibleValuesParser::new(["verifier", "packets", "netns"]).try_map(|name| Layer::from_str(&name, false))
}

fn list() -> Result<()> {
    let packages = kernel::packages(Flavour::Cloud)?;
    for series in Series::SUPPORTED {
        let package = kernel::choose(&packages, series, Flavour::Cloud)
            .context("apt knows no kernel of this series")?;
        println!("{:<8}{package}", series.to_string());
    }
    println!(
        "With --full it is the package of the same release without `cloud` in its name, as far as Debian has it."
    );
    Ok(())
}

/// Runs a job on each kernel.
fn on_each(series: &[Series], job: &Job, what: &str, limit: Duration) -> Result<Tally> {
    all(&errands(series, Flavour::Cloud, job, what)?, limit)
}

/// One machine's work.
struct Errand<'a> {
    kernel: Kernel,
    job: &'a Job,
    /// For whoever watches.
    what: &'a str,
}

fn errands<'a>(series: &[Series], flavour: Flavour, job: &'a Job, what: &'a str) -> Result<Vec<Errand<'a>>> {
    let kernels = series.iter().map(|series| Kernel::fetch(*series, flavour));
    // The newest first: its verifier does most, and the one that is begun last should be short.
    kernels
        .rev()
        .map(|kernel| kernel.map(|kernel| Errand { kernel, job, what }))
        .collect()
}

/// Does as many errands at a time as there are processors: emulation keeps one busy each.
fn all(errands: &[Errand<'_>], limit: Duration) -> Result<Tally> {
    let (waiting, total) = (Mutex::new(errands.iter()), Mutex::new(Tally::default()));
    // A function of its own: in the head of `while let` the lock would be held for the length of the body.
    let next = || locked(&waiting).next();
    let work = || {
        while let Some(Errand { kernel, job, what }) = next() {
            step(format_args!("{what} on {kernel}"));
            let tally = Machine::run(kernel, job, limit).unwrap_or_else(|error| {
                eprintln!("error: {kernel}: {error:#}");
                Tally::failure(format!("{what} on {kernel}"))
            });
            *locked(&total) += tally;
        }
    };
    let workers = available_parallelism().map_or(1, usize::from).min(errands.len());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// What one machine's thread left is whole even if it panicked: each holds the lock for one step.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tests of the netns layer that ask for a machine by `require_in_vm!`. One that is missing here is a failure where the
/// layers `vm` and `netns` run together.
const MACHINES_ALONE: [&str; 7] = [
    "sctp_direct",
    "sctp_vxlan",
    "a_bond_",
    "a_vlan_",
    "is_paced",
    "rel_42_",
    "_by_the_driver_of_virtio",
];

/// Those that ask for devices that only [`Flavour::Full`] drives.
const FULL_ALONE: &str = "_by_the_driver_of_igb";

/// What the oldest kernel must not only verify: programs of two loads that call each other.
const TAIL_CALL: &str = "rel_29_each_of_two_loads";

/// Those, and the ways of the packet in either routing, through clsact where there is no tcx: what is worth its time on
/// every kernel.
fn netns_in_machines(devices: Devices) -> Vec<String> {
    let ways = ["matrix::direct_dual", "matrix::vxlan_dual"];
    let full = devices.full.then_some(&FULL_ALONE);
    ways.iter()
        .chain(&MACHINES_ALONE)
        .chain(full)
        .map(ToString::to_string)
        .collect()
}

/// What the `vm` layer of `cargo xtask test` does: the layer `verifier` on every supported kernel, and on the oldest one, or
/// where it lacks drivers on another, what no other layer can run.
pub(crate) fn supported_kernels(arguments: &[String]) -> Result<Tally> {
    let [oldest, middle, ..] = &Series::SUPPORTED;
    let is_whole = arguments.iter().all(|argument| argument.starts_with('-'));
    let netns = |names: &[&str], others: &[&str]| -> Result<Job> {
        let names = names.iter().filter(|_| is_whole);
        let others = others.iter().flat_map(|name| ["--skip", name]);
        let more = names.copied().chain(others).map(str::to_owned);
        let arguments: Vec<String> = arguments.iter().cloned().chain(more).collect();
        Ok(Job::test(&Layer::Netns.program()?, &arguments, After::PowerOff))
    };
    let alone = netns(&MACHINES_ALONE, &[FULL_ALONE])?;
    let full = netns(&[FULL_ALONE], &MACHINES_ALONE)?;
    let verifier = Job::test(&Layer::Verifier.program()?, arguments, After::PowerOff);
    let mut names = arguments.to_vec();
    names.extend(is_whole.then(|| TAIL_CALL.to_owned()));
    let handover = Job::test(&Layer::Packets.program()?, &names, After::PowerOff);
    // What takes longest begins first.
    let mut machines = errands(&[*oldest], Flavour::Cloud, &alone, "netns")?;
    machines.extend(errands(
        &Series::SUPPORTED,
        Flavour::Cloud,
        &verifier,
        "verifier",
    )?);
    machines.extend(errands(&[*oldest], Flavour::Cloud, &handover, "packets")?);
    let is_full = |name: &String| FULL_ALONE.contains(name.as_str()) || name.contains(FULL_ALONE);
    if is_whole || arguments.iter().any(is_full) {
        machines.extend(errands(&[*middle], Flavour::Full, &full, "netns")?);
    }
    all(&machines, Duration::from_secs(DEFAULT_LIMIT))
}
