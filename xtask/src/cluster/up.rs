//! Bringing a cluster up, and what changes one that is up.

use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::control::{self, kubectl};
use super::daemon::until;
use super::node::Machine;
use super::place::Place;
use super::plan::{Cni, Family, Node, Plan, Proxy};
use super::{balancer, cni, dns, down, fabric, images, millrace, programs};
use crate::process::{output, step};
use crate::setup::{self, Group};

#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    plan: Plan,
    /// Print one JSON object instead of the line for the shell
    #[arg(long)]
    json: bool,
}

impl Up {
    pub(crate) fn run(&self, place: &Place) -> Result<()> {
        bring_up(place, &self.plan)?;
        print(place, &self.plan, self.json);
        Ok(())
    }
}

/// Brings a cluster up in the place of one of the same name.
pub(crate) fn bring_up(place: &Place, plan: &Plan) -> Result<()> {
    plan.check()?;
    // What our own image needs is found lacking before minutes go by, not after.
    let groups: &[Group] = if plan.cni == Cni::Millrace {
        &[Group::Cluster, Group::Build]
    } else {
        &[Group::Cluster]
    };
    prepare(groups)?;
    let archive = images::archive()?;
    if plan.cni == Cni::Millrace {
        millrace::build()?;
    }
    let started = Instant::now();
    clear(place)?;
    up(place, plan, &archive).with_context(|| {
        format!("cluster `{place}` is not up; see `cargo xtask cluster logs`, remove it with `cargo xtask cluster down`")
    })?;
    step(format_args!(
        "cluster `{place}` is up after {:.1} s",
        started.elapsed().as_secs_f32()
    ));
    Ok(())
}

/// etcd and the API server alone
#[derive(Debug, Args)]
pub(crate) struct ControlPlane {
    /// Address families of Services and pods
    #[arg(long, value_enum, default_value_t)]
    family: Family,
    /// Also the controller-manager: ServiceAccounts, EndpointSlices, pod CIDRs, deletion of namespaces
    #[arg(long)]
    controllers: bool,
    /// Print one JSON object instead of the line for the shell
    #[arg(long)]
    json: bool,
}

impl ControlPlane {
    pub(crate) fn run(&self, place: &Place) -> Result<()> {
        prepare(&[Group::Cluster])?;
        let plan = Plan::without_nodes(self.family);
        clear(place)?;
        let mut api = fabric::up(place, &plan)?;
        control::ready(place, &mut api)?;
        if self.controllers {
            control::start_controller_manager(place, &plan)?;
            until("the default ServiceAccount", || {
                exists(place, "serviceaccount/default")
            })?;
        }
        print(place, &plan, self.json);
        Ok(())
    }
}

fn prepare(groups: &[Group]) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a cluster needs root: its nodes are namespaces");
    }
    setup::ensure(groups)?;
    programs::CLUSTER.build()
}

/// Removes what an earlier run left.
fn clear(place: &Place) -> Result<()> {
    fabric::refuse_strangers(place)?;
    down::cluster(place).context("removing the cluster that was there")
}

fn up(place: &Place, plan: &Plan, archive: &Path) -> Result<()> {
    step("control plane, nodes");
    let mut api = fabric::up(place, plan)?;
    // What the nodes are told to run waits for them.
    let control = || {
        control::ready(place, &mut api)?;
        control::start_controller_manager(place, plan)?;
        control::start_scheduler(place)?;
        dns::deploy(place, plan)?;
        cni::deploy(place, plan)?;
        balancer::start(place, plan)
    };
    let nodes = || {
        on_all(place, plan, |machine| {
            machine.install()?;
            machine.power_on()?;
            load_on(machine, archive)?;
            cni::image(plan).map_or(Ok(()), |image| load_on(machine, &image))
        })
    };
    both(control, nodes)?;
    step("kubelets, pods' network");
    on_all(place, plan, |machine| machine.start_kubelet())?;
    cni::connect(place, plan)?;
    on_all(place, plan, |machine| machine.start_proxy())?;
    until("the default ServiceAccount", || {
        exists(place, "serviceaccount/default")
    })?;
    if plan.cni == Cni::None {
        return Ok(());
    }
    wait(place, &["wait", "--for=condition=Ready", "node", "--all"])?;
    if plan.proxy().is_kube_proxy() {
        on_all(place, plan, wait_for_proxy)?;
    }
    if plan.proxy() != Proxy::None {
        wait(
            place,
            &[
                "rollout",
                "status",
                "deployment/coredns",
                "--namespace=kube-system",
            ],
        )?;
    }
    Ok(())
}

