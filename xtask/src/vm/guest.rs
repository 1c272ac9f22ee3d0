//! The other side: this binary as `init` of the machine, and the job it is given.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use serde::{Deserialize, Serialize};

use crate::test::{Program, environment};

/// Where the job lies in the machine.
pub(crate) const JOB: &str = "/etc/millrace-vm.json";
/// The second serial line carries the exit status alone: on the first one the kernel may write into a line.
const STATUS: &str = "/dev/ttyS1";
pub(crate) const BUSYBOX: &str = "/bin/busybox";
/// What tests are told of the machine. What it cannot do they must not pass over, what only such a machine can do neither
/// (`CI`, `MILLRACE_VM`); and an emulated processor takes its time (`MILLRACE_PATIENCE`, a factor on every time limit).
const RULES: [(&str, &str); 3] = [
    ("CI", "true"),
    ("MILLRACE_VM", "true"),
    ("MILLRACE_PATIENCE", "10"),
];
/// A status of our own for "could not even start", beyond what libtest uses.
const NOT_STARTED: i32 = 125;

/// What happens when the command has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum After {
    PowerOff,
    Shell,
}

/// What the machine is for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Empty for a shell alone.
    pub(crate) command: Vec<String>,
    pub(crate) folder: PathBuf,
    pub(crate) environment: Vec<(String, PathBuf)>,
    /// Module files in the order of loading, filled in when the kernel is known.
    pub(crate) modules: Vec<PathBuf>,
    pub(crate) after: After,
}

impl Job {
    pub(crate) fn shell() -> Self {
        let (command, environment, modules) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            command,
            folder: "/".into(),
            environment,
            modules,
            after: After::Shell,
        }
    }

    pub(crate) fn test(program: &Program, arguments: &[String], after: After) -> Self {
        let mut command = vec![program.path.to_string_lossy().into_owned()];
        command.extend_from_slice(arguments);
        let mut environment: Vec<_> = environment().map(|(name, path)| (name.to_owned(), path)).into();
        environment.extend(RULES.map(|(name, value)| (name.to_owned(), value.into())));
        Self {
            command,
            folder: program.folder.clone(),
            environment,
            modules: Vec::new(),
            after,
        }
    }

    /// One more variable for the tests.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }
}

/// Are we the first process of one of our machines?
pub(crate) fn is_guest() -> bool {
    std::process::id() == 1 && Path::new(JOB).exists()
}

/// Does the job and switches the machine off. A return would make the kernel panic, which ends the machine too.
pub(crate) fn init() -> ExitCode {
    let status = work().unwrap_or_else(|error| {
        println!("init: {error:#}");
        NOT_STARTED
    });
    if let Err(error) = fs::write(STATUS, format!("{status}\n")) {
        println!("init: cannot report the exit status: {error}");
    }
    nix::unistd::sync();
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        Err(error) => println!("init: cannot switch off: {error}"),
    }
    ExitCode::FAILURE
}

fn work() -> Result<i32> {
    let job = fs::read(JOB).with_context(|| format!("reading {JOB}"))?;
    let job: Job = serde_json::from_slice(&job).with_context(|| format!("parsing {JOB}"))?;
    mount_all()?;
    for module in &job.modules {
        // Some need hardware or exclude each other; the test that misses one says so.
        if let Err(error) = load(module) {
            println!("init: {}: {error:#}", module.display());
        }
    }
    busybox(&["--install", "-s", "/bin"])?;
    busybox(&["ip", "link", "set", "lo", "up"])?;
    let status = if job.command.is_empty() { 0 } else { run(&job)? };
    if job.after == After::Shell {
        // A shell without a controlling terminal has no job control and no Ctrl-C.
        busybox(&["setsid", BUSYBOX, "cttyhack", BUSYBOX, "sh"])?;
    }
    Ok(status)
}

fn mount_all() -> Result<()> {
    let file_systems = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/run"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("bpf", "/sys/fs/bpf"),
        ("tracefs", "/sys/kernel/tracing"),
    ];
    // Nothing is mounted over /tmp: the checkout, and with it the test program, may lie there.
    fs::create_dir_all("/tmp").context("creating /tmp")?;
    for (kind, on) in file_systems {
        fs::create_dir_all(on).with_context(|| format!("creating {on}"))?;
        mount(Some(kind), on, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting {kind} on {on}"))?;
    }
    Ok(())
}

fn load(module: &Path) -> Result<()> {
    let file = File::open(module)?;
    finit_module(file, c"", ModuleInitFlags::empty())?;
    Ok(())
}

fn busybox(arguments: &[&str]) -> Result<()> {
    let status = Command::new(BUSYBOX).args(arguments).status();
    status
        .with_context(|| format!("starting {BUSYBOX} {}", arguments.join(" ")))
        .map(drop)
}

fn run(job: &Job) -> Result<i32> {
    let (program, arguments) = job.command.split_first().context("the job has no command")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(job.environment.iter().map(|(name, value)| (name, value)));
    command
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root");
    command.current_dir(&job.folder).stdin(Stdio::null());
    let status = command.status().with_context(|| format!("starting {program}"))?;
    Ok(status.code().unwrap_or(NOT_STARTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_job_is_told_where_the_binaries_are_and_may_skip_nothing() {
        let program = Program {
            path: "/t/verifier".into(),
            folder: "/src/tests".into(),
        };
        let job = Job::test(&program, &["tcx".into()], After::PowerOff);
        assert_eq!(job.command, ["/t/verifier", "tcx"]);
        for name in ["CI", "MILLRACE_VM"] {
            assert!(job.environment.contains(&(name.into(), "true".into())));
        }
        assert!(
            job.environment
                .iter()
                .any(|(name, _)| name == "MILLRACE_BPF_OBJECT")
        );
        let text = serde_json::to_string(&job).unwrap();
        assert_eq!(serde_json::from_str::<Job>(&text).unwrap().command, job.command);
    }

    #[test]
    fn this_machine_is_not_one_of_ours() {
        assert!(!is_guest());
    }
}
