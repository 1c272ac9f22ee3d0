//! What the agent and kube-proxy hold in memory when they serve many Services from the same API server.

use std::{thread, time::Duration};

use anyhow::Result;
use cni_tests::bench::cluster::{Crowd, KubeProxy, MILLRACE, Mode, Watched};
use cni_tests::bench::report::Limit;
use cni_tests::bench::series::{Samples, median};
use cni_tests::bench::{Command, Report};

const SERVICES: u32 = 10_000;
const ENDPOINTS: usize = 10;
/// Until what a start took has been given back, or shown not to be.
const SETTLE: Duration = Duration::from_secs(3);
const MOST: f64 = 40.0;
/// For a peer to be done with all of it.
const PATIENCE: Duration = Duration::from_secs(150);
const RESIDENT: &str = "resident";

fn main() -> Result<()> {
    let command = Command::read()?;
    let services = command
        .services(&[SERVICES])
        .into_iter()
        .max()
        .unwrap_or(SERVICES);
    let crowd = Crowd::start(&[services])?;
    let mut samples = Samples::default();
    samples.add(
        "millrace, no Service",
        RESIDENT,
        "MB",
        crowd.watched()?.resident()?,
    );
    crowd.fill(services as usize, ENDPOINTS)?;
    let mut notes = Vec::new();
    let mut peers = Vec::new();
    for mode in Mode::ALL {
        let peer = KubeProxy::start(&crowd.lab, &crowd.control, mode)?;
        if !peer.wait_until_programmed(PATIENCE)? {
            notes.push(format!(
                "{} was not done after {} s: what it holds may grow yet",
                mode.name(),
                PATIENCE.as_secs()
            ));
        }
        peers.push(peer);
    }
    for _ in 0..command.rounds {
        crowd.begin_anew()?;
        thread::sleep(SETTLE);
        let ours = crowd.watched()?;
        samples.add(MILLRACE, "maps, as the kernel counts them", "MB", ours.maps()?);
        for one in [ours].into_iter().chain(peers.iter().map(KubeProxy::watched)) {
            resident(&one, &mut samples)?;
        }
    }
    drop(peers);
    let mut report = Report::new("memory", command.rounds, &samples);
    report.notes = notes;
    report
        .notes
        .push(format!("{services} Services with {ENDPOINTS} endpoints each"));
    for mode in Mode::ALL {
        // More is better.
        let value = samples.ratio(mode.name(), MILLRACE, RESIDENT);
        report.ratio(RESIDENT, MILLRACE, mode.name(), value, None);
    }
    let value = samples.values(MILLRACE, RESIDENT).and_then(median);
    report.limits.extend(value.map(|value| Limit {
        metric: format!("{RESIDENT}, {services} Services"),
        value,
        unit: "MB",
        most: MOST,
    }));
    command.publish(&report)
}

fn resident(one: &Watched<'_>, samples: &mut Samples) -> Result<()> {
    samples.add(one.name, RESIDENT, "MB", one.resident()?);
    Ok(())
}
