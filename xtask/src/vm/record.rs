//! `cargo xtask vm record`: the verified instructions of every program, by kernel and configuration.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::guest::{After, Job};
use super::kernel::{Series, series};
use super::{DEFAULT_LIMIT, on_each};
use crate::test::Layer;
use crate::workspace;

/// Tells the verifier layer to print and not to compare.
const VARIABLE: (&str, &str) = ("MILLRACE_RECORD", "1");

fn fixture() -> PathBuf {
    workspace::root().join("tests/fixtures/verified-instructions.txt")
}

/// Counts by release, configuration and program.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts(BTreeMap<[String; 3], u32>);

impl Counts {
    fn parse<'a>(lines: impl Iterator<Item = &'a str>) -> Self {
        let counts = lines.filter_map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            let key = [words.next()?, words.next()?, words.next()?];
            Some((key, words.next()?.parse().ok()?))
        });
        Self(counts.collect())
    }

    /// Takes over what was measured. What stood there of the same series is of an earlier release.
    fn replace(&mut self, measured: Self) {
        let anew = |release: &str| {
            measured
                .0
                .keys()
                .any(|[other, ..]| series(other) == series(release))
        };
        self.0.retain(|[release, ..], _| !anew(release));
        self.0.extend(measured.0);
    }

    fn text(&self) -> Result<String> {
        let mut text = String::from(
            "# kernel  configuration  program  verified instructions (`cargo xtask vm record` writes this file)\n",
        );
        for ([kernel, configuration, program], count) in &self.0 {
            writeln!(text, "{kernel:<30} {configuration:<24} {program:<12} {count}")?;
        }
        Ok(text)
    }
}

/// Measures on this kernel and on all supported ones, and writes the file.
pub(super) fn all() -> Result<()> {
    let arguments = ["--nocapture".to_owned()];
    let mut tally = Layer::Verifier.run_with(&arguments, &[VARIABLE])?;
    let job =
        Job::test(&Layer::Verifier.program()?, &arguments, After::PowerOff).with(VARIABLE.0, VARIABLE.1);
    let limit = Duration::from_secs(DEFAULT_LIMIT);
    tally += on_each(&Series::SUPPORTED, &job, "recording", limit)?;
    ensure!(
        tally.failed == 0,
        "not every program was verified; nothing is recorded"
    );
    let path = fixture();
    let before = fs::read_to_string(&path).unwrap_or_default();
    let mut counts = Counts::parse(before.lines().filter(|line| !line.starts_with('#')));
    counts.replace(Counts::parse(tally.verified.iter().map(String::as_str)));
    fs::write(&path, counts.text()?).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_release_takes_the_place_of_its_series() {
        let mut counts = Counts::parse(["6.1.0-49 dual from_pod 7", "6.18.5 dual from_pod 8"].into_iter());
        counts.replace(Counts::parse(["6.1.0-50 dual from_pod 9"].into_iter()));
        let expected = ["6.1.0-50 dual from_pod 9", "6.18.5 dual from_pod 8"];
        assert_eq!(counts, Counts::parse(expected.into_iter()));
        let text = counts.text().unwrap();
        assert_eq!(Counts::parse(text.lines().skip(1)), counts);
    }
}
