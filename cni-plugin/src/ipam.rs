//! Delegation to another plugin for addresses.

use cni_plugin::{CniError, code, config::Ipam, result::AddResult};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// The delegated plugin, found in `CNI_PATH`. It gets our own environment and our own stdin.
pub(crate) struct Delegate<'a> {
    executable: PathBuf,
    name: &'a str,
    stdin: &'a [u8],
}

impl<'a> Delegate<'a> {
    pub(crate) fn find(ipam: &'a Ipam, path: &[PathBuf], stdin: &'a [u8]) -> Result<Self, CniError> {
        let name = ipam.plugin.as_str();
        let executable = path
            .iter()
            .map(|folder| folder.join(name))
            .find(|file| is_executable(file));
        let executable = executable.ok_or_else(|| {
            CniError::new(
                code::INVALID_ENVIRONMENT,
                format!("the IPAM plugin {name} is not in CNI_PATH"),
            )
            .with_details(std::env::join_paths(path).unwrap_or_default().to_string_lossy())
        })?;
        Ok(Self {
            executable,
            name,
            stdin,
        })
    }

    /// Reserves addresses. A plugin that fails may have reserved some already, so it is told to give them back.
    pub(crate) fn add(&self) -> Result<AddResult, CniError> {
        let added = self.run("ADD").and_then(|stdout| {
            let value = serde_json::from_slice(&stdout).map_err(|error| self.nonsense(error))?;
            let result = AddResult::parse(value, &format!("the answer of the IPAM plugin {}", self.name))?;
            match result.ips.is_empty() {
                true => Err(self.nonsense("it gave no address")),
                false => Ok(result),
            }
        });
        added.inspect_err(|_| self.give_back())
    }

    /// The way back from a failed ADD, which has its own error to report.
    pub(crate) fn give_back(&self) {
        if let Err(error) = self.run("DEL") {
            tracing::warn!(plugin = self.name, %error, "the addresses of a failed ADD could not be given back");
        }
    }

    /// Forwards a verb that has no result.
    pub(crate) fn forward(&self, verb: &str) -> Result<(), CniError> {
        self.run(verb).map(drop)
    }

    /// Forwards a verb that came with 1.1.0 and that a plugin may not know.
    pub(crate) fn forward_if_known(&self, verb: &str) -> Result<(), CniError> {
        match self.run(verb) {
            Err(error)
                if error.code == code::INVALID_ENVIRONMENT && error.msg.contains("unknown CNI_COMMAND") =>
            {
                tracing::info!(
                    plugin = self.name,
                    verb,
                    "the IPAM plugin does not know this verb"
                );
                Ok(())
            }
            outcome => outcome.map(drop),
        }
    }

    fn run(&self, verb: &str) -> Result<Vec<u8>, CniError> {
        let output = self.output(verb).map_err(|error| {
            CniError::new(
                code::IPAM_FAILED,
                format!("the IPAM plugin {} cannot be run", self.name),
            )
            .with_details(format!("{}: {error}", self.executable.display()))
        })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            CniError::new(
                code::IPAM_FAILED,
                format!("the IPAM plugin {} failed at {verb}", self.name),
            )
            .with_details(format!("{} without a CNI error on stdout", output.status))
        }))
    }

    fn output(&self, verb: &str) -> std::io::Result<Output> {
        let mut child = Command::new(&self.executable)
            .env("CNI_COMMAND", verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin need not read its input, for DEL for instance; its exit status says whether it failed.
            let _ = stdin.write_all(self.stdin);
        }
        child.wait_with_output()
    }

    fn nonsense(&self, error: impl ToString) -> CniError {
        CniError::new(
            code::IPAM_FAILED,
            format!("the answer of the IPAM plugin {} cannot be used", self.name),
        )
        .with_details(error)
    }
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata()
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}
