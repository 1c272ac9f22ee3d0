//! Counting results and printing the closing table.

use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

/// What one layer came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// What failed, by name, to be repeated where a reader looks first: at the end.
    failures: Vec<String>,
    /// What tests said of each verified program: kernel, configuration, program, count.
    pub(crate) verified: Vec<String>,
}

impl Tally {
    pub(crate) fn success() -> Self {
        Self {
            passed: 1,
            ..Self::default()
        }
    }

    pub(crate) fn skipped() -> Self {
        Self {
            skipped: 1,
            ..Self::default()
        }
    }

    pub(crate) fn failure(what: impl Into<String>) -> Self {
        Self {
            failed: 1,
            failures: vec![what.into()],
            ..Self::default()
        }
    }

    /// Says where these tests ran, in the names of those that failed.
    pub(crate) fn on(mut self, place: &impl fmt::Display) -> Self {
        self.failures
            .iter_mut()
            .for_each(|failure| *failure = format!("{failure} ({place})"));
        self
    }

    /// Takes up one line of a test program's output.
    pub(crate) fn read(&mut self, line: &str) {
        // The first one may stand behind the name of its test.
        if let Some((_, verified)) = line.split_once("verified: ") {
            self.verified.push(verified.to_owned());
        } else if let Some(summary) = line.strip_prefix("test result: ") {
            self.passed += count(summary, "passed");
            self.failed += count(summary, "failed");
            self.skipped += count(summary, "ignored");
        } else if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
        self.verified.extend(other.verified);
    }
}

/// The number before `word` in `ok. 3 passed; 1 failed; 0 ignored; ...`.
fn count(summary: &str, word: &str) -> u64 {
    let mut words = summary.split([' ', ';', '.']).filter(|word| !word.is_empty());
    let mut before = words.next();
    for next in words {
        if next == word {
            return before.and_then(|number| number.parse().ok()).unwrap_or(0);
        }
        before = Some(next);
    }
    0
}

/// The closing table.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<(String, Tally, Duration)>,
}

impl Report {
    pub(crate) fn add(&mut self, layer: &str, tally: Tally, took: Duration) {
        self.rows.push((layer.to_owned(), tally, took));
    }

    pub(crate) fn passed(&self) -> bool {
        self.rows.iter().all(|(_, tally, _)| tally.failed == 0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sum = Tally::default();
        for failure in self.rows.iter().flat_map(|(_, tally, _)| &tally.failures) {
            writeln!(f, "failed: {failure}")?;
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
    fn summaries_of_several_programs_add_up() {
        let mut tally = Tally::default();
        tally.read(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.10s",
        );
        tally.read("test a::b ... FAILED");
        tally.read("test a::c ... ok");
        tally.read("verified: 6.1 bare from_pod 9");
        tally.read("test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out");
        let expected = Tally {
            passed: 15,
            failed: 1,
            skipped: 1,
            failures: vec!["a::b".into()],
            verified: vec!["6.1 bare from_pod 9".into()],
        };
        assert_eq!(tally, expected);
    }

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
}
