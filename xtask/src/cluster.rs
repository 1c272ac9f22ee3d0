//! `cargo xtask cluster`: a real Kubernetes on this machine.
//!
//! The control plane runs in a network namespace, the fabric, and so does a small load balancer; each node is a set of
//! namespaces joined to it, with its own containerd and kubelet. Everything bears the cluster's name, so that `down` finds it
//! also after a crash.

mod balancer;
mod cni;
mod control;
mod daemon;
mod dns;
mod down;
mod e2e;
mod fabric;
mod gateway;
mod images;
mod keys;
mod millrace;
mod namespace;
mod node;
mod place;
mod plan;
mod programs;
mod report;
mod suite;
mod up;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use node::Machine;
use place::Place;
pub(crate) use suite::test;

/// The folder of Kubernetes' programs, which are compiled if they are not there.
pub(crate) fn programs() -> Result<PathBuf> {
    programs::CLUSTER.build()?;
    Ok(programs::folder())
}

/// Compiles them, and upstream's specs.
pub(crate) fn all_programs() -> Result<()> {
    programs::CLUSTER.build()?;
    programs::E2E.build()
}

/// A real Kubernetes on this machine, with a control plane, nodes with their own containerd and kubelet, and DNS
///
/// Kubernetes' own programs are compiled from Go modules by name, once. Nodes are sets of namespaces: neither devices nor
/// routes of the machine itself are touched; the API server is reached through a port of the loopback. Needs root.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask cluster up
          Two nodes, both families; prints the line that tells kubectl where the cluster is
  cargo xtask cluster up --cni bridge --proxy kube-proxy-iptables --family v4
          A peer's cluster
  cargo xtask cluster kubectl get pods -A -o wide
  cargo xtask cluster exec n1 -- crictl ps
          A command on a node, in all of its namespaces
  cargo xtask cluster e2e --focus '\\[sig-network\\].*\\[Conformance\\]'
          Upstream's specs
  cargo xtask cluster down")]
pub(crate) struct Cluster {
    /// Clusters of different names live beside each other
    #[arg(long, global = true, default_value = "millrace", env = "MILLRACE_CLUSTER")]
    name: Place,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Bring a cluster up, in the place of one of the same name
    Up(up::Up),
    /// Remove the cluster and everything that belongs to it, also after a crash
    Down,
    /// Show the cluster's nodes and pods
    Status {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show the log of one program of the cluster, or the names of all
    Logs {
        /// Such as kube-apiserver or kubelet-n1
        program: Option<String>,
    },
    /// Put the images of an OCI archive on all nodes
    Load { file: PathBuf },
    /// Run a command on a node, in all of its namespaces; the exit status is the command's
    Exec {
        node: String,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Run kubectl with the administrator's rights
    #[command(disable_help_flag = true)]
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Pull a node's plug and switch it on again; what is on its disk stays
    PowerCycle { node: String },
    /// Run upstream's network specs against the cluster
    E2e(e2e::E2e),
    /// etcd and the API server alone, for tests that need no node; `down` removes them
    #[command(hide = true)]
    ControlPlane(up::ControlPlane),
    /// The process that carries connections from the loopback to the API server
    #[command(hide = true)]
    Gateway,
    /// The process that gives Services addresses of a load balancer
    #[command(hide = true)]
    Balancer,
    /// A node's process 1
    #[command(hide = true)]
    Boot { node: u8 },
}

impl Cluster {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let place = &self.name;
        match &self.action {
            Action::Up(up) => up.run(place)?,
            Action::Down => down::cluster(place)?,
            Action::Status { json } => report::status(place, *json)?,
            Action::Logs { program } => report::logs(place, program.as_deref())?,
            Action::Load { file } => up::load(place, &place.plan()?, file)?,
            Action::Exec { node, command } => return exec(place, node, command),
            Action::Kubectl { arguments } => {
                place.plan()?;
                return replace(control::kubectl(place).args(arguments));
            }
            Action::PowerCycle { node } => up::power_cycle(place, &place.plan()?, place.find(node)?)?,
            Action::E2e(e2e) => return e2e.run(place),
            Action::ControlPlane(options) => options.run(place)?,
            Action::Gateway => gateway::run()?,
            Action::Balancer => balancer::run(place)?,
            Action::Boot { node } => node::boot(place, plan::Node(*node))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn exec(place: &Place, node: &str, words: &[OsString]) -> Result<ExitCode> {
    let (node, plan) = (place.find(node)?, place.plan()?);
    let machine = Machine {
        place,
        plan: &plan,
        node,
    };
    let (program, arguments) = words.split_first().context("no command")?;
    let mut command = machine.inside(program)?;
    if let Some(terminal) = std::env::var_os("TERM") {
        command.env("TERM", terminal);
    }
    replace(command.args(arguments))
}

/// This process becomes the command, with its terminal and its exit status.
fn replace(command: &mut Command) -> Result<ExitCode> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start `{}`", crate::process::shown(command)))
}
