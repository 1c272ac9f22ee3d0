//! What the kernel's run-time statistics say of `from_pod` under real traffic.
//!
//! The figure contains the two readings of the clock that the statistics themselves need.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::ProgramInfo;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use cni_tests::bench::load::{Cpus, Load};
use cni_tests::bench::series::Samples;
use cni_tests::lab::Lab;

use crate::contender::{Contender, Keeper, MILLRACE};

const TIME: Duration = Duration::from_millis(400);
const PROGRAM: &str = "from_pod";

/// Each load, with the statistics on.
pub(crate) fn measure(contenders: &[Contender], rounds: usize, samples: &mut Samples) -> Result<()> {
    let ours = contenders.iter().find(|contender| contender.name == MILLRACE);
    let ours = ours.context("our own contender")?;
    let Keeper::Lab(lab, _) = &ours.keeper else {
        return Ok(());
    };
    let program = attached(lab)?;
    let _statistics = enable_stats(Stats::RunTime).context("switch on run-time statistics")?;
    for _ in 0..rounds {
        for load in Load::ALL {
            let before = info(program)?;
            load.run(&ours.ends, Cpus::One, TIME)?;
            let after = info(program)?;
            let runs = after.run_count() - before.run_count();
            ensure!(runs > 0, "{PROGRAM} did not run under {}", load.name());
            let time = after.run_time() - before.run_time();
            let metric = format!("a packet in situ, {}", load.name());
            samples.add(
                "from_pod, clock included",
                &metric,
                "ns",
                time.as_nanos() as f64 / runs as f64,
            );
        }
    }
    Ok(())
}

/// The number of the program that the lab's first node has attached to its pods.
fn attached(lab: &Lab) -> Result<u32> {
    let endpoints = lab.nodes[0].pins().join("links/endpoint");
    let folder = std::fs::read_dir(&endpoints)
        .with_context(|| format!("the pins in {}", endpoints.display()))?
        .next()
        .context("no endpoint has a pinned link")??
        .path();
    program_of(&folder.join(PROGRAM))
}

/// The kernel says it of every open link.
fn program_of(pin: &Path) -> Result<u32> {
    let link = PinnedLink::from_pin(pin).with_context(|| format!("open the link {}", pin.display()))?;
    let link = FdLink::from(link);
    let id = link.info()?.id();
    for entry in std::fs::read_dir("/proc/self/fdinfo")? {
        // One of them is the folder's own, and gone.
        let text = std::fs::read_to_string(entry?.path()).unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse::<u32>().ok()
        };
        if field("link_id:") == Some(id) {
            return field("prog_id:").context("a link without program");
        }
    }
    anyhow::bail!("no open descriptor is link {id}")
}

fn info(id: u32) -> Result<ProgramInfo> {
    let found = loaded_programs().flatten().find(|info| info.id() == id);
    found.with_context(|| format!("program {id} is gone"))
}
