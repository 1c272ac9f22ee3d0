//! Programs that go on running when `cluster up` has ended, and waiting for them.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::unistd::setsid;

use super::place::Place;
use crate::process::shown;

/// Starts that need longer than this have failed; a machine with much other work is slow.
const PATIENCE: Duration = Duration::from_secs(120);
const INTERVAL: Duration = Duration::from_millis(50);
/// Lines of a log that an error shows.
const LAST_LINES: usize = 12;

/// A program that was started, as long as somebody waits for it. It outlives this value.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Daemon {
    /// Starts a command in a session of its own, with a log that begins anew.
    pub(crate) fn start(place: &Place, name: &str, command: Command) -> Result<Self> {
        Self::with_input(place, name, command, Stdio::null())
    }

    pub(crate) fn with_input(place: &Place, name: &str, mut command: Command, input: Stdio) -> Result<Self> {
        let log = place.log(name);
        fs::create_dir_all(place.logs()).context("creating the folder of logs")?;
        let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        command
            .stdin(input)
            .stderr(file.try_clone().context("duplicating a log's descriptor")?);
        // A session of its own: a terminal that closes must not take it along.
        // SAFETY: between fork and exec only setsid(2) is called, which is async-signal-safe.
        unsafe { command.pre_exec(|| setsid().map(drop).map_err(Into::into)) };
        let child = command
            .stdout(file)
            .spawn()
            .with_context(|| format!("cannot start `{}`", shown(&command)))?;
        Ok(Self {
            name: name.to_owned(),
            log,
            child,
        })
    }

    /// Waits until `ready`; that the program ended is an error with the last lines of its log.
    pub(crate) fn wait(&mut self, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if ready() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait().context("asking for a child's status")? {
                bail!("{} ended with {status}:\n{}", self.name, self.last_words());
            }
            if Instant::now() > deadline {
                bail!(
                    "{} is not ready after {} s; its log is {}:\n{}",
                    self.name,
                    PATIENCE.as_secs(),
                    self.log.display(),
                    self.last_words()
                );
            }
            sleep(INTERVAL);
        }
    }

    fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        last_lines(&String::from_utf8_lossy(&text), LAST_LINES)
    }
}

/// Waits until `done`; `what` is named if it never is.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        if Instant::now() > deadline {
            bail!("{what}: not after {} s", PATIENCE.as_secs());
        }
        sleep(INTERVAL);
    }
    Ok(())
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    let first = lines.len().saturating_sub(count);
    lines.get(first..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_log_the_last_lines_are_shown() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
        assert_eq!(last_lines("", 2), "");
    }
}
