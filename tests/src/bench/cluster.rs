//! A cluster of objects without machines: a real API server, whoever fills it, and who follows it.

mod change;
mod kube_proxy;
mod loader;
pub mod objects;
mod place;
mod storage;
mod watched;

use std::{
    cell::Cell,
    iter, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use cni_ebpf::abi::MAPS;
use serde_json::{Value, json};

use super::load::Machine;
pub use crate::lab::kube_proxy::Mode;
use crate::lab::{ControlPlane, Families, Lab, Node, Plan, Routing, Signal};
pub use change::Change;
pub use kube_proxy::KubeProxy;
pub use loader::{Churn, Editor, Loader};
pub use place::{Place, Server};
pub use watched::{Rates, Sample, Stopped, Watched};

pub const MILLRACE: &str = "millrace";
const PATIENCE: Duration = Duration::from_secs(120);
/// Rows for Services that are dialled, and for what is on its way out.
const SPARE: u32 = 1_000;
/// Services that a kube-proxy is asked to serve. Of 100,000 one with nftables had not served any five minutes later.
const MOST_OF_PEERS: u32 = 10_000;

/// One node that serves Services, and the API server that it follows. It is dropped after whoever else follows it.
#[derive(Debug)]
pub struct Crowd {
    pub lab: Lab,
    pub control: ControlPlane,
    services: Cell<usize>,
}

impl Crowd {
    /// With room for as many Services.
    pub fn start(services: &[u32]) -> Result<Self> {
        let mut plan = Plan::new(Routing::Direct, Families::V4).nodes(1);
        plan.config = json!({ "services": { "proxy": "millrace" } });
        // One row for the address and one for its port.
        let rows = services.iter().max().map_or(0, |most| 2 * most + SPARE);
        let usual = MAPS.iter().find(|spec| spec.name == "services");
        if usual.is_some_and(|spec| spec.entries < rows) {
            plan.config["maps"] = json!({ "services": rows });
        }
        let (control, lab) = Lab::start_with_control_plane(plan)?;
        Ok(Self {
            lab,
            control,
            services: Cell::new(0),
        })
    }

    pub fn loader(&self) -> Result<Loader> {
        Loader::new(&self.lab.fabric, &self.control.folder().join("admin.kubeconfig"))
    }

    /// Adds Services, each with as many endpoints on other machines, until there are this many.
    pub fn fill(&self, services: usize, endpoints: usize) -> Result<()> {
        let new = self.services.get()..services;
        self.services.set(services.max(new.start));
        self.loader()?.store(new, endpoints)
    }

    /// Both kinds of kube-proxy, on hosts of their own; none if there are more Services than they get done with in time.
    pub fn peers(&self, services: &[u32]) -> Result<Vec<KubeProxy>> {
        if services.iter().any(|number| *number > MOST_OF_PEERS) {
            return Ok(Vec::new());
        }
        let start = |mode| KubeProxy::start(&self.lab, &self.control, mode);
        Mode::ALL.into_iter().map(start).collect()
    }

    pub fn node(&self) -> Result<&Node> {
        self.lab.nodes.first().context("no node")
    }

    /// Starts the agent anew with these keys of the section `services` too.
    pub fn change(&self, more: &Value) -> Result<()> {
        let (node, mut plan) = (self.node()?, self.lab.plan.clone());
        let services = plan.config["services"].as_object_mut();
        services
            .context("no section `services`")?
            .extend(more.as_object().cloned().unwrap_or_default());
        node.write_config(&plan)?;
        node.end_agent(Signal::SIGTERM)?;
        node.start_agent()?;
        node.wait_until_ready()
    }

    pub fn watched(&self) -> Result<Watched<'_>> {
        let node = self.node()?;
        Ok(Watched {
            name: MILLRACE,
            process: node.agent_process()?,
            inside: &node.namespace,
            device: "eth0",
        })
    }

    /// The control plane, of which the calling thread becomes a part, has a processor of its own, and so has who follows it.
    pub fn keep_machines_apart(&self, peers: &[KubeProxy]) -> Result<()> {
        Machine::ControlPlane.join()?;
        self.control
            .processes()
            .try_for_each(|process| Machine::ControlPlane.take(process))?;
        let peers = peers.iter().map(|peer| peer.watched().process);
        iter::once(self.node()?.agent_process()?)
            .chain(peers)
            .try_for_each(|process| Machine::Node.take(process))
    }

    /// Everybody but this one stands still until the values are dropped: what the same API server tells all of them, one
    /// works through while another is measured, on few processors.
    pub fn alone(&self, name: &str, peers: &[KubeProxy]) -> Result<Vec<Stopped>> {
        let all = iter::once(self.watched()?).chain(peers.iter().map(KubeProxy::watched));
        let others = all.filter(|one| one.name != name);
        others.map(|other| other.stop()).collect()
    }

    /// Has the agent begin with nothing of Services in the kernel. Seconds until it has all, and those of them that it
    /// took from knowing all.
    pub fn begin_anew(&self) -> Result<[f64; 2]> {
        let node = self.node()?;
        node.end_agent(Signal::SIGTERM)?;
        for map in [
            "services",
            "service_slots",
            "service_members",
            "service_ranges",
            "maglev",
            "backends",
        ] {
            let pin = node
                .pins()
                .join("maps")
                .join(format!("{map}_v{}", cni_ebpf::abi::version(map)));
            std::fs::remove_file(&pin).with_context(|| pin.display().to_string())?;
        }
        let begin = Instant::now();
        node.start_agent()?;
        loop {
            // Until it listens there is no answer.
            if let Ok(status) = node.ask(["status"])
                && let Ok(took) =
                    serde_json::from_value::<Duration>(status["agent"]["services"]["first_sync"].clone())
            {
                return Ok([begin.elapsed(), took].map(|time| time.as_secs_f64()));
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "the agent does not serve: {}",
                node.log()
            );
            // Each question costs the agent a look at its maps, and a process.
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until etcd and the API server have done with what was put into them.
    fn wait_until_quiet(&self) -> Result<()> {
        const LOOK: Duration = Duration::from_millis(500);
        const STILL: u32 = 4;
        let ticks = || self.control.processes().map(watched::ticks).sum::<Result<u64>>();
        let (begin, mut before, mut still) = (Instant::now(), ticks()?, 0);
        while still < STILL {
            thread::sleep(LOOK);
            let now = ticks()?;
            // A fifth of a processor.
            still = if now - before > 10 { 0 } else { still + 1 };
            before = now;
            ensure!(begin.elapsed() < PATIENCE, "the API server is busy all the time");
        }
        Ok(())
    }

    /// Waits until the agent has so many Services in the kernel, and nobody is busy with them.
    pub fn wait_for(&self, services: usize) -> Result<()> {
        let begin = Instant::now();
        loop {
            let status = self.node()?.ask(["status"])?;
            let known = status["agent"]["services"]["services"].as_u64();
            if known.is_some_and(|known| known >= services as u64) {
                return self.wait_until_quiet();
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "the agent knows {known:?} Services of {services}: {}",
                self.node()?.log()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }
}
