//! What traffic through Services notices while a Deployment of 20 rolls over, while the agent is killed, restarted and upgraded,
//! and while Services come and go: nothing, it should be.
//!
//! Two nodes and a real API server. The bench plays the kubelet and the controllers: pods are attached by the plugin, their
//! endpoints become ready, terminate and go in the order that Kubernetes keeps.

mod deployment;
mod load;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use cni_tests::bench::cluster::{
    Change, Loader, MILLRACE,
    objects::{Endpoint, Object, named_service, slice},
};
use cni_tests::bench::report::Limit;
use cni_tests::bench::series::Samples;
use cni_tests::bench::{Command, Report};
use cni_tests::lab::{ControlPlane, Families, Lab, Node, Plan, Routing, Signal, binary};
use deployment::Deployment;
use load::{Load, Tally};
use serde_json::json;

const REPLICAS: usize = 20;
const PHASE: Duration = Duration::from_secs(60);
/// Writes a second. A Service, its slice, and the end of both are four: a hundred Services a second come or go.
const CHANGES: u32 = 200;
/// Who makes them.
const WRITERS: u32 = 4;
/// Between two signals to an agent, or how long it stays away.
const PAUSE: Duration = Duration::from_secs(1);

const PHASES: [&str; 5] = [
    "Deployment of 20 rolls over",
    "agents are killed",
    "agents are restarted",
    "agents are upgraded",
    "Services churn",
];

struct World {
    control: ControlPlane,
    lab: Lab,
}

impl World {
    fn loader(&self) -> Result<Loader> {
        Loader::new(&self.lab.fabric, &self.control.folder().join("admin.kubeconfig"))
    }
}

fn main() -> Result<()> {
    let command = Command::read()?;
    let phase = PHASE.mul_f64(command.scale);
    let mut plan = Plan::new(Routing::Direct, Families::V4);
    plan.config = json!({ "services": { "proxy": "millrace" } });
    let (control, lab) = Lab::start_with_control_plane(plan)?;
    let world = World { control, lab };
    let mut rolling = Deployment::start(&world.lab, world.loader()?.editor()?, "rolling", 0, REPLICAS)?;
    let staying = Deployment::start(&world.lab, world.loader()?.editor()?, "staying", 1, 2)?;
    let mut samples = Samples::default();
    for round in 0..command.rounds {
        for name in PHASES.into_iter().filter(|name| command.wants(name)) {
            let dropped = drops(&world.lab)?;
            let load = Load::begin(&world.lab, &rolling, &staying)?;
            let begin = Instant::now();
            let until = begin + phase;
            let done = match name {
                "Deployment of 20 rolls over" => roll(&mut rolling, until)?,
                "agents are killed" => agents(&world.lab, until, |node| {
                    node.end_agent(Signal::SIGKILL)?;
                    thread::sleep(PAUSE);
                    node.start_agent()
                })?,
                "agents are restarted" => agents(&world.lab, until, |node| {
                    node.end_agent(Signal::SIGTERM)?;
                    node.start_agent()
                })?,
                "agents are upgraded" => upgrades(&world.lab, until)?,
                _ => churn(&world, round, until)?,
            };
            let seconds = begin.elapsed().as_secs_f64();
            note(&mut samples, name, &load.end(&world.lab)?, done as f64, seconds);
            explain(name, &dropped, &drops(&world.lab)?);
        }
    }
    let mut report = Report::new("service-churn", command.rounds, &samples);
    judge(&mut report, &samples);
    command.publish(&report)
}

