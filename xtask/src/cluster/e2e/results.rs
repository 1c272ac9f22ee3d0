//! The list of upstream's network specs with what became of each on Millrace and on kube-proxy, which is checked in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail};

use super::report::Ran;
use crate::cluster::plan::{Cni, Plan, Proxy};
use crate::workspace;

const HEAD: &str = "\
# Upstream's network specs without the conformance ones, which all pass in the test layer `cluster`.
# A spec that does not pass for Millrace, or for kube-proxy, has a reason. `cargo xtask cluster e2e --whole --record` writes the
# results of the cluster that is up, of six nodes in three zones (`up --nodes 6 --zones 3`), which some specs need; reasons are
# written by hand.
# millrace\tkube-proxy-nft\tspec\treason
";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Failed,
    /// By its own decision.
    Skipped,
    #[default]
    NotRun,
}

const WORDS: [(Outcome, &str); 4] = [
    (Outcome::Passed, "passed"),
    (Outcome::Failed, "failed"),
    (Outcome::Skipped, "skipped"),
    (Outcome::NotRun, "-"),
];

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = WORDS.iter().find(|(outcome, _)| outcome == self);
        f.pad(word.map_or("", |(_, word)| word))
    }
}

impl FromStr for Outcome {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let word = WORDS.iter().find(|(_, word)| *word == text);
        let (outcome, _) = word.with_context(|| format!("`{text}` is none of passed, failed, skipped, -"))?;
        Ok(*outcome)
    }
}

/// Who serves Services while the specs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    Millrace,
    KubeProxy,
}

impl TryFrom<&Plan> for Contender {
    type Error = Error;

