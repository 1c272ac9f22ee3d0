//! What Ginkgo says of each spec, in its JSON report.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result};
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
    spec_reports: Vec<Spec>,
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
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let suites: Vec<Suite> = serde_json::from_reader(BufReader::new(file))
        .with_context(|| format!("parsing {}", path.display()))?;
    Ok(suites.into_iter().flat_map(|suite| suite.spec_reports).collect())
}

/// The specs that were begun, with what became of them.
pub(super) fn ran(path: &Path) -> Result<Vec<Ran>> {
    Ok(read(path)?.iter().filter_map(Spec::ran).collect())
}

/// The names of all specs, whether they ran or not.
pub(super) fn names(path: &Path) -> Result<BTreeSet<String>> {
    let specs = read(path)?;
    Ok(specs
        .iter()
        .filter(|spec| spec.is_one())
        .map(Spec::name)
        .collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_begun_is_told_from_what_nobody_asked_for() {
        let spec = |text: &str, state: &str, attempts: u32| {
            json!({
                "ContainerHierarchyTexts": ["[sig-network] Services"], "LeafNodeType": "It", "LeafNodeText": text,
                "State": state, "NumAttempts": attempts, "Failure": {"Message": "needs\n SSH"},
            })
        };
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
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        std::fs::write(&path, json!([{"SpecReports": specs}]).to_string()).unwrap();
        let seen: Vec<_> = ran(&path)
            .unwrap()
            .into_iter()
            .map(|ran| (ran.spec, ran.outcome))
            .collect();
        let name = |text: &str| format!("[sig-network] Services {text}");
        assert_eq!(
            seen,
            [
                (name("a"), Outcome::Passed),
                (name("c"), Outcome::Skipped),
                (name("d"), Outcome::Failed),
            ]
        );
        assert_eq!(names(&path).unwrap().len(), 4);
        assert_eq!(ran(&path).unwrap()[1].words, "needs SSH");
    }
}
