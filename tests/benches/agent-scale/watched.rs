//! What a process takes of its machine.

use std::{fs, time::Instant};

use anyhow::{Context, Result};
use cni_tests::netns::Namespace;

/// A program that watches the API server from a network of its own.
pub(crate) struct Watched<'a> {
    pub(crate) name: &'static str,
    pub(crate) process: u32,
    pub(crate) inside: &'a Namespace,
    /// The device that its traffic comes by.
    pub(crate) device: &'static str,
}

/// At one moment.
pub(crate) struct Sample {
    at: Instant,
    ticks: u64,
    bytes: u64,
}

/// Between two.
pub(crate) struct Rates {
    /// Percent of one core.
    pub(crate) cpu: f64,
    /// Megabytes a second.
    pub(crate) bytes: f64,
}

const MEGABYTE: f64 = 1e6;

impl Watched<'_> {
    fn read(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.process);
        fs::read_to_string(&path).with_context(|| format!("{}: {path}", self.name))
    }

    /// Megabytes.
    pub(crate) fn resident(&self) -> Result<f64> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().next());
        let kibibytes: f64 = kibibytes.context("VmRSS")?.parse()?;
        Ok(kibibytes * 1024.0 / MEGABYTE)
    }

    pub(crate) fn sample(&self) -> Result<Sample> {
        let stat = self.read("stat")?;
        // The name in parentheses may hold anything.
        let (_, after) = stat.rsplit_once(')').context("stat")?;
        let fields: Vec<&str> = after.split_whitespace().collect();
        let ticks = |field: usize| -> Result<u64> { Ok(fields.get(field).context("stat")?.parse()?) };
        Ok(Sample {
            at: Instant::now(),
            ticks: ticks(11)? + ticks(12)?,
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

    pub(crate) fn rates(&self, since: &Sample) -> Result<Rates> {
        let now = self.sample()?;
        let seconds = (now.at - since.at).as_secs_f64();
        // USER_HZ, which is a hundred on every architecture that Linux has left.
        Ok(Rates {
            cpu: (now.ticks - since.ticks) as f64 / seconds,
            bytes: (now.bytes - since.bytes) as f64 / MEGABYTE / seconds,
        })
    }

    /// Megabytes that came since then.
    pub(crate) fn megabytes(&self, since: &Sample) -> Result<f64> {
        Ok((self.received()? - since.bytes) as f64 / MEGABYTE)
    }
}
