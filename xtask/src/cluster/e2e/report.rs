//! What Ginkgo says of each spec, in its JSON report.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::results::Outcome;

/// One spec that was begun.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ran {
    pub(super) spec: String,
    pub(super) outcome: Outcome,
    /// Why it was left, in its own words.
    pub(super) words: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    /// `None` if it was not even begun.
    spec_reports: Option<Vec<Spec>>,
    /// Why it ended badly, apart from specs that failed.
    special_suite_failure_reasons: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    num_attempts: u32,
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: String,
}

impl Spec {
    fn is_one(&self) -> bool {
        self.leaf_node_type == "It"
    }

    fn name(&self) -> String {
        let mut words = self.container_hierarchy_texts.clone().unwrap_or_default();
        words.push(self.leaf_node_text.clone());
        words.join(" ")
    }

    /// `None` if nobody asked for it.
    fn ran(&self) -> Option<Ran> {
        if !self.is_one() || self.num_attempts == 0 {
            return None;
        }
        let outcome = match self.state.as_str() {
            "passed" => Outcome::Passed,
            "skipped" => Outcome::Skipped,
            // Somebody ended the run.
            "pending" | "interrupted" | "aborted" => return None,
            _ => Outcome::Failed,
        };
        let words = self.failure.as_ref().map(|failure| failure.message.as_str());
        Some(Ran {
            spec: self.name(),
            outcome,
            words: words
                .unwrap_or_default()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
        })
    }
}

fn read(path: &Path) -> Result<Vec<Spec>> {
    let file = File::open(path).with_context(|| format!("opening {}, ginkgo's report", path.display()))?;
    let suites: Vec<Suite> = serde_json::from_reader(BufReader::new(file))
        .with_context(|| format!("parsing {}", path.display()))?;
    let mut specs = Vec::new();
    for suite in suites {
        let reasons = suite.special_suite_failure_reasons.unwrap_or_default();
        if !reasons.is_empty() {
            bail!("the run was broken off: {}", reasons.join(", "));
        }
        specs.extend(suite.spec_reports.unwrap_or_default());
    }
    Ok(specs)
}

/// The specs that were begun, with what became of them.
pub(super) fn ran(path: &Path) -> Result<Vec<Ran>> {
    Ok(read(path)?.iter().filter_map(Spec::ran).collect())
}

/// The specs that a dry run knows.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) all: BTreeSet<String>,
    /// Those that it would have run.
    pub(super) chosen: BTreeSet<String>,
}

pub(super) fn known(path: &Path) -> Result<Known> {
    let mut specs = read(path)?;
    specs.retain(Spec::is_one);
    let all = specs.iter().map(Spec::name).collect();
    let chosen = specs.iter().filter(|spec| spec.state == "passed");
    let chosen = chosen.map(Spec::name).collect();
    Ok(Known { all, chosen })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;

    fn spec(text: &str, state: &str, attempts: u32) -> Value {
        json!({
            "ContainerHierarchyTexts": ["[sig-network] Services"], "LeafNodeType": "It", "LeafNodeText": text,
            "State": state, "NumAttempts": attempts, "Failure": {"Message": "needs\n SSH"},
        })
    }

    fn name(text: &str) -> String {
        format!("[sig-network] Services {text}")
    }

    /// In a folder that lasts as long as the first value.
    fn report(suite: &Value) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        std::fs::write(&path, json!([suite]).to_string()).unwrap();
        (folder, path)
    }

    #[test]
    fn what_was_begun_is_told_from_what_nobody_asked_for() {
        let before = json!({
            "ContainerHierarchyTexts": null, "LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "passed",
            "NumAttempts": 1,
        });
        let specs = [
            before,
            spec("a", "passed", 1),
            spec("b", "skipped", 0),
            spec("c", "skipped", 1),
            spec("d", "timedout", 1),
        ];
        let (_folder, path) = report(&json!({"SpecReports": specs}));
        let seen: Vec<_> = ran(&path)
            .unwrap()
            .into_iter()
            .map(|ran| (ran.spec, ran.outcome))
            .collect();
        assert_eq!(
            seen,
            [
                (name("a"), Outcome::Passed),
                (name("c"), Outcome::Skipped),
                (name("d"), Outcome::Failed),
            ]
        );
        assert_eq!(ran(&path).unwrap()[1].words, "needs SSH");
    }

    #[test]
    fn a_dry_run_knows_all_specs_and_says_which_it_would_have_run() {
        let specs = ["passed", "skipped", "pending"].map(|state| spec(state, state, 0));
        let (_folder, path) = report(&json!({"SpecReports": specs, "SpecialSuiteFailureReasons": null}));
        let known = known(&path).unwrap();
        assert_eq!(known.all, ["passed", "skipped", "pending"].map(name).into());
        assert_eq!(known.chosen, [name("passed")].into());
    }

    #[test]
    fn a_run_that_was_broken_off_is_not_read() {
        let (reasons, specs) = (["Interrupted by User"], [spec("a", "passed", 1)]);
        let (_folder, path) = report(&json!({"SpecReports": specs, "SpecialSuiteFailureReasons": reasons}));
        let error = ran(&path).unwrap_err().to_string();
        assert_eq!(error, "the run was broken off: Interrupted by User");
        let (_folder, path) = report(&json!({"SpecReports": null, "SpecialSuiteFailureReasons": reasons}));
        assert_eq!(ran(&path).unwrap_err().to_string(), error);
        let error = ran(&path.with_file_name("none.json")).unwrap_err();
        assert!(
            error.to_string().ends_with("none.json, ginkgo's report"),
            "{error}"
        );
    }
}
