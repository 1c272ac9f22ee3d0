//! The agent's process.

use std::{
    ffi::CStr,
    fs::{self, OpenOptions},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::patience;

use super::{super::folder, Node, binary, limit};

impl Node {
    pub fn start_agent(&self) -> Result<()> {
        self.start_agent_with(&[])
    }

    /// With more variables in its environment.
    pub fn start_agent_with(&self, environment: &[(&str, &str)]) -> Result<()> {
        let mut agent = self.agent_command(&binary("MILLRACE_BIN", "millrace"));
        agent.envs(environment.iter().copied());
        self.start(agent)
    }

    /// With a `/proc/sys` that it can only read, as containers have it.
    pub fn start_agent_with_fixed_settings(&self) -> Result<()> {
        let mut agent = self.agent_command(&binary("MILLRACE_BIN", "millrace"));
        // SAFETY: between fork and exec only unshare(2) and mount(2) are called, which are async-signal-safe.
        unsafe { agent.pre_exec(|| read_only(c"/proc/sys").map_err(Into::into)) };
        self.start(agent)
    }

    /// Starts the agent of another build.
    pub fn start_agent_of(&self, millrace: &Path) -> Result<()> {
        self.start(self.agent_command(millrace))
    }

    fn agent_command(&self, millrace: &Path) -> Command {
        let mut command = self.program(millrace, ["agent"]);
        command.args(&self.agent_arguments);
        command
    }

    fn start(&self, mut agent: Command) -> Result<()> {
        let log = self.log_file();
        let log = OpenOptions::new().create(true).append(true).open(&log)?;
        let child = agent
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // What a person types at the terminal is not for it.
            .process_group(0)
            .spawn()
            .context("start the agent")?;
        folder::note_process(&self.lab, child.id())?;
        let mut agent = self
            .agent
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        ensure!(agent.is_none(), "{} has an agent already", self.name());
        *agent = Some(child);
        Ok(())
    }

    /// Ends a process that was started on this node with the lab, also if the lab's own program is killed.
    pub fn adopt(&self, child: &Child) -> Result<()> {
        folder::note_process(&self.lab, child.id())
    }

    /// Ends the agent by a signal, and waits for its end.
    pub fn end_agent(&self, signal: Signal) -> Result<()> {
        let mut agent = self
            .agent
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut child = agent
            .take()
            .with_context(|| format!("{} has no agent", self.name()))?;
        kill(Pid::from_raw(child.id() as i32), signal)?;
        let deadline = Instant::now() + limit();
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("the agent did not end by {signal}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Whether the agent has ended by itself; waits for what is left of it.
    pub fn agent_is_gone(&self) -> Result<bool> {
        let mut agent = self
            .agent
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let gone = match &mut *agent {
            Some(child) => child.try_wait()?.is_some(),
            None => true,
        };
        if gone {
            *agent = None;
        }
        Ok(gone)
    }

    /// The agent's number among the processes.
    pub fn agent_process(&self) -> Result<u32> {
        let agent = self
            .agent
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let child = agent.as_ref();
        child
            .map(Child::id)
            .with_context(|| format!("{} has no agent", self.name()))
    }

    pub fn has_agent(&self) -> bool {
        self.agent
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .is_some()
    }

    /// Waits for `/readyz`.
    pub fn wait_until_ready(&self) -> Result<()> {
        let deadline = Instant::now() + limit();
        loop {
            if self.is_ready() {
                return Ok(());
            }
            if let Some(child) = &mut *self
                .agent
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                && let Some(status) = child.try_wait()?
            {
                bail!(
                    "the agent of {} ended with {status}:\n{}",
                    self.name(),
                    self.log()
                );
            }
            ensure!(
                Instant::now() < deadline,
                "the agent of {} is not ready:\n{}",
                self.name(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `millrace uninstall`. What it says of files that belong to the machine is left out: there are none.
    pub fn uninstall(&self) -> Result<Output> {
        let absent = self.folder().join("absent").display().to_string();
        let words = [
            "uninstall",
            "--yes",
            "--cni-config",
            &absent,
            "--cni-plugin",
            &absent,
        ];
        let output = self.millrace(words).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(output)
    }

    fn is_ready(&self) -> bool {
        self.http("/readyz")
            .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// GET from the agent's HTTP server, head and body.
    pub fn http(&self, path: &str) -> Result<String> {
        let address = SocketAddr::from(([127, 0, 0, 1], 9765));
        let wait = patience(Duration::from_secs(5));
        let mut stream = self
            .namespace
            .run(|| TcpStream::connect_timeout(&address, wait))?;
        stream.set_read_timeout(Some(wait))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// What the agent's metrics say of a series, named with its labels.
    pub fn metric(&self, series: &str) -> Result<f64> {
        let page = self.http("/metrics")?;
        let mut lines = page.lines().filter_map(|line| line.strip_prefix(series));
        let value = lines.find_map(|rest| rest.strip_prefix(' '));
        Ok(value.with_context(|| format!("no {series} in {page}"))?.parse()?)
    }

    pub(super) fn log_file(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    /// All that agents have written into their log here.
    pub fn whole_log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The end of the agent's log.
    pub fn log(&self) -> String {
        let text = self.whole_log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

/// Makes a folder read-only for this process and its children.
fn read_only(folder: &CStr) -> nix::Result<()> {
    let none = None::<&CStr>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some(folder), folder, none, MsFlags::MS_BIND, none)?;
    let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, folder, none, again, none)
}