/// Does two things at a time.
fn both(one: impl FnOnce() -> Result<()> + Send, other: impl FnOnce() -> Result<()>) -> Result<()> {
    thread::scope(|scope| {
        let one = scope.spawn(one);
        let other = other();
        end(one)?;
        other
    })
}

/// What a thread came to; its panic is its parent's.
fn end(thread: thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Does something on every node at a time.
fn on_all(place: &Place, plan: &Plan, work: impl Fn(&Machine<'_>) -> Result<()> + Sync) -> Result<()> {
    let work = &work;
    let failures: Vec<_> = thread::scope(|scope| {
        let nodes = plan.nodes().map(|node| {
            let machine = Machine { place, plan, node };
            scope.spawn(move || work(&machine).with_context(|| format!("node {node}")))
        });
        let threads: Vec<_> = nodes.collect();
        threads
            .into_iter()
            .filter_map(|thread| end(thread).err())
            .collect()
    });
    failures.into_iter().next().map_or(Ok(()), Err)
}

/// Puts an archive's images on all nodes.
pub(crate) fn load(place: &Place, plan: &Plan, archive: &Path) -> Result<()> {
    on_all(place, plan, |machine| load_on(machine, archive))
}

fn load_on(machine: &Machine<'_>, archive: &Path) -> Result<()> {
    // The node need not see the file.
    let file = File::open(archive).with_context(|| format!("opening {}", archive.display()))?;
    let mut import = machine.ctr()?;
    let done = import
        .args(["images", "import", "-"])
        .stdin(Stdio::from(file))
        .output()
        .context("cannot start ctr")?;
    if !done.status.success() {
        let complaint = String::from_utf8_lossy(&done.stderr);
        bail!("importing {}: {}", archive.display(), complaint.trim());
    }
    Ok(())
}

fn wait_for_proxy(machine: &Machine<'_>) -> Result<()> {
    until("kube-proxy", || {
        let healthy = machine
            .inside("curl")
            .and_then(|mut curl| output(curl.args(["--silent", "--fail", "http://127.0.0.1:10256/healthz"])));
        healthy.is_ok()
    })
}

fn exists(place: &Place, object: &str) -> bool {
    output(kubectl(place).args(["get", object])).is_ok()
}

fn wait(place: &Place, words: &[&str]) -> Result<()> {
    output(kubectl(place).args(words).arg("--timeout=120s")).map(drop)
}

/// Pulls a node's plug, switches it on and waits until it is back.
pub(crate) fn power_cycle(place: &Place, plan: &Plan, node: Node) -> Result<()> {
    let machine = Machine { place, plan, node };
    machine.power_off()?;
    machine.power_on()?;
    machine.start_kubelet()?;
    cni::restore_routes(place, plan, node)?;
    machine.start_proxy()?;
    let boot = machine.boot_id()?;
    until(&format!("the return of node {node}"), || {
        let path =
            "--output=jsonpath={.status.nodeInfo.bootID} {.status.conditions[?(@.type==\"Ready\")].status}";
        output(kubectl(place).args(["get", "node", &node.to_string(), path]))
            .is_ok_and(|text| plan.cni == Cni::None || text == format!("{boot} True"))
    })
}

fn print(place: &Place, plan: &Plan, json: bool) {
    if json {
        println!("{}", described(place, plan));
        return;
    }
    println!("export KUBECONFIG={}", place.kubeconfig().display());
    if std::io::stderr().is_terminal() {
        eprintln!("kubectl is {}", programs::program("kubectl").display());
    }
}

/// What a program needs to know of a cluster.
pub(crate) fn described(place: &Place, plan: &Plan) -> Value {
    let nodes = plan.nodes().map(|node| {
        let machine = Machine { place, plan, node };
        let addresses: Vec<_> = plan.layouts().iter().map(|layout| layout.node(node)).collect();
        json!({
            "name": node.to_string(), "addresses": addresses, "namespace": machine.name(), "process": machine.init().ok(),
        })
    });
    json!({
        "name": place.to_string(),
        "version": programs::version(),
        "plan": plan,
        "kubeconfig": place.kubeconfig(),
        "fabric": {"namespace": place.fabric(), "bridge": fabric::BRIDGE, "kubeconfig": place.fabric_kubeconfig()},
        "kubectl": programs::program("kubectl"),
        "nodes": nodes.collect::<Vec<_>>(),
        "logs": place.logs(),
    })
}
