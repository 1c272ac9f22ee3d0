//! From the bytes of a changed EndpointSlice to the first connection to the new endpoint: the agent, and kube-proxy on the
//! same API server.
//!
//! A client dials the ClusterIP all the time. The slice is changed to name another pod; the clock starts when the node's
//! device has the first bytes of the event, and stops when that pod has accepted a connection.

mod dial;

use std::collections::BTreeMap;
use std::iter;
use std::time::Duration;

use anyhow::Result;
use cni_tests::bench::cluster::{Crowd, MILLRACE, Mode, Place};
use cni_tests::bench::report::Limit;
use cni_tests::bench::series::{Samples, quantile};
use cni_tests::bench::{Command, Report};
use dial::Dial;

const SERVICES: [u32; 3] = [10, 1_000, 10_000];
/// Of each of those that nobody dials.
const ENDPOINTS: usize = 1;
/// Changes in a round, ours and a peer's.
const CHANGES: usize = 50;
const PEER_CHANGES: usize = 2;
/// For a peer to be done with what there is.
const PATIENCE: Duration = Duration::from_secs(60);
/// The share of changes that take no longer, and the milliseconds that this may be at most.
const QUANTILES: [(&str, f64, f64); 2] = [("p50", 0.5, 0.5), ("p99", 0.99, 2.0)];

/// What each change through Millrace took, by the number of Services.
type Times = BTreeMap<u32, Vec<f64>>;

fn metric(which: &str, services: u32) -> String {
    format!("event to connection, {services} Services, {which}")
}

fn main() -> Result<()> {
    let command = Command::read()?;
    let services = command.services(&SERVICES);
    let (mut samples, mut all) = (Samples::default(), Times::new());
    let crowd = Crowd::start(&services)?;
    let peers = crowd.peers(&services)?;
    let places = Place::of_all(&crowd, &peers, 2)?;
    let ours = (&crowd.lab.nodes[0].namespace, CHANGES);
    let theirs = peers.iter().map(|peer| (&peer.host.namespace, PEER_CHANGES));
    let editor = crowd.loader()?.editor()?;
    crowd.keep_machines_apart(&peers)?;
    let mut dials = places
        .iter()
        .zip(iter::once(ours).chain(theirs))
        .map(|(place, (host, changes))| Ok((Dial::new(place, host)?, changes)))
        .collect::<Result<Vec<_>>>()?;
    for number in &services {
        crowd.fill(*number as usize, ENDPOINTS)?;
        crowd.wait_for(*number as usize)?;
        for peer in &peers {
            peer.wait_until_quiet(PATIENCE)?;
        }
        for _ in 0..command.rounds {
            for (dial, changes) in &mut dials {
                // They stood still while another was measured, and what they have begun goes on without them.
                for peer in &peers {
                    peer.wait_until_quiet(PATIENCE)?;
                }
                let _others = crowd.alone(dial.name(), &peers)?;
                let times = (0..*changes).map(|_| Ok(dial.change(&editor)?.as_secs_f64() * 1e3));
                let times = times.collect::<Result<Vec<f64>>>()?;
                for (which, share, _) in QUANTILES {
                    if let Some(value) = quantile(&times, share) {
                        samples.add(dial.name(), &metric(which, *number), "ms", value);
                    }
                }
                if dial.name() == MILLRACE {
                    all.entry(*number).or_default().extend(times);
                }
            }
        }
    }
    drop(dials);
    drop(places);
    let mut report = Report::new("program-latency", command.rounds, &samples);
    judge(&services, &mut report, &samples, &all);
    drop(peers);
    command.publish(&report)
}

fn judge(services: &[u32], report: &mut Report, samples: &Samples, all: &Times) {
    for number in services {
        for (which, share, most) in QUANTILES {
            let metric = metric(which, *number);
            for mode in Mode::ALL {
                // A time: less of it is better.
                let value = samples.ratio(mode.name(), MILLRACE, &metric);
                report.ratio(&metric, MILLRACE, mode.name(), value, None);
            }
            let value = all.get(number).and_then(|times| quantile(times, share));
            report.limits.extend(value.map(|value| Limit {
                metric,
                value,
                unit: "ms",
                most,
            }));
        }
    }
    report.notes.push(format!(
        "of each round: {CHANGES} changes through Millrace, {PEER_CHANGES} through each kube-proxy, whose p99 is the slower of them; limits are of all rounds' changes together"
    ));
}
