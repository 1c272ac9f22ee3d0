//! The agent of one node in a big cluster: how long until it knows everything, what it takes of memory, processor and
//! network, beside the real kube-proxy on the same real API server.

mod objects;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use cni_tests::bench::cluster::{Churn, KubeProxy, Loader, Mode, Sample, Watched, objects::service};
use cni_tests::bench::series::Samples;
use cni_tests::bench::{Command, Report, report::Limit};
use cni_tests::lab::{ControlPlane, Families, Lab, Node, Plan, Routing, Signal};
use objects::Scale;
use serde_json::json;

const MILLRACE: &str = "millrace";
/// Pod events a second; those of EndpointSlices come on top.
const CHURN: u32 = 100;
const WINDOW: Duration = Duration::from_secs(5);
/// Until what a start took has been given back, or shown not to be.
const SETTLE: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(600);

fn main() -> Result<()> {
    let command = Command::read()?;
    let scale = Scale::share(command.scale);
    let mut plan = Plan::new(Routing::Vxlan, Families::V4).nodes(1);
    // Services are not watched otherwise.
    plan.config = json!({ "services": { "proxy": "millrace" } });
    let (control, lab) = Lab::start_with_control_plane(plan)?;
    let loader = || Loader::new(&lab.fabric, &control.folder().join("admin.kubeconfig"));
    let mut samples = Samples::default();
    let Scale {
        nodes,
        pods,
        services,
    } = scale;

    loader()?.create("Services", (0..services).map(service).collect())?;
    let slices = (0..services).map(|number| objects::slice(number, &scale, |_| 0));
    loader()?.create("EndpointSlices", slices.collect())?;
    let only = format!("{services} Services");
    started(&lab.nodes[0], &only, &mut samples)?;

    loader()?.create("Nodes", (0..nodes).map(objects::node).collect())?;
    let running = (0..pods).map(|number| objects::pod(number, &scale, 0));
    loader()?.create("Pods", running.collect())?;
    let all = format!("{only}, {nodes} nodes, {pods} pods");
    started(&lab.nodes[0], &all, &mut samples)?;

    let proxy = peer_started(&lab, &control, &all, &mut samples)?;
    let contenders = [watched(&lab.nodes[0])?, proxy.watched()];
    let churn = loader()?.churn(objects::changes(scale), CHURN);
    for round in 0..command.rounds {
        eprintln!("round {} of {}", round + 1, command.rounds);
        window(&contenders, &churn, &mut samples)?;
    }
    churn.stop()?;
    for one in &contenders {
        samples.add(one.name, "resident after the churn", "MB", one.resident()?);
    }
    command.publish(&report(&command, &samples, [&only, &all]))
}

fn watched(node: &Node) -> Result<Watched<'_>> {
    Ok(Watched {
        name: MILLRACE,
        process: node.agent_process()?,
        inside: &node.namespace,
        device: "eth0",
    })
}

/// Starts the agent anew and notes what that took.
fn started(node: &Node, with: &str, samples: &mut Samples) -> Result<()> {
    node.end_agent(Signal::SIGTERM)?;
    node.start_agent()?;
    let (begin, agent) = (Instant::now(), watched(node)?);
    let before = agent.sample()?;
    while !is_synced(node)? {
        ensure!(begin.elapsed() < PATIENCE, "the agent does not sync");
        thread::sleep(Duration::from_millis(20));
    }
    note(&agent, begin, &before, with, samples)
}

fn is_synced(node: &Node) -> Result<bool> {
    let status = node.ask(["status"])?;
    Ok(status["agent"]["sources"]["kubernetes"]["synced"] == true)
}

fn peer_started(lab: &Lab, control: &ControlPlane, with: &str, samples: &mut Samples) -> Result<KubeProxy> {
    let proxy = KubeProxy::start(lab, control, Mode::Nftables)?;
    let (begin, watched) = (Instant::now(), proxy.watched());
    let before = watched.sample()?;
    let programmed = proxy.wait_until_programmed(PATIENCE)?;
    ensure!(programmed, "kube-proxy is not ready: {}", proxy.log());
    note(&watched, begin, &before, with, samples)?;
    Ok(proxy)
}

fn note(one: &Watched<'_>, begin: Instant, before: &Sample, with: &str, samples: &mut Samples) -> Result<()> {
    let seconds = begin.elapsed().as_secs_f64();
    thread::sleep(SETTLE);
    samples.add(one.name, &format!("start to synced, {with}"), "s", seconds);
    samples.add(
        one.name,
        &format!("read to be synced, {with}"),
        "MB",
        one.megabytes(before)?,
    );
    samples.add(one.name, &format!("resident, {with}"), "MB", one.resident()?);
    Ok(())
}

/// All at the same time, of the same events.
fn window(contenders: &[Watched<'_>], churn: &Churn, samples: &mut Samples) -> Result<()> {
    let before = contenders
        .iter()
        .map(Watched::sample)
        .collect::<Result<Vec<_>>>()?;
    let (begin, changed) = (Instant::now(), churn.changed());
    thread::sleep(WINDOW);
    let rate = (churn.changed() - changed) as f64 / begin.elapsed().as_secs_f64();
    samples.add("API server", "pod events", "1/s", rate);
    for (one, before) in contenders.iter().zip(&before) {
        let rates = one.rates(before)?;
        samples.add(one.name, "processor in the churn", "%", rates.cpu);
        samples.add(one.name, "watched in the churn", "MB/s", rates.bytes);
    }
    Ok(())
}

fn report(command: &Command, samples: &Samples, [only, all]: [&str; 2]) -> Report {
    let mut report = Report::new("agent-scale", command.rounds, samples);
    let limits = [
        (format!("resident, {only}"), "MB", 40.0),
        (format!("resident, {all}"), "MB", 100.0),
        ("processor in the churn".to_owned(), "%", 5.0),
    ];
    for (metric, unit, most) in limits {
        let row = report
            .results
            .iter()
            .find(|row| row.contender == MILLRACE && row.metric == metric);
        let value = row.map(|row| row.median);
        report.limits.extend(value.map(|value| Limit {
            metric,
            value,
            unit,
            most,
        }));
    }
    report.notes.push(
        "kube-proxy watches Services, EndpointSlices and its own Node alone; it is told of no pod".to_owned(),
    );
    report.notes.push(
        "of each three pods one is deleted and created with another address, one gets another address, one another label; the slice of an address follows it".to_owned(),
    );
    report
}
