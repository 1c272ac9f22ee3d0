//! `cargo xtask bench`: comparisons with real peers.
//!
//! Each bench is a bench target of the package `tests`, optimised, which prints its own table and writes its own report;
//! here the product is built as it is shipped, and the reports are put together.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::build::{self, Build, StaticBinaries};
use crate::process::{self, cargo, run, step};
use crate::setup::{self, Group};
use crate::{cluster, workspace};

/// Compare with real peers: bare devices, the kernel's own forwarding, the reference plugins
///
/// Contenders take turns within each round, so that what else the machine does meets all of them alike. Prints medians
/// with their spread, ratios (more is better) and what each ought to be at least. A goal that is missed is a row that says
/// so; the exit status is 0 nevertheless. Needs root; works inside network namespaces of its own.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask bench
          Everything
  cargo xtask bench pod-path --rounds 15 --json pod-path.json
          One bench with more rounds, for the record
  cargo xtask bench service-scale -- --services 10,1000
          A small one, for a trial")]
pub(crate) struct Bench {
    /// What to measure; everything if nothing is named
    #[arg(value_enum, value_name = "NAME")]
    names: Vec<Name>,
    /// Rounds to take medians over
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// A share of what is measured at full scale, for a trial: 0.2 is a fifth of the objects
    #[arg(long, value_name = "SHARE", value_parser = share)]
    scale: Option<f64>,
    /// Also write the reports to a file: one object, or a list if there are several
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure what `cargo xtask build --release` makes instead of the image's static binaries: built sooner, for a trial
    #[arg(long)]
    trial: bool,
    /// More for the bench programs, for a trial: `--services 10,1000`, `--only TEXT`, `--scale SHARE`
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Pod to pod on one node and across two, and nanoseconds a packet in the program itself
    PodPath,
    /// Attaching and detaching pods, one after the other and 110 at once
    CniAdd,
    /// The agent of one node in a cluster of thousands, beside kube-proxy on the same API server
    AgentScale,
    /// Connections a second through a ClusterIP, against the pod's address and kube-proxy
    ServiceConnect,
    /// From a changed EndpointSlice to the first connection to the new endpoint, beside kube-proxy
    ProgramLatency,
    /// What many Services cost: the look-up of one, and their way into the kernel
    ServiceScale,
    /// What the agent holds in memory with many Services, beside kube-proxy on the same API server
    Memory,
    /// What connections through Services notice while their pods, the agents and other Services are exchanged
    ServiceChurn,
    /// Translated ports until there are none, and what each costs
    SnatFill,
    /// NodePort traffic turned round by XDP, against a program that only swaps addresses; a flood of SYNs at it
    Xdp,
}

impl Name {
    /// It has a real API server, and kube-proxy.
    fn needs_kubernetes(self) -> bool {
        !matches!(self, Self::PodPath | Self::CniAdd | Self::SnatFill | Self::Xdp)
    }

    /// The name of the bench target.
    fn target(self) -> String {
        let value = self.to_possible_value();
        value.map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

impl Bench {
    pub(crate) fn run(&self) -> Result<()> {
        let names = if self.names.is_empty() {
            Name::value_variants()
        } else {
            &self.names
        };
        setup::ensure(&[Group::Build, Group::Test])?;
        if names.iter().any(|name| name.needs_kubernetes()) {
            setup::ensure(&[Group::Cluster])?;
        }
        if names.contains(&Name::ServiceChurn) {
            build::next_release()?;
        }
        Build::default().programs()?;
        let binaries = if self.trial {
            build::release()?
        } else {
            // What a user runs.
            StaticBinaries::build()?
        };
        build::bench_programs()?;
        let folder = workspace::target().join("bench");
        std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let mut reports = Vec::new();
        for name in names {
            reports.push(self.measure(*name, &binaries, &folder)?);
        }
        self.json.as_deref().map_or(Ok(()), |path| write(reports, path))
    }

    fn measure(&self, name: Name, binaries: &StaticBinaries, folder: &Path) -> Result<serde_json::Value> {
        let target = name.target();
        let report = folder.join(&target).with_extension("json");
        step(format_args!("bench {target}, {} rounds", self.rounds));
        let mut bench = cargo();
        bench.args(["bench", "--package", "cni-tests", "--bench", &target, "--"]);
        bench
            .args(["--rounds", &self.rounds.to_string(), "--json"])
            .arg(&report)
            .args(&self.arguments);
        if let Some(share) = self.scale {
            bench.args(["--scale", &share.to_string()]);
        }
        bench.env("PATH", process::path()).envs([
            ("MILLRACE_BIN", binaries.agent.clone()),
            ("MILLRACE_CNI_BIN", binaries.plugin.clone()),
            ("MILLRACE_NEXT_BIN", workspace::next_binary("millrace")),
            ("MILLRACE_BPF_OBJECT", workspace::bpf_object()),
            ("MILLRACE_BENCH_OBJECT", workspace::bpf_bench_object()),
        ]);
        if name.needs_kubernetes() {
            bench.env("MILLRACE_KUBERNETES_PROGRAMS", cluster::programs()?);
        }
        run(&mut bench)?;
        let text = std::fs::read(&report).with_context(|| format!("reading {}", report.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", report.display()))
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| "not a share like 0.2, above 0 and at most 1".to_owned())
}

/// One report as it is, several as a list.
fn together(mut reports: Vec<serde_json::Value>) -> serde_json::Value {
    match (reports.len(), reports.pop()) {
        (1, Some(only)) => only,
        (_, last) => {
            reports.extend(last);
            reports.into()
        }
    }
}

fn write(reports: Vec<serde_json::Value>, path: &Path) -> Result<()> {
    let text = format!("{:#}\n", together(reports));
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_report_is_an_object_and_several_are_a_list() {
        assert_eq!(together(vec![json!({ "bench": "a" })]), json!({ "bench": "a" }));
        let two = vec![json!({ "bench": "a" }), json!({ "bench": "b" })];
        assert_eq!(together(two), json!([{ "bench": "a" }, { "bench": "b" }]));
    }

    #[test]
    fn a_share_is_a_part_of_the_whole() {
        assert_eq!(share("0.2"), Ok(0.2));
        assert_eq!(share("1"), Ok(1.0));
        for bad in ["0", "-1", "1.5", "x", "NaN"] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_bench_has_its_target() {
        for name in Name::value_variants() {
            let target = workspace::root().join("tests/benches").join(name.target());
            assert!(target.join("main.rs").is_file(), "{}", target.display());
        }
    }
}
