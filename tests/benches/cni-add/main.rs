//! Attaching and detaching pods: the real binaries with the real agent, against the reference `bridge` plugin with
//! `host-local`. Timed is what a container runtime waits for: the start of the plugin to its end.

use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use cni_tests::bench::reference::Reference;
use cni_tests::bench::series::{Samples, quantile, turns};
use cni_tests::bench::{Command, Report};
use cni_tests::lab::{Families, Lab, Plan, Routing};
use cni_tests::netns::Namespace;
use serde_json::json;

const MILLRACE: &str = "millrace";
const BRIDGE: &str = "bridge + host-local";
/// Pods one after the other in a round: a round's p99 is the slowest of them but for one in a hundred.
const PODS: usize = 20;
/// As many as a full node starts at once after a reboot.
const STORM: usize = 110;
const GOAL: f64 = 2.0;

/// Something that attaches pods.
enum Contender {
    Millrace(Box<Lab>),
    Bridge(Reference),
}

impl Contender {
    fn name(&self) -> &'static str {
        match self {
            Self::Millrace(_) => MILLRACE,
            Self::Bridge(_) => BRIDGE,
        }
    }

    fn run(&self, verb: &str, container: &str, netns: &Path) -> Result<()> {
        match self {
            Self::Millrace(lab) => lab.nodes[0].cni(verb, container, netns, &json!({})),
            Self::Bridge(node) => node.cni(verb, container, netns),
        }
        .map(drop)
    }

    /// Milliseconds of one run.
    fn timed(&self, verb: &str, pod: &Pod) -> Result<f64> {
        let begin = Instant::now();
        self.run(verb, &pod.container, &pod.namespace.path())?;
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    }
}

struct Pod {
    container: String,
    namespace: Namespace,
}

impl Pod {
    fn create(number: usize) -> Result<Self> {
        let container = format!("mrbench-{}-pod{number}", std::process::id());
        let namespace = Namespace::create(&container)?;
        Ok(Self { container, namespace })
    }
}

fn main() -> Result<()> {
    let command = Command::read()?;
    // The range holds two storms; `host-local` rests no address either.
    let config = json!({ "ipam": { "quarantineSeconds": 1 } });
    let plan = Plan::new(Routing::Direct, Families::V4).nodes(1).config(config);
    // One family: the reference plugin would wait for duplicate address detection of the other.
    let contenders = [
        Contender::Millrace(Box::new(Lab::start(plan)?)),
        Contender::Bridge(Reference::bridge(&format!(
            "mrbench-{}-bridge",
            std::process::id()
        ))?),
    ];
    let mut samples = Samples::default();
    for round in 0..command.rounds {
        eprintln!("round {} of {}", round + 1, command.rounds);
        one_by_one(&contenders, round, &mut samples)?;
        for turn in turns(contenders.len(), round) {
            storm(&contenders[turn], &mut samples).with_context(|| contenders[turn].name())?;
        }
    }
    command.publish(&report(&command, &samples))
}

/// Both attach and detach each pod, one right after the other.
fn one_by_one(contenders: &[Contender], round: usize, samples: &mut Samples) -> Result<()> {
    let mut times = vec![(Vec::new(), Vec::new()); contenders.len()];
    for number in 0..PODS {
        for turn in turns(contenders.len(), round + number) {
            let pod = Pod::create(number)?;
            let (add, del) = &mut times[turn];
            add.push(contenders[turn].timed("ADD", &pod)?);
            del.push(contenders[turn].timed("DEL", &pod)?);
        }
    }
    for (contender, (add, del)) in contenders.iter().zip(&times) {
        for (verb, times) in [("ADD", add), ("DEL", del)] {
            quantiles(contender, verb, times, samples);
        }
    }
    Ok(())
}

fn quantiles(contender: &Contender, what: &str, times: &[f64], samples: &mut Samples) {
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        if let Some(value) = quantile(times, share) {
            samples.add(contender.name(), &format!("{what} {name}"), "ms", value);
        }
    }
}

/// All at once, then all away at once.
fn storm(contender: &Contender, samples: &mut Samples) -> Result<()> {
    let pods: Vec<Pod> = (0..STORM).map(Pod::create).collect::<Result<_>>()?;
    for verb in ["ADD", "DEL"] {
        let begin = Instant::now();
        let times: Vec<Result<f64>> = thread::scope(|scope| {
            let runs: Vec<_> = pods
                .iter()
                .map(|pod| scope.spawn(|| contender.timed(verb, pod)))
                .collect();
            let joined = runs.into_iter().map(|run| run.join());
            joined
                .map(|time| time.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        let all = begin.elapsed().as_secs_f64() * 1e3;
        let failed: Vec<_> = times.iter().filter_map(|time| time.as_ref().err()).collect();
        ensure!(
            failed.is_empty(),
            "{verb}: {} of {STORM} at once failed; the first: {:#}",
            failed.len(),
            failed[0]
        );
        let times: Vec<f64> = times.into_iter().flatten().collect();
        let what = format!("{verb}, {STORM} at once,");
        samples.add(contender.name(), &format!("{what} all"), "ms", all);
        quantiles(contender, &what, &times, samples);
    }
    Ok(())
}

fn report(command: &Command, samples: &Samples) -> Report {
    let mut report = Report::new("cni-add", command.rounds, samples);
    let metrics: Vec<String> = report
        .results
        .iter()
        .filter(|row| row.contender == MILLRACE)
        .map(|row| row.metric.clone())
        .collect();
    for metric in metrics {
        // Times: theirs over ours, so that more is better.
        let value = samples.ratio(BRIDGE, MILLRACE, &metric);
        let goal = (metric == "ADD p50").then_some(GOAL);
        report.ratio(&metric, MILLRACE, BRIDGE, value, goal);
    }
    report
        .notes
        .push("ratios of times are the peer's over ours: 2 means half as long".to_owned());
    report
}
