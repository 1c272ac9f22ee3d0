//! Upstream's own specs against a cluster.

mod report;
mod results;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::images::{AGNHOST, INJECTOR, TOOLBOX};
use super::namespace::inside;
use super::node::{Machine, PAUSE};
use super::place::Place;
use super::plan::Plan;
use super::programs::{self, program};
use crate::process::{command, output, step, stream};
use crate::test::Tally;
use crate::workspace;
use report::Known;
use results::{Contender, List};

const CONFORMANCE: &str = r"\[sig-network\].*\[Conformance\]";
/// How many those are in the release of Kubernetes that is built here.
const SPECS: u64 = 47;
/// What needs more than a plain cluster, or breaks it for others that run at the time.
const SPECIAL: &str = r"\[Slow\]|\[Serial\]|\[Disruptive\]|\[Feature:|\[Alpha\]|\[Beta\]";

const NETWORK: &str = r"\[sig-network\]";
/// Of the list of results: the conformance specs, which are run for themselves, measurements, and network policies, which
/// no contender enforces.
const UNFIT: &str = r"\[Conformance\]|\[Feature:(NetworkPolicy|PerformanceDNS|Networking-Performance)\]";

const PROCESSES: u8 = 4;

#[derive(Debug, Args)]
pub(crate) struct E2e {
    /// Specs whose name matches
    #[arg(long, value_name = "REGEX", default_value = CONFORMANCE)]
    focus: String,
    /// Specs that are left out all the same
    #[arg(long, value_name = "REGEX", default_value = SPECIAL)]
    skip: String,
    /// Every network spec of the list tests/fixtures/e2e-specs.tsv that can run here, in place of --focus and --skip
    #[arg(long, conflicts_with_all = ["focus", "skip"])]
    whole: bool,
    /// Write what becomes of the specs into the list, in the column of the cluster's proxy
    #[arg(long, conflicts_with = "compare")]
    record: bool,
    /// Fail where a spec's result is another one than the list's, or one of the list is chosen and does not run
    #[arg(long)]
    compare: bool,
    /// Where the results are written, as JUnit XML
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// How many specs at a time
    #[arg(long, default_value_t = PROCESSES, value_parser = clap::value_parser!(u8).range(1..=32))]
    processes: u8,
}

/// Upstream's network conformance specs, as many at a time as this machine takes.
pub(crate) fn conformance(place: &Place) -> Result<Tally> {
    let e2e = E2e {
        focus: CONFORMANCE.to_owned(),
        skip: SPECIAL.to_owned(),
        whole: false,
        record: false,
        compare: false,
        report: None,
        processes: PROCESSES,
    };
    let (mut tally, status) = e2e.ginkgo(place)?;
    if let Err(error) = finished(&tally, status) {
        tally += Tally::failure(error.to_string());
    }
    Ok(complete(tally))
}

/// Ginkgo ends badly where it names a spec that failed, and else only if the run was broken off.
fn finished(tally: &Tally, status: ExitStatus) -> Result<()> {
    if !status.success() && tally.failed == 0 {
        bail!("the run was broken off: ginkgo ended with {status} and named no spec that failed");
    }
    Ok(())
}

/// A suite that ran in part has shown little, however much of it passed.
fn complete(mut tally: Tally) -> Tally {
    let ran = tally.passed + tally.failed;
    if ran != SPECS {
        tally += Tally::failure(format!("{ran} conformance specs ran instead of {SPECS}"));
    }
    tally
}

