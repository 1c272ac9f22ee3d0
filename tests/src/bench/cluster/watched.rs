//! What a process takes of its machine.

use std::{collections::BTreeMap, fs, time::Instant};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::netns::Namespace;

/// A program that watches the API server from a network of its own.
pub struct Watched<'a> {
    pub name: &'static str,
    pub process: u32,
    pub inside: &'a Namespace,
    /// The device that its traffic comes by.
    pub device: &'static str,
}

/// At one moment.
pub struct Sample {
    at: Instant,
    ticks: u64,
    bytes: u64,
}

/// Between two.
pub struct Rates {
    /// Percent of one core.
    pub cpu: f64,
    /// Megabytes a second.
    pub bytes: f64,
}

const MEGABYTE: f64 = 1e6;

/// A process that stands still until this is dropped.
#[derive(Debug)]
pub struct Stopped(Pid);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

impl Watched<'_> {
    pub(super) fn stop(&self) -> Result<Stopped> {
        let process = Pid::from_raw(self.process.try_into()?);
        kill(process, Signal::SIGSTOP).with_context(|| format!("stop {}", self.name))?;
        Ok(Stopped(process))
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.process);
        fs::read_to_string(&path).with_context(|| format!("{}: {path}", self.name))
    }

    /// Megabytes.
    pub fn resident(&self) -> Result<f64> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().next());
        let kibibytes: f64 = kibibytes.context("VmRSS")?.parse()?;
        Ok(kibibytes * 1024.0 / MEGABYTE)
    }

    /// Megabytes of the maps that it holds, as the kernel counts them.
    pub fn maps(&self) -> Result<f64> {
        let folder = format!("/proc/{}/fdinfo", self.process);
        let mut bytes = BTreeMap::new();
        for entry in fs::read_dir(&folder).with_context(|| folder.clone())? {
            // Some are closed meanwhile.
            let text = fs::read_to_string(entry?.path()).unwrap_or_default();
            let field = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name))?;
                line.trim().parse::<u64>().ok()
            };
            bytes.extend(field("map_id:").zip(field("memlock:")));
        }
        Ok(bytes.values().sum::<u64>() as f64 / MEGABYTE)
    }

    pub fn sample(&self) -> Result<Sample> {
        Ok(Sample {
            at: Instant::now(),
            ticks: ticks(self.process)?,
            bytes: self.received()?,
        })
    }

    /// Bytes that came by its device since it was made.
    fn received(&self) -> Result<u64> {
        let links = self.inside.list(&format!("-s link show dev {}", self.device))?;
        let bytes = links
            .first()
            .and_then(|link| link["stats64"]["rx"]["bytes"].as_u64());
        bytes.context("statistics")
    }

    pub fn rates(&self, since: &Sample) -> Result<Rates> {
        let now = self.sample()?;
        let seconds = (now.at - since.at).as_secs_f64();
        Ok(Rates {
            cpu: (now.ticks - since.ticks) as f64 / seconds,
            bytes: (now.bytes - since.bytes) as f64 / MEGABYTE / seconds,
        })
    }

    /// Megabytes that came since then.
    pub fn megabytes(&self, since: &Sample) -> Result<f64> {
        Ok((self.received()? - since.bytes) as f64 / MEGABYTE)
    }
}

/// Hundredths of a second that a process has computed, which USER_HZ are on every architecture that Linux has left.
pub(super) fn ticks(process: u32) -> Result<u64> {
    let path = format!("/proc/{process}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path)?;
    // The name in parentheses may hold anything.
    let (_, after) = stat.rsplit_once(')').context("stat")?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |field: usize| -> Result<u64> { Ok(fields.get(field).context("stat")?.parse()?) };
    Ok(ticks(11)? + ticks(12)?)
}
