//! Network namespaces with names, through `ip`, and the processes in them.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::place::NAMESPACES;
use crate::process::{command, output, path};

pub(crate) fn exists(name: &str) -> bool {
    Path::new(NAMESPACES).join(name).exists()
}

pub(crate) fn create(name: &str) -> Result<()> {
    output(command("ip").args(["netns", "add", name]))?;
    ip(name, "link set lo up")
}

/// The namespace itself ends with its last process.
pub(crate) fn delete(name: &str) -> Result<()> {
    output(command("ip").args(["netns", "delete", name])).map(drop)
}

pub(crate) fn names() -> Vec<String> {
    let entries = fs::read_dir(NAMESPACES).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Every process whose network this is, containers in the host's network among them.
pub(crate) fn processes(name: &str) -> Result<Vec<i32>> {
    let text = output(command("ip").args(["netns", "pids", name]))?;
    Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect())
}

/// Runs lines of `ip` commands in a namespace; the first one that fails is the error.
pub(crate) fn ip(namespace: &str, lines: &str) -> Result<()> {
    let mut child = command("ip")
        .args(["-n", namespace, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start `ip`")?;
    if let Some(mut input) = child.stdin.take() {
        // It stops reading at its first failure, which its exit status tells.
        let _ = input.write_all(lines.as_bytes());
    }
    let output = child.wait_with_output().context("waiting for `ip`")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("ip in {namespace}: {}\n{lines}", complaint.trim());
    }
    Ok(())
}

/// A command in a network namespace, with this machine's files. Nothing forks on the way: the child is the program.
pub(crate) fn inside(namespace: &str, program: impl AsRef<OsStr>) -> Command {
    let mut enter = bare("nsenter");
    enter.arg(format!("--net={NAMESPACES}/{namespace}"));
    enter.arg("--").arg(program);
    enter
}

/// A command without the caller's environment: a proxy that is set there cannot be reached from inside.
pub(crate) fn bare(program: &str) -> Command {
    let mut command = command(program);
    command.env_clear().env("PATH", path()).env("HOME", "/root");
    command
}
