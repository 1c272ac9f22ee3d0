//! Counting results.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::AddAssign;

/// What a test says that did not run; its name and the reason follow. `tests` writes it.
const NOT_RUN: &str = "NOT RUN: ";
/// The same of one that runs in virtual machines.
const LEFT: &str = "NOT RUN, layer vm does: ";

/// What one layer came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// What failed, to be repeated where a reader looks first: at the end.
    pub(super) failures: Vec<Failure>,
    /// What was skipped, and why.
    pub(super) skips: Vec<Skip>,
    /// Tests that passed, by name.
    pub(super) ran: BTreeSet<String>,
    /// What tests said of each verified program: kernel, configuration, program, count.
    pub(crate) verified: Vec<String>,
    /// Tests that said since the last summary that they did not run: it has them among those that passed.
    pub(super) unsummed: u64,
    /// The failed test whose output is being read.
    pub(super) telling: Option<usize>,
    /// The lines that are read are a panic's message.
    pub(super) panics: bool,
}

/// Of a message more than this is too much for a summary.
const LINES: usize = 8;
const CHARACTERS: usize = 500;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) name: String,
    /// With what words it panicked.
    pub(super) why: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Skip {
    pub(super) name: String,
    pub(super) reason: String,
    /// Layer `vm` is to run it.
    pub(super) left: bool,
}

impl Failure {
    pub(super) fn of(what: impl Into<String>) -> Self {
        Self {
            name: what.into(),
            why: Vec::new(),
        }
    }

    fn add(&mut self, line: &str) {
        if self.why.len() < LINES {
            self.why.push(line.chars().take(CHARACTERS).collect());
        }
    }
}

impl Skip {
    fn parse(line: &str) -> Option<Self> {
        let said = |mark| line.split_once(mark).map(|(_, rest)| rest);
        let (left, rest) = match (said(LEFT), said(NOT_RUN)) {
            (Some(rest), _) => (true, rest),
            (None, rest) => (false, rest?),
        };
        let (name, reason) = rest.split_once(": ")?;
        Some(Self {
            name: name.to_owned(),
            reason: reason.to_owned(),
            left,
        })
    }
}

impl Tally {
    pub(crate) fn success() -> Self {
        Self {
            passed: 1,
            ..Self::default()
        }
    }

    pub(crate) fn skipped(name: &str, reason: String) -> Self {
        let skip = Skip {
            name: name.to_owned(),
            reason,
            left: false,
        };
        Self {
            skipped: 1,
            skips: vec![skip],
            ..Self::default()
        }
    }

    pub(crate) fn failure(what: impl Into<String>) -> Self {
        Self {
            failed: 1,
            failures: vec![Failure::of(what)],
            ..Self::default()
        }
    }

    /// Says where these tests ran, in the names of those that failed.
    pub(crate) fn on(mut self, place: &impl fmt::Display) -> Self {
        self.failures
            .iter_mut()
            .for_each(|failure| failure.name += &format!(" ({place})"));
        self
    }

    /// Takes up one line of a test program's output.
    pub(crate) fn read(&mut self, line: &str) {
        // These two may stand behind the name of a test.
        if let Some((_, verified)) = line.split_once("verified: ") {
            self.verified.push(verified.to_owned());
        } else if let Some(skip) = Skip::parse(line) {
            self.skips.push(skip);
            self.unsummed += 1;
        } else if let Some(summary) = line.strip_prefix("test result: ") {
            let not_run = std::mem::take(&mut self.unsummed);
            self.passed += count(summary, "passed").saturating_sub(not_run);
            self.failed += count(summary, "failed");
            self.skipped += count(summary, "ignored") + not_run;
        } else if let Some((name, outcome)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "))
        {
            match outcome {
                "ok" => drop(self.ran.insert(name.to_owned())),
                "FAILED" => self.failures.push(Failure::of(name)),
                _ => {}
            }
        } else {
            self.listen(line);
        }
    }

    /// For the panics in what a failed test printed, which comes behind the list of all outcomes.
    fn listen(&mut self, line: &str) {
        let name = line.strip_prefix("---- ");
        if let Some(name) = name.and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.telling = self.failures.iter().rposition(|failure| failure.name == name);
            self.panics = false;
            return;
        }
        if line == "failures:" {
            self.telling = None;
        }
        let Some(failure) = self.telling.and_then(|at| self.failures.get_mut(at)) else {
            return;
        };
        if line.starts_with("thread '") {
            self.panics = true;
        } else if line.starts_with("stack backtrace:") || line.starts_with("note: ") {
            self.panics = false;
        }
        if self.panics && !line.is_empty() {
            failure.add(line);
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
        self.skips.extend(other.skips);
        self.ran.extend(other.ran);
        self.verified.extend(other.verified);
        self.unsummed += other.unsummed;
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
        tally.read("test a::d has been running for over 60 seconds");
        tally.read("verified: 6.1 bare from_pod 9");
        tally.read("test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out");
        let expected = Tally {
            passed: 15,
            failed: 1,
            skipped: 1,
            failures: vec![Failure::of("a::b")],
            ran: BTreeSet::from(["a::c".into()]),
            verified: vec!["6.1 bare from_pod 9".into()],
            ..Tally::default()
        };
        assert_eq!(tally, expected);
    }

    #[test]
    fn a_failure_is_told_with_the_words_of_its_panics() {
        let mut tally = Tally::default();
        let lines = "\
test a::b ... ok
test a::c ... FAILED

failures:

---- a::c stdout ----
a line of the test's own
thread '<unnamed>' (7) panicked at a.rs:84:13:
assertion failed
  left: 1
stack backtrace:
   0: begin_unwind
thread 'a::c' (6) panicked at a.rs:1:1:
called `Result::unwrap()`
note: run with `RUST_BACKTRACE=1`

failures:
    a::c
";
        lines.lines().for_each(|line| tally.read(line));
        let why = [
            "thread '<unnamed>' (7) panicked at a.rs:84:13:",
            "assertion failed",
            "  left: 1",
            "thread 'a::c' (6) panicked at a.rs:1:1:",
            "called `Result::unwrap()`",
        ];
        let expected = Failure {
            name: "a::c".into(),
            why: why.map(String::from).into(),
        };
        assert_eq!(tally.failures, [expected]);
    }

    #[test]
    fn a_test_that_says_that_it_did_not_run_has_not_passed() {
        let mut tally = Tally::default();
        for line in [
            "NOT RUN, layer vm does: bonds::a: there are no bonds: Err(ip: no)",
            "test bonds::a ... ok",
            // As a single thread prints it.
            "test bonds::b ... NOT RUN: main: it needs root",
            "ok",
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
            "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
        ] {
            tally.read(line);
        }
        assert_eq!((tally.passed, tally.failed, tally.skipped), (5, 0, 2));
        let skip = |name: &str, reason: &str, left| Skip {
            name: name.into(),
            reason: reason.into(),
            left,
        };
        let expected = [
            skip("bonds::a", "there are no bonds: Err(ip: no)", true),
            skip("main", "it needs root", false),
        ];
        assert_eq!(tally.skips, expected);
    }
}
