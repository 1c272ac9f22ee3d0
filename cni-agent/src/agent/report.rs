//! What the agent says of itself.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::Agent;
use crate::{
    kernel::Kernel,
    model::Source,
    status::{ReconcileStatus, SourceStatus, Status},
};

/// Between descriptions that nobody waits for: each walks over everything on this node.
const PAUSE: Duration = Duration::from_millis(250);

/// When the agent described itself last.
#[derive(Debug, Default)]
pub(super) struct Reports {
    last: Option<Instant>,
    /// Something has happened since.
    behind: bool,
}

impl Reports {
    pub(super) fn due(&self) -> Option<Instant> {
        self.last.filter(|_| self.behind).map(|last| last + PAUSE)
    }
}

impl<K: Kernel> Agent<K> {
    pub(super) fn is_ready(&self) -> bool {
        self.state.is_usable() && self.rounds.loaded
    }

    /// At once after a round, and if somebody `asked` for something that may be read here next.
    pub(super) fn publish_if_due(&mut self, asked: bool) {
        let now = Instant::now();
        let last = self.reports.last;
        let due = asked || self.rounds.last() > last || last.is_none_or(|last| last + PAUSE <= now);
        self.reports.behind = !due;
        if due {
            self.publish();
            self.reports.last = Some(now);
        }
    }

    /// Wakes the readers only if something is different.
    fn publish(&self) {
        let own = self.own_problems();
        let status = self.describe(&own);
        self.status.send_if_modified(|last| {
            let changed = **last != status;
            if changed {
                let known = |problem: &String| last.problems.contains(problem);
                for problem in own.iter().filter(|problem| !known(problem)) {
                    tracing::warn!("{problem}");
                }
                *last = Arc::new(status);
            }
            changed
        });
    }

    fn describe(&self, own: &[String]) -> Status {
        let failing: Vec<String> = self.reconciler.retry().errors().map(str::to_owned).collect();
        let source = |source: &Source| SourceStatus {
            synced: self.state.is_synced(*source),
            problems: self.state.problems(*source).to_vec(),
        };
        let sources: BTreeMap<Source, SourceStatus> = self
            .state
            .sources()
            .iter()
            .map(|kind| (*kind, source(kind)))
            .collect();
        Status {
            node: self.config.node_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: self.is_ready(),
            reconcile: ReconcileStatus {
                rounds: self.rounds.count,
                changes: self.rounds.changes,
                failures: self.rounds.failures,
                failing: failing.clone(),
            },
            pools: self.pool.status(),
            services: self.services_status(),
            endpoints: self.state.endpoints.values().cloned().collect(),
            devices: self.rounds.devices.clone(),
            node_addresses: self.rounds.node_addresses.clone(),
            problems: self.problems(&sources, failing, own),
            sources,
        }
    }

    fn problems(
        &self,
        sources: &BTreeMap<Source, SourceStatus>,
        failing: Vec<String>,
        own: &[String],
    ) -> Vec<String> {
        let mut problems = Vec::new();
        for (source, status) in sources {
            if !status.synced {
                problems.push(if self.state.is_usable() {
                    format!("{source}: not heard yet, an earlier agent's knowledge is used; nothing is removed before")
                } else {
                    format!("{source}: not everything has been heard yet; nothing is changed before")
                });
            }
        }
        problems.extend(self.state.all_problems().cloned());
        problems.extend(self.rounds.error.iter().cloned());
        problems.extend(
            failing
                .into_iter()
                .filter(|error| Some(error) != self.rounds.error.as_ref()),
        );
        problems.extend_from_slice(own);
        problems
    }

    /// Those that the agent itself finds; sources, and whoever makes changes, have put theirs into the log already.
    fn own_problems(&self) -> Vec<String> {
        let kept = [&self.ledger_problems, &self.queue_problems, &self.rounds.problems];
        let mut problems: Vec<String> = kept.into_iter().flatten().cloned().collect();
        problems.extend(self.service_problems());
        problems.extend(self.exhausted());
        problems
    }

    /// Families that have ranges and no address left.
    pub(super) fn exhausted(&self) -> Option<String> {
        let pools = self.pool.status();
        [true, false].into_iter().find_map(|v4| {
            let of_family = || pools.iter().filter(move |pool| pool.range.is_ipv4() == v4);
            let empty = of_family().next().is_some() && of_family().all(|pool| pool.free == 0);
            empty.then(|| {
                let ranges: Vec<String> = of_family().map(|pool| pool.range.to_string()).collect();
                format!(
                    "no address is left in {}; delete pods or add a range",
                    ranges.join(", ")
                )
            })
        })
    }
}