    /// Kube-proxy's results are those beside a plugin that knows nothing of Services.
    fn try_from(plan: &Plan) -> Result<Self> {
        match (plan.cni, plan.proxy()) {
            (Cni::Millrace, Proxy::Millrace) => Ok(Self::Millrace),
            (Cni::Bridge, Proxy::KubeProxyNft) => Ok(Self::KubeProxy),
            _ => bail!(
                "results are kept of clusters with Millrace alone, and of those with --cni bridge and --proxy kube-proxy-nft"
            ),
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Row {
    millrace: Outcome,
    kube_proxy: Outcome,
    reason: String,
}

impl Row {
    fn of(&self, contender: Contender) -> Outcome {
        match contender {
            Contender::Millrace => self.millrace,
            Contender::KubeProxy => self.kube_proxy,
        }
    }

    fn set(&mut self, contender: Contender, outcome: Outcome) {
        match contender {
            Contender::Millrace => self.millrace = outcome,
            Contender::KubeProxy => self.kube_proxy = outcome,
        }
    }

    /// What the list may not hold.
    fn fault(&self) -> Option<&'static str> {
        let [ours, peers] = [self.millrace, self.kube_proxy].map(|outcome| outcome == Outcome::Passed);
        if peers && !ours {
            return Some("passes for kube-proxy alone");
        }
        let good = ours && peers;
        match (good, self.reason.is_empty()) {
            (false, true) => Some("does not pass for both and has no reason"),
            (true, false) => Some("passes for both and still has a reason"),
            _ => None,
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct List(BTreeMap<String, Row>);

pub(super) fn path() -> PathBuf {
    workspace::root().join("tests/fixtures/e2e-specs.tsv")
}

impl List {
    pub(super) fn read() -> Result<Self> {
        let path = path();
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        text.parse()
            .with_context(|| format!("parsing {}", path.display()))
    }

    pub(super) fn write(&self) -> Result<()> {
        let path = path();
        fs::write(&path, self.to_string()).with_context(|| format!("writing {}", path.display()))
    }

    /// Takes up what became of specs; one that ran before and not now keeps what became of it.
    pub(super) fn record(&mut self, contender: Contender, known: &BTreeSet<String>, ran: &[Ran]) {
        self.0.retain(|spec, _| known.contains(spec));
        for spec in known {
            self.0.entry(spec.clone()).or_default();
        }
        for one in ran {
            let Some(row) = self.0.get_mut(&one.spec) else {
                continue;
            };
            row.set(contender, one.outcome);
            if row.reason.is_empty() && one.outcome == Outcome::Skipped {
                row.reason.clone_from(&one.words);
            }
        }
    }

    /// Where results differ from the list, also by their absence if a spec was `due`.
    pub(super) fn differences(
        &self,
        contender: Contender,
        ran: &[Ran],
        due: impl Fn(&str) -> bool,
    ) -> Vec<String> {
        let difference = |one: &Ran| match self.0.get(&one.spec) {
            Some(row) if row.of(contender) == one.outcome => None,
            Some(row) => Some(format!(
                "{}: {}, listed as {}",
                one.spec,
                one.outcome,
                row.of(contender)
            )),
            None => Some(format!("{}: not in the list", one.spec)),
        };
        let begun: BTreeSet<_> = ran.iter().map(|one| one.spec.as_str()).collect();
        let absent = self.0.iter().filter_map(|(spec, row)| {
            let listed = row.of(contender);
            let absent = listed != Outcome::NotRun && due(spec) && !begun.contains(spec.as_str());
            absent.then(|| format!("{spec}: did not run, listed as {listed}"))
        });
        ran.iter().filter_map(difference).chain(absent).collect()
    }

    /// What is wrong with the list by itself.
    pub(super) fn faults(&self) -> Vec<String> {
        let faults = self.0.iter();
        faults
            .filter_map(|(spec, row)| Some(format!("{spec}: {}", row.fault()?)))
            .collect()
    }

    /// Where the list and upstream's specs differ.
    pub(super) fn strangers(&self, known: &BTreeSet<String>) -> Vec<String> {
        let listed: BTreeSet<_> = self.0.keys().cloned().collect();
        let stale = listed
            .difference(known)
            .map(|spec| format!("{spec}: no such spec"));
        let missing = known
            .difference(&listed)
            .map(|spec| format!("{spec}: not in the list"));
        stale.chain(missing).collect()
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HEAD)?;
        for (spec, row) in &self.0 {
            let Row {
                millrace,
                kube_proxy,
                reason,
            } = row;
            write!(f, "{millrace}\t{kube_proxy}\t{spec}")?;
            if !reason.is_empty() {
                write!(f, "\t{reason}")?;
            }
            f.write_char('\n')?;
        }
        Ok(())
    }
}

impl FromStr for List {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut rows = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let mut fields = line.split('\t');
            let mut next = || {
                fields
                    .next()
                    .with_context(|| format!("a field is missing in `{line}`"))
            };
            let (millrace, kube_proxy) = (next()?.parse()?, next()?.parse()?);
            let spec = next()?.to_owned();
            let reason = fields.collect::<Vec<_>>().join(" ");
            let row = Row {
                millrace,
                kube_proxy,
                reason,
            };
            if rows.insert(spec.clone(), row).is_some() {
                bail!("`{spec}` stands twice");
            }
        }
        Ok(Self(rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spec_of_the_list_passes_for_both_or_has_a_reason() {
        let list = List::read().unwrap();
        assert_eq!(list.faults(), Vec::<String>::new());
        let text = fs::read_to_string(path()).unwrap();
        assert_eq!(list.to_string(), text, "as --record writes it");
    }

    fn ran(spec: &str, outcome: Outcome) -> Ran {
        Ran {
            spec: spec.to_owned(),
            outcome,
            words: "its own words".to_owned(),
        }
    }

    #[test]
    fn results_are_taken_up_beside_the_peers_and_reasons_stay() {
        let mut list: List = "passed\tpassed\ta\nfailed\tfailed\tb\twhy\npassed\tpassed\tgone"
            .parse()
            .unwrap();
        let known = ["a", "b", "c"].map(str::to_owned).into();
        let now = [ran("a", Outcome::Failed), ran("c", Outcome::Skipped)];
        list.record(Contender::KubeProxy, &known, &now);
        assert_eq!(
            list.to_string().strip_prefix(HEAD).unwrap(),
            "passed\tfailed\ta\nfailed\tfailed\tb\twhy\n-\tskipped\tc\tits own words\n"
        );
        assert_eq!(list.faults(), ["a: does not pass for both and has no reason"]);
    }

    #[test]
    fn a_column_is_of_one_kind_of_cluster() {
        let contender = |cni, proxy| {
            let plan = Plan {
                cni,
                proxy,
                ..Plan::default()
            };
            Contender::try_from(&plan).ok()
        };
        let kube_proxy = Some(Proxy::KubeProxyNft);
        assert!(matches!(
            contender(Cni::Millrace, None),
            Some(Contender::Millrace)
        ));
        assert!(matches!(
            contender(Cni::Bridge, kube_proxy),
            Some(Contender::KubeProxy)
        ));
        assert!(contender(Cni::Millrace, kube_proxy).is_none());
        assert!(contender(Cni::Bridge, Some(Proxy::KubeProxyIptables)).is_none());
    }

    #[test]
    fn every_difference_is_named() {
        let list: List = "passed\tfailed\ta\twhy\npassed\tpassed\tb\tstale"
            .parse()
            .unwrap();
        let difference =
            |spec, outcome| list.differences(Contender::KubeProxy, &[ran(spec, outcome)], |_| false);
        assert!(difference("a", Outcome::Failed).is_empty());
        assert_eq!(difference("a", Outcome::Passed), ["a: passed, listed as failed"]);
        assert_eq!(difference("c", Outcome::Passed), ["c: not in the list"]);
        assert_eq!(list.faults(), ["b: passes for both and still has a reason"]);
        let behind: List = "failed\tpassed\ta\twhatever".parse().unwrap();
        assert_eq!(behind.faults(), ["a: passes for kube-proxy alone"]);
        let known = ["a", "c"].map(str::to_owned).into();
        assert_eq!(list.strangers(&known), ["b: no such spec", "c: not in the list"]);
    }

    #[test]
    fn a_spec_that_was_due_and_did_not_run_is_a_difference() {
        let list: List = "passed\tskipped\ta\twhy\npassed\tfailed\tb\twhy\npassed\t-\tc\twhy"
            .parse()
            .unwrap();
        let now = [ran("b", Outcome::Failed)];
        let differences =
            |due: &[&str]| list.differences(Contender::KubeProxy, &now, |spec| due.contains(&spec));
        assert_eq!(
            differences(&["a", "b", "c"]),
            ["a: did not run, listed as skipped"]
        );
        assert!(differences(&["b", "c"]).is_empty());
    }
}