fn metrics(tally: &Tally) -> [(&'static str, u64, bool); 6] {
    [
        ("connections", tally.connections, false),
        ("exchanges", tally.exchanges, false),
        ("failed connections", tally.failed, true),
        ("resets", tally.resets, true),
        ("segments sent again", tally.retransmitted, true),
        ("lost datagrams", tally.lost, true),
    ]
}

fn note(samples: &mut Samples, phase: &str, tally: &Tally, done: f64, seconds: f64) {
    for (metric, value, _) in metrics(tally) {
        samples.add(MILLRACE, &format!("{phase}: {metric}"), "", value as f64);
    }
    samples.add(MILLRACE, &format!("{phase}: changes"), "1/s", done / seconds);
    for words in &tally.words {
        eprintln!("{phase}: {words}");
    }
}

type Dropped = BTreeMap<(String, String), u64>;

/// Of each node and reason.
fn drops(lab: &Lab) -> Result<Dropped> {
    let mut dropped = Dropped::new();
    for node in &lab.nodes {
        let of_node = node.drops()?.into_iter();
        dropped.extend(of_node.map(|(reason, packets)| ((node.name(), reason), packets)));
    }
    Ok(dropped)
}

fn explain(phase: &str, before: &Dropped, after: &Dropped) {
    for (place, packets) in after {
        let new = packets - before.get(place).unwrap_or(&0);
        if new > 0 {
            let (node, reason) = place;
            eprintln!("{phase}: {node} dropped {new} packets: {reason}");
        }
    }
}

fn judge(report: &mut Report, samples: &Samples) {
    for phase in PHASES {
        for (metric, _, is_bad) in metrics(&Tally::default()) {
            let metric = format!("{phase}: {metric}");
            let values = samples.values(MILLRACE, &metric).filter(|_| is_bad);
            report.limits.extend(values.map(|values| Limit {
                metric,
                value: values.iter().sum(),
                unit: "in all rounds",
                most: 0.0,
            }));
        }
    }
    report.notes.push(
        "changes: pods exchanged, agents exchanged, or objects written, a second; connections of pods, of processes of a node \
         and from outside to a NodePort, each to pods of both nodes"
            .to_owned(),
    );
}

/// How many pods were exchanged.
fn roll(deployment: &mut Deployment, until: Instant) -> Result<usize> {
    let mut exchanged = 0;
    while Instant::now() < until {
        exchanged += deployment.roll_over()?;
    }
    Ok(exchanged)
}

/// How many agents were exchanged, one node after the other.
fn agents(lab: &Lab, until: Instant, exchange: impl Fn(&Node) -> Result<()>) -> Result<usize> {
    let mut exchanged = 0;
    for node in lab.nodes.iter().cycle() {
        if Instant::now() > until {
            break;
        }
        exchange(node)?;
        node.wait_until_ready()?;
        exchanged += 1;
        thread::sleep(PAUSE);
    }
    Ok(exchanged)
}

/// To the release to come, whose tables have another layout, and back.
fn upgrades(lab: &Lab, until: Instant) -> Result<usize> {
    let next = binary("MILLRACE_NEXT_BIN", "bpf/millrace-next");
    let ours = binary("MILLRACE_BIN", "millrace");
    let turn = AtomicUsize::new(0);
    let both = lab.nodes.len() * 2;
    agents(lab, until, |node| {
        let number = turn.fetch_add(1, Ordering::Relaxed) % both;
        node.end_agent(Signal::SIGTERM)?;
        node.start_agent_of(if number < lab.nodes.len() { &next } else { &ours })
    })
    .and_then(|exchanged| {
        for node in &lab.nodes {
            node.end_agent(Signal::SIGTERM)?;
            node.start_agent()?;
            node.wait_until_ready()?;
        }
        Ok(exchanged)
    })
}

/// Services with an endpoint each are made and taken away. How many objects were written.
fn churn(world: &World, round: usize, until: Instant) -> Result<usize> {
    let written = AtomicUsize::new(0);
    let count = &written;
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let prefix = format!("churn-{round}-{writer}");
                scope.spawn(move || write(world, &prefix, until, count))
            })
            .collect();
        writers
            .into_iter()
            .try_for_each(|writer| writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?)
    })?;
    Ok(written.into_inner())
}

fn write(world: &World, prefix: &str, until: Instant, written: &AtomicUsize) -> Result<()> {
    let editor = world.loader()?.editor()?;
    let pace = Duration::from_secs(1) * WRITERS / CHANGES;
    let mut next = Instant::now();
    let mut paced = || {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        next = (next + pace).max(Instant::now());
        written.fetch_add(1, Ordering::Relaxed);
    };
    for number in 0.. {
        if Instant::now() > until {
            break;
        }
        let name = format!("{prefix}-{number}");
        let endpoint = Endpoint {
            address: [10, 77, 1, 250].into(),
            node: "node0".to_owned(),
            zone: "zone-0".to_owned(),
            pod: name.clone(),
        };
        let (service, slice) = (named_service(&name, None), slice(&name, [endpoint]));
        let delete = |object: &Object| Change::delete(object.collection, object.name());
        let begin = [&service, &slice].into_iter().flat_map(Change::create);
        for change in begin.chain([delete(&slice), delete(&service)]) {
            paced();
            editor.make(&change)?;
        }
    }
    Ok(())
}