impl E2e {
    pub(crate) fn run(&self, place: &Place) -> Result<ExitCode> {
        let contender = self.contender(&place.plan()?)?;
        let (tally, status) = self.ginkgo(place)?;
        println!("{} passed, {} failed", tally.passed, tally.failed);
        finished(&tally, status)?;
        let good = match contender {
            Some(contender) => self.compare(contender, &json_report(place))?,
            None => tally.failed == 0 && tally.passed > 0,
        };
        Ok(if good {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    /// In whose column of the list the results belong, if anybody asks for it.
    fn contender(&self, plan: &Plan) -> Result<Option<Contender>> {
        (self.record || self.compare).then(|| plan.try_into()).transpose()
    }

    /// Records or compares the results of a run; whether they are as they should be.
    fn compare(&self, contender: Contender, report: &Path) -> Result<bool> {
        let ran = report::ran(report)?;
        let Known { all, chosen } = known_specs(&self.selection())?;
        let ran: Vec<_> = ran.into_iter().filter(|ran| all.contains(&ran.spec)).collect();
        if ran.is_empty() {
            bail!("no spec of the list ran");
        }
        let mut list = List::read()?;
        if self.record {
            list.record(contender, &all, &ran);
            list.write()?;
            step(format_args!("written to {}", results::path().display()));
            return Ok(true);
        }
        // Of the whole list nothing may be missing, whatever was chosen of it.
        let due = |spec: &str| self.whole || chosen.contains(spec);
        let differences = list.differences(contender, &ran, due);
        differences.iter().for_each(|difference| println!("{difference}"));
        Ok(differences.is_empty())
    }

    /// Which specs, in ginkgo's words.
    fn selection(&self) -> [String; 2] {
        if self.whole {
            selection(NETWORK, UNFIT)
        } else {
            selection(&self.focus, &self.skip)
        }
    }

    fn ginkgo(&self, place: &Place) -> Result<(Tally, ExitStatus)> {
        let plan = place.plan()?;
        programs::E2E.build()?;
        let wanted = output(command(program("e2e.test")).arg("--list-images"))?;
        plan.nodes().try_for_each(|node| {
            name_images(
                &Machine {
                    place,
                    plan: &plan,
                    node,
                },
                &wanted,
            )
        })?;
        let mut ginkgo = inside(&place.fabric(), program("ginkgo"));
        ginkgo.arg(format!("--procs={}", self.processes));
        ginkgo.args(["--no-color", "--timeout=2h"]);
        ginkgo.args(self.selection());
        tell(&mut ginkgo, &json_report(place))?;
        ginkgo.arg(program("e2e.test")).arg("--");
        ginkgo.args(self.suite_arguments(place, &plan)?);
        let mut tally = Tally::default();
        let status = stream(&mut ginkgo, |line| read(&mut tally, line))?;
        Ok((tally, status))
    }

    fn suite_arguments(&self, place: &Place, plan: &Plan) -> Result<Vec<String>> {
        let mut arguments = vec![
            format!("--kubeconfig={}", place.fabric_kubeconfig().display()),
            format!("--kubectl-path={}", program("kubectl").display()),
            format!("--num-nodes={}", plan.nodes),
            "--provider=skeleton".to_owned(),
            "--disable-log-dump".to_owned(),
        ];
        if let Some(folder) = &self.report {
            let folder = std::path::absolute(folder).context("the folder for the report")?;
            arguments.push(format!("--report-dir={}", folder.display()));
        }
        Ok(arguments)
    }
}

/// Where Ginkgo writes what became of each spec.
fn json_report(place: &Place) -> PathBuf {
    place.folder().join("e2e.json")
}

fn selection(focus: &str, skip: &str) -> [String; 2] {
    [format!("--focus={focus}"), format!("--skip={skip}")]
}

/// Says where the report belongs. An earlier one goes: it must not pass for this run's if this one writes none.
fn tell(ginkgo: &mut Command, report: &Path) -> Result<()> {
    workspace::removed(fs::remove_file(report), report)?;
    let (folder, file) = (report.parent(), report.file_name());
    let [folder, file] = [folder.map(Path::as_os_str), file].map(|part| part.unwrap_or_default().display());
    ginkgo.args([format!("--output-dir={folder}"), format!("--json-report={file}")]);
    Ok(())
}

/// The specs that belong into the list, and those that are chosen.
fn known_specs(selection: &[String]) -> Result<Known> {
    programs::E2E.build()?;
    let report = workspace::target().join("e2e-specs.json");
    let mut ginkgo = command(program("ginkgo"));
    ginkgo.args(["--dry-run", "--no-color"]).args(selection);
    tell(&mut ginkgo, &report)?;
    output(
        ginkgo
            .arg(program("e2e.test"))
            .args(["--", "--provider=skeleton"]),
    )?;
    let mut known = report::known(&report)?;
    known
        .all
        .retain(|name| name.contains("[sig-network]") && !name.contains("[Conformance]"));
    Ok(known)
}

/// Whether the list holds every spec that upstream has and none besides, each with its reason if it needs one.
pub(crate) fn check_list() -> Result<Tally> {
    let list = List::read()?;
    let mut faults = list.faults();
    let known = known_specs(&selection(NETWORK, ""))?;
    faults.extend(list.strangers(&known.all));
    if faults.is_empty() {
        return Ok(Tally::success());
    }
    let mut tally = Tally::default();
    for fault in faults {
        println!("{}: {fault}", results::path().display());
        tally += Tally::failure(fault);
    }
    Ok(tally)
}

/// Gives the images that are on a node the names that the suite asks for.
fn name_images(machine: &Machine<'_>, wanted: &str) -> Result<()> {
    for (name, image) in wanted.lines().filter_map(|name| Some((name, stands_for(name)?))) {
        output(machine.ctr()?.args(["images", "tag", "--force", image, name]))?;
    }
    Ok(())
}

/// Which of our images has what is in one of upstream's.
fn stands_for(name: &str) -> Option<&'static str> {
    let (path, _) = name.rsplit_once(':')?;
    match path.rsplit('/').next()? {
        "agnhost" | "glibc-dns-testing" => Some(AGNHOST),
        "busybox" => Some(TOOLBOX),
        "regression-issue-74839" => Some(INJECTOR),
        "pause" => Some(PAUSE),
        _ => None,
    }
}

/// Ginkgo's closing line: `FAIL! -- 46 Passed | 1 Failed | 0 Pending | 6500 Skipped`. The failed ones are named above it.
fn read(tally: &mut Tally, line: &str) {
    let line = line.trim();
    if let Some(name) = line.strip_prefix("[FAIL] ") {
        *tally += Tally::failure(name.to_owned());
    }
    let count = |what: &str| {
        let before = line
            .split(what)
            .next()
            .filter(|before| before.len() < line.len())?;
        before.split_whitespace().next_back()?.parse::<u64>().ok()
    };
    if let Some(passed) = count(" Passed |") {
        tally.passed = passed;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn ginkgos_results_are_read() {
        let mut tally = Tally::default();
        read(
            &mut tally,
            "  [FAIL] [sig-network] Proxy version v1 [It] should proxy",
        );
        read(
            &mut tally,
            "FAIL! -- 46 Passed | 1 Failed | 0 Pending | 6500 Skipped",
        );
        assert_eq!((tally.passed, tally.failed), (46, 1));
    }

    #[test]
    fn a_bad_end_without_a_failed_spec_means_that_the_run_was_broken_off() {
        let ended = |tally, code| finished(tally, ExitStatus::from_raw(code)).is_ok();
        let good = Tally::success();
        assert_eq!(
            [0, 1 << 8, 9].map(|code| ended(&good, code)),
            [true, false, false]
        );
        assert!(ended(&Tally::failure("a"), 1 << 8));
    }

    #[test]
    fn an_earlier_report_does_not_outlive_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        let report = folder.path().join("e2e.json");
        fs::write(&report, "[]").unwrap();
        for _ in 0..2 {
            tell(&mut command("ginkgo"), &report).unwrap();
            assert!(!report.exists());
        }
    }

    #[test]
    fn another_number_of_specs_is_a_failure() {
        let ran = |passed, failed| {
            let mut tally = Tally::default();
            for _ in 0..failed {
                tally += Tally::failure("a");
            }
            tally.passed = passed;
            complete(tally).failed
        };
        assert_eq!([ran(47, 0), ran(46, 1)], [0, 1]);
        assert_eq!([ran(46, 0), ran(0, 0), ran(48, 0)], [1, 1, 1]);
    }

    #[test]
    fn upstreams_images_are_stood_for_by_ours() {
        assert_eq!(
            stands_for("registry.k8s.io/e2e-test-images/agnhost:2.63.0"),
            Some(AGNHOST)
        );
        assert_eq!(stands_for("registry.k8s.io/pause:3.10.2"), Some(PAUSE));
        assert_eq!(stands_for("registry.k8s.io/e2e-test-images/nginx:1"), None);
    }
}
