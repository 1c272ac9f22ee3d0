//! The closing table.

use std::fmt;
use std::time::Duration;

use super::tally::{Failure, Skip, Tally};

#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<(String, Tally, Duration)>,
}

impl Report {
    pub(crate) fn add(&mut self, layer: &str, tally: Tally, took: Duration) {
        self.rows.push((layer.to_owned(), tally, took));
    }

    /// Adds a failure for each test that a layer left to the machines and that none of them ran.
    pub(crate) fn settle(&mut self, machines: &str) {
        let Some((_, vm, _)) = self.rows.iter().find(|(layer, ..)| layer == machines) else {
            return;
        };
        let mut nowhere = Tally::default();
        for skip in self
            .skips()
            .filter(|skip| skip.left && !vm.ran.contains(&skip.name))
        {
            let what = format!("{}: left to layer `{machines}`, which did not pass it", skip.name);
            nowhere += Tally::failure(what);
        }
        if nowhere.failed > 0 {
            self.add("nowhere", nowhere, Duration::ZERO);
        }
    }

    fn skips(&self) -> impl Iterator<Item = &Skip> {
        self.rows.iter().flat_map(|(_, tally, _)| &tally.skips)
    }

    pub(crate) fn passed(&self) -> bool {
        self.rows.iter().all(|(_, tally, _)| tally.failed == 0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sum = Tally::default();
        for Skip { name, reason, left } in self.skips() {
            let by = if *left { " (layer `vm` runs it)" } else { "" };
            writeln!(f, "skipped: {name}: {reason}{by}")?;
        }
        for Failure { name, why } in self.rows.iter().flat_map(|(_, tally, _)| &tally.failures) {
            writeln!(f, "failed: {name}")?;
            why.iter().try_for_each(|line| writeln!(f, "    {line}"))?;
        }
        let width = self
            .rows
            .iter()
            .map(|(layer, ..)| layer.len())
            .max()
            .unwrap_or(0)
            .max("layer".len());
        writeln!(
            f,
            "\n{:width$}  {:>7}  {:>7}  {:>7}  {:>7}",
            "layer", "passed", "failed", "skipped", "seconds"
        )?;
        for (layer, tally, took) in &self.rows {
            let Tally {
                passed,
                failed,
                skipped,
                ..
            } = tally;
            let seconds = took.as_secs_f64();
            writeln!(
                f,
                "{layer:width$}  {passed:>7}  {failed:>7}  {skipped:>7}  {seconds:>7.1}"
            )?;
            sum.passed += passed;
            sum.failed += failed;
            sum.skipped += skipped;
        }
        write!(f, "\n{} passed, {} failed", sum.passed, sum.failed)?;
        if sum.skipped > 0 {
            write!(f, ", {} skipped", sum.skipped)?;
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_sum_and_failures_stand_above_the_table() {
        let mut report = Report::default();
        report.add(
            "lint",
            Tally {
                passed: 6,
                ..Tally::default()
            },
            Duration::from_millis(1234),
        );
        assert!(report.passed());
        assert!(report.to_string().ends_with("\n6 passed, 0 failed\n"));
        report.add(
            "netns",
            Tally {
                passed: 1,
                skipped: 2,
                ..Tally::failure("cni_02")
            },
            Duration::ZERO,
        );
        assert!(!report.passed());
        let text = report.to_string();
        assert!(text.starts_with("failed: cni_02\n"));
        assert!(
            text.contains("lint         6        0        0      1.2\n"),
            "{text}"
        );
        assert_eq!(text.lines().last(), Some("7 passed, 1 failed, 2 skipped"));
    }

    #[test]
    fn what_is_left_to_the_machines_must_have_passed_there() {
        let read = |lines: &[&str]| {
            let mut tally = Tally::default();
            lines.iter().for_each(|line| tally.read(line));
            tally
        };
        let netns = || {
            read(&[
                "NOT RUN, layer vm does: sctp::a: no SCTP",
                "test sctp::a ... ok",
                "test result: ok. 2 passed; 0 failed; 0 ignored",
            ])
        };
        let report = |vm: Option<&str>| {
            let mut report = Report::default();
            if let Some(line) = vm {
                report.add("vm", read(&[line]), Duration::ZERO);
            }
            report.add("netns", netns(), Duration::ZERO);
            report.settle("vm");
            report
        };
        assert!(report(Some("test sctp::a ... ok")).passed());
        assert!(report(None).passed(), "netns alone");
        let missing = report(Some("test sctp::b ... ok"));
        assert!(!missing.passed());
        let text = missing.to_string();
        assert!(text.starts_with("skipped: sctp::a: no SCTP (layer `vm` runs it)\nfailed: sctp::a: left"));
        assert_eq!(text.lines().last(), Some("1 passed, 1 failed, 1 skipped"));
    }
}
