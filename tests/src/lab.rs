//! Nodes and pods on one machine, with the real binaries.
//!
//! ```text
//!   pod pod          pod pod
//!    └─┬─┘            └─┬─┘
//!    node0            node1        a network namespace each, with the real agent inside
//!      │ eth0           │ eth0
//!      └──── fabric ────┘          a bridge, or a router
//!              │
//!           outside                a host that knows the nodes and not the pods
//! ```
//!
//! Everything bears the lab's name and is gone when the [`Lab`] is dropped, also by a panic. What a killed process left
//! is removed by the next one that starts a lab.

pub mod control_plane;
mod fabric;
mod folder;
pub mod kube_proxy;
mod node;
mod plan;
mod pod;
mod service;

use std::net::IpAddr;

use anyhow::{Context, Result};

use crate::netns::Namespace;
pub use control_plane::ControlPlane;
pub use fabric::Fabric;
pub use folder::{bring_down, leftovers};
pub use node::{Drops, Node, Signal, Stopped, binary};
pub use plan::{Families, Plan, Routing};
pub use pod::Pod;
pub use service::{ServiceManifest, cluster_ip};

/// A running lab.
///
/// The fields are dropped in their order: first the nodes with their agents, the folder with its mounts at the end.
#[derive(Debug)]
pub struct Lab {
    pub nodes: Vec<Node>,
    pub fabric: Namespace,
    pub outside: Namespace,
    pub plan: Plan,
    folder: folder::Folder,
}

impl Lab {
    /// Brings up `plan` and waits for its agents.
    pub fn start(plan: Plan) -> Result<Self> {
        Self::start_named(plan, &folder::fresh_name())
    }

    /// The same under a name of one's own, which must not be in use.
    pub fn start_named(plan: Plan, name: &str) -> Result<Self> {
        let lab = Self::prepare(plan, name)?;
        for node in &lab.nodes {
            node.start_agent()?;
        }
        for node in &lab.nodes {
            node.wait_until_ready()?;
        }
        Ok(lab)
    }

    /// Brings up `plan` with a real API server, which the agents ask instead of reading manifests. The second part must
    /// be dropped first.
    pub fn start_with_control_plane(mut plan: Plan) -> Result<(ControlPlane, Self)> {
        plan.manifests = false;
        let mut lab = Self::prepare(plan, &folder::fresh_name())?;
        let control = ControlPlane::start(&lab).context("start the control plane")?;
        control.register(&lab.plan)?;
        lab.plan = control.settings(&lab.plan);
        for node in &lab.nodes {
            node.write_config(&lab.plan)?;
            node.start_agent()?;
        }
        for node in &lab.nodes {
            node.wait_until_ready()?;
        }
        Ok((control, lab))
    }

    /// Everything but the agents.
    pub fn prepare(plan: Plan, name: &str) -> Result<Self> {
        folder::sweep();
        let folder = folder::Folder::create(name)?;
        let inside = |what: &str| Namespace::create(&format!("{name}-{what}"));
        let mut lab = Self {
            nodes: Vec::new(),
            fabric: inside("fabric")?,
            outside: inside("outside")?,
            plan,
            folder,
        };
        for number in 0..lab.plan.nodes {
            let namespace = inside(&format!("node{number}"))?;
            lab.nodes
                .push(Node::create(&lab.plan, number, namespace, lab.folder.path())?);
        }
        fabric::wire(&lab).context("wire the fabric")?;
        if lab.plan.manifests {
            for node in &lab.nodes {
                node.write_manifests(&lab.plan)?;
            }
        }
        Ok(lab)
    }

    /// The nodes of a lab of two.
    pub fn pair(&self) -> [&Node; 2] {
        match &self.nodes[..] {
            [near, far] => [near, far],
            others => panic!("a lab of {} nodes, not of two", others.len()),
        }
    }

    pub fn name(&self) -> &str {
        self.folder.name()
    }

    /// The outside host's address of a family.
    pub fn outside_address(&self, v4: bool) -> IpAddr {
        fabric::outside(v4)
    }

    /// Leaves everything standing for a person to use; [`bring_down`] removes it.
    pub fn keep(mut self, pods: Vec<Pod>) -> Result<()> {
        self.folder.keep()?;
        self.fabric.keep();
        self.outside.keep();
        for node in &mut self.nodes {
            node.keep();
        }
        for mut pod in pods {
            pod.namespace.keep();
        }
        Ok(())
    }
}
