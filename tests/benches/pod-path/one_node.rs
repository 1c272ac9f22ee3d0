//! Contenders on one node: our pods, a bare veth pair, pods of the reference `bridge` plugin.

use anyhow::{Context, Result};
use cni_tests::bench::Report;
use cni_tests::bench::load::{Cpus, Ends, Load};
use cni_tests::bench::reference::Reference;
use cni_tests::bench::series::Samples;
use cni_tests::lab::{Families, Lab, Plan, Routing};

use crate::contender::{BRIDGE, Contender, Keeper, MILLRACE, VETH, fresh, namespace};
use crate::traffic;

/// Shown with each metric.
pub(crate) const PLACE: &str = "one node";

pub(crate) fn contenders() -> Result<Vec<Contender>> {
    Ok(vec![
        millrace().context(MILLRACE)?,
        veth().context(VETH)?,
        bridge().context(BRIDGE)?,
    ])
}

fn millrace() -> Result<Contender> {
    let lab = Lab::start(Plan::new(Routing::Direct, Families::V4).nodes(1))?;
    let client = lab.nodes[0].add_pod("client")?;
    let server = lab.nodes[0].add_pod("server")?;
    Contender::pods(MILLRACE, lab, client, server)
}

fn veth() -> Result<Contender> {
    let (client, server) = (namespace("veth-client")?, namespace("veth-server")?);
    client.ip("link add eth0 type veth peer name tmp0")?;
    client.ip(&format!("link set tmp0 netns {} name eth0", server.name()))?;
    client.ip("address add 10.98.0.1/24 dev eth0\nlink set eth0 up")?;
    server.ip("address add 10.98.0.2/24 dev eth0\nlink set eth0 up")?;
    Ok(Contender {
        name: VETH,
        ends: Ends {
            client,
            server,
            ip: [10, 98, 0, 2].into(),
        },
        keeper: Keeper::Nobody,
    })
}

fn bridge() -> Result<Contender> {
    let node = Reference::bridge(&fresh("bridge"))?;
    let (client, server) = (namespace("bridge-client")?, namespace("bridge-server")?);
    node.attach("client", &client)?;
    let ip = node.attach("server", &server)?;
    Ok(Contender {
        name: BRIDGE,
        ends: Ends { client, server, ip },
        keeper: Keeper::Bridge(node),
    })
}

/// How close to a bare veth pair is close enough.
fn goal(load: Load) -> f64 {
    match load {
        Load::RequestResponse | Load::Stream => 0.97,
        Load::Connect => 0.93,
        Load::SmallPackets => 0.88,
    }
}

pub(crate) fn ratios(report: &mut Report, samples: &Samples) {
    for (to, goal) in [(VETH, goal as fn(Load) -> f64), (BRIDGE, |_| 1.10)] {
        for cpus in Cpus::possible() {
            for load in Load::ALL {
                let metric = traffic::metric(PLACE, load, *cpus);
                let value = samples.ratio(MILLRACE, to, &metric);
                report.ratio(&metric, MILLRACE, to, value, Some(goal(load)));
            }
        }
    }
}
