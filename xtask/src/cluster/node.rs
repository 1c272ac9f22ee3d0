//! A node: a machine's worth of namespaces, with containerd and a kubelet of its own.
//!
//! Its process 1 ([`mod@boot`]) shows the machine's files with the node's own places under their ordinary names, so that an
//! ordinary DaemonSet with ordinary hostPaths works. When that process is killed everything in the node ends at once, which
//! serves as a clean end and as a power cut.

mod boot;
mod files;

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::daemon::Daemon;
use super::down::{self, hierarchies};
use super::place::Place;
use super::plan::{Node, Plan};
use super::programs::program;
use super::{fabric, namespace};
use crate::process::output;

pub(crate) use boot::{CGROUP, run as boot};
pub(crate) use files::{CNI_CONFIGURATION, PAUSE};

/// The cgroup of a node's own daemons, below the node's.
const DAEMONS: &str = "host";
const KUBELET: &str = "kubelet";
const PROXY: &str = "kube-proxy";

/// A node of a cluster that is up or comes up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) place: &'a Place,
    pub(crate) plan: &'a Plan,
    pub(crate) node: Node,
}

impl Machine<'_> {
    /// Of the network namespace and of the cgroup.
    pub(crate) fn name(&self) -> String {
        self.place.node(self.node)
    }

    /// Where something of the node's own is kept that the node sees at `path`.
    pub(crate) fn disk(&self, path: &str) -> PathBuf {
        files::kept(&self.place.disk(self.node), path)
    }

    /// The files of a new node.
    pub(crate) fn install(&self) -> Result<()> {
        files::write(self)
    }

    /// Network, namespaces and containerd: everything that needs no API server.
    pub(crate) fn power_on(&self) -> Result<()> {
        fabric::join(self.place, self.plan, self.node)?;
        self.make_cgroups()?;
        let ready = boot::ready_file(self.place, self.node);
        // Left by the last time that it was on.
        let _ = fs::remove_file(&ready);
        let mut init = namespace::inside(&self.name(), "unshare");
        init.args(["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]);
        init.args(["--mount-proc", "--propagation", "private", "--"]);
        init.arg(std::env::current_exe().context("finding this program")?);
        init.args(["cluster", "--name", &self.place.to_string(), "boot"]);
        init.arg(self.node.number().to_string());
        self.join_cgroup(&mut init)?;
        Daemon::start(self.place, &format!("boot-{}", self.node), init)?.wait(|| ready.exists())?;
        let containerd = Path::new("containerd");
        self.start("containerd", containerd, &[])?
            .wait(|| self.ctr().and_then(|mut ctr| output(ctr.arg("version"))).is_ok())
    }

    /// Ends everything at once, as pulling the plug does. What is on the node's disk stays.
    pub(crate) fn power_off(&self) -> Result<()> {
        down::end(&self.name())?;
        fabric::leave(self.place, self.node)?;
        namespace::delete(&self.name())?;
        down::node_cgroups(&self.name())
    }

    /// Which boot this is: another one after every power cycle.
    pub(crate) fn boot_id(&self) -> Result<String> {
        let path = boot::boot_id_file(&self.place.disk(self.node));
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    pub(crate) fn start_kubelet(&self) -> Result<()> {
        let addresses = self.plan.list(|layout| layout.node(self.node).to_string());
        let arguments = [
            "--config=/etc/kubernetes/kubelet.json".to_owned(),
            "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig".to_owned(),
            format!("--hostname-override={}", self.node),
            format!(
                "--node-labels=topology.kubernetes.io/zone={}",
                self.plan.zone(self.node)
            ),
            format!("--node-ip={addresses}"),
            "--v=2".to_owned(),
        ];
        self.start(KUBELET, &program(KUBELET), &arguments).map(drop)
    }

    pub(crate) fn start_proxy(&self) -> Result<()> {
        if !self.plan.proxy().is_kube_proxy() {
            return Ok(());
        }
        let arguments = ["--config=/etc/kubernetes/kube-proxy.json", "--v=2"].map(str::to_owned);
        self.start(PROXY, &program(PROXY), &arguments).map(drop)
    }

    /// A daemon in all of the node's namespaces.
    fn start(&self, name: &str, program: &Path, arguments: &[String]) -> Result<Daemon> {
        let mut command = self.inside(program)?;
        command.args(arguments);
        Daemon::start(self.place, &format!("{name}-{}", self.node), command)
    }

    /// A command in all of the node's namespaces, and in the cgroup of its daemons. Its child is not the program: who enters a pid namespace forks.
    pub(crate) fn inside(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut enter = namespace::bare("nsenter");
        enter.args(["--target", &self.init()?.to_string()]);
        enter.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--wd=/", "--"]);
        enter.arg(program);
        self.join_cgroup(&mut enter)?;
        Ok(enter)
    }

    /// containerd's command line, on the kubelet's images and containers.
    pub(crate) fn ctr(&self) -> Result<Command> {
        let mut ctr = self.inside("ctr")?;
        ctr.args(["--namespace", "k8s.io"]);
        Ok(ctr)
    }

    /// The node's process 1, by its number outside.
    pub(crate) fn init(&self) -> Result<i32> {
        let processes = namespace::processes(&self.name())?;
        let is_first = |process: &i32| {
            let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
            is_first_of_a_node(&status)
        };
        let first = processes.into_iter().find(is_first);
        first.with_context(|| {
            format!(
                "node {} is off; switch it on with `cargo xtask cluster power-cycle {0}`",
                self.node
            )
        })
    }

    /// The kubelet wants its root in every hierarchy.
    fn make_cgroups(&self) -> Result<()> {
        for hierarchy in hierarchies() {
            let folder = hierarchy.join(self.name());
            fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
            // Of version 1: no process enters a cpuset before it has processors and memory.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let (from, to) = (hierarchy.join(file), folder.join(file));
                if let (Ok(all), true) = (fs::read(&from), to.exists()) {
                    fs::write(&to, all).with_context(|| format!("filling {}", to.display()))?;
                }
            }
        }
        let Some(folder) = self.daemons_cgroup() else {
            return Ok(());
        };
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))
    }

    /// In the hierarchy of version 2, in which the node's pods are, too: programs that are attached to the node's cgroup
    /// see both.
    fn daemons_cgroup(&self) -> Option<PathBuf> {
        Some(node_cgroup(&self.name())?.join(DAEMONS))
    }

    fn join_cgroup(&self, command: &mut Command) -> Result<()> {
        let Some(folder) = self.daemons_cgroup() else {
            return Ok(());
        };
        let path = folder.join("cgroup.procs");
        let mut file = OpenOptions::new()
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        // SAFETY: between fork and exec only write(2) is called, on a descriptor that is open, which is async-signal-safe.
        unsafe { command.pre_exec(move || file.write_all(b"0")) };
        Ok(())
    }
}

/// A node's cgroup in the hierarchy of version 2.
fn node_cgroup(name: &str) -> Option<PathBuf> {
    let unified = hierarchies()
        .into_iter()
        .find(|folder| folder.join("cgroup.controllers").exists());
    Some(unified?.join(name))
}

/// Whether a process is number 1 of a pid namespace directly below this machine's: containers are one level deeper.
fn is_first_of_a_node(status: &str) -> bool {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let inner = numbers.unwrap_or_default().split_whitespace().skip(1);
    inner.eq(["1"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_told_from_its_containers_by_the_depth_of_its_first_process() {
        assert!(is_first_of_a_node("Name:\txtask\nNSpid:\t4711\t1\n"));
        assert!(!is_first_of_a_node("NSpid:\t4712\t33\t1\n"));
        assert!(!is_first_of_a_node("NSpid:\t4710\n"));
    }
}
