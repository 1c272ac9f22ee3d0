//! A look at everything: when it is due, and what it does.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Agent, rank::Rank};
use crate::{
    compile::{self, Compiled},
    config::Config,
    desired::{Desired, Observed, Veth},
    kernel::{Kernel, Scope},
    model::{Endpoint, Labels, Phase},
    reconcile::{Change, Outcome, Removals, Retry},
};

/// Even if nobody says anything: others change the kernel too.
pub(super) const AUDIT: Duration = Duration::from_secs(60);
/// Between rounds over everything, so that a stream of events does not become a stream of rounds.
pub(super) const PAUSE: Duration = Duration::from_millis(50);
/// In a large cluster a round takes longer: it may have a tenth of the time.
const SHARE: u32 = 10;
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Between looks into the queue of deletions, which is read before the first round in any case.
const REPLAY: Duration = Duration::from_secs(10);
/// After a kernel that could not even be looked at.
const BLIND: Duration = Duration::from_secs(1);

/// The one object that has an effect.
const SETTINGS: &str = "default";

/// What rounds have been, and when the next one is.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    dirty: bool,
    last: Option<Instant>,
    pause: Duration,
    replayed: Option<Instant>,
    /// The last round over everything ended with programs loaded and maps written.
    pub(super) loaded: bool,
    /// The kernel could not even be looked at.
    blind: bool,
    /// Why programs are not loaded.
    pub(super) error: Option<String>,
    pub(super) problems: Vec<String>,
    pub(super) rank: Rank,
    pub(super) devices: Vec<String>,
    pub(super) node_addresses: Vec<std::net::IpAddr>,
    pub(super) count: u64,
    pub(super) changes: u64,
    pub(super) failures: u64,
}

impl Rounds {
    pub(super) fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    /// `None` while too little is known: then there is nothing to do at all.
    pub(super) fn next(&self, retry: &Retry, usable: bool) -> Option<Instant> {
        if !usable {
            return None;
        }
        let last = self.last?;
        let audit = Some(last + AUDIT);
        let soon = last + self.pause.max(PAUSE);
        let dirty = self.dirty.then_some(soon);
        let blind = self.blind.then_some(last + BLIND);
        let retry = retry.next().map(|at| at.max(soon));
        [audit, dirty, blind, retry].into_iter().flatten().min()
    }

    fn is_due(&self, retry: &Retry, now: Instant) -> bool {
        self.last.is_none() || self.next(retry, true).is_some_and(|at| at <= now)
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    pub(super) fn last(&self) -> Option<Instant> {
        self.last
    }

    pub(super) fn add(&mut self, outcome: &Outcome) {
        self.changes += outcome.applied;
        self.failures += outcome.failures.len() as u64;
    }
}

impl<K: Kernel> Agent<K> {
    pub(super) async fn round_if_due(&mut self) {
        let now = Instant::now();
        let orphans = self.orphans.next(self.rounds.last).is_some_and(|at| at <= now);
        if !self.state.is_usable() || !(orphans || self.rounds.is_due(self.reconciler.retry(), now)) {
            return;
        }
        self.rounds.dirty = false;
        self.rounds.pause = PAUSE;
        if self.rounds.replayed.is_none_or(|at| at.elapsed() >= REPLAY) {
            self.rounds.replayed = Some(Instant::now());
            self.replay().await;
        }
        self.round().await;
        self.remember().await;
        // What has to be looked at again is not put off.
        if !self.rounds.dirty {
            self.rounds.pause = (now.elapsed() * SHARE).min(LONGEST_PAUSE);
        }
        self.spare.accrue();
        self.rounds.count += 1;
        self.rounds.last = Some(Instant::now());
    }

    async fn round(&mut self) {
        let mut compiled = self.compile();
        let mut observed = match self.reconciler.observe(&compiled.desired, Scope::Whole).await {
            Ok(observed) => observed,
            Err(error) => {
                tracing::error!(%error, "the kernel could not be read");
                self.rounds.blind = true;
                self.rounds.loaded = false;
                self.rounds.error = Some(error.to_string());
                return;
            }
        };
        self.rounds.blind = false;
        let loads_anew = observed.config != compiled.desired.config;
        let settled = self.state.unsynced().is_empty();
        let endpoints = self.state.endpoints.len();
        self.collect(&observed).await;
        if settled {
            self.collect_orphans().await;
        }
        if self.state.endpoints.len() != endpoints {
            compiled = self.compile();
        }
        self.fill_new_maps(&compiled.desired, &mut observed).await;
        let removals = if compiled.complete && settled {
            Removals::Allowed
        } else {
            Removals::Held
        };
        let outcome = self
            .reconciler
            .converge(&compiled.desired, &observed, removals)
            .await;
        self.rounds.add(&outcome);
        // Maps that were replaced with the programs are settled by the next look, which must not wait: until then what old
        // programs wrote last is unknown to the new ones.
        if loads_anew {
            self.rounds.mark_dirty();
        }
        let failed = outcome
            .failures
            .iter()
            .find(|failure| matches!(failure.change, Change::Load(_) | Change::SetVxlan(_)));
        // A load that waits for its next attempt is no load either, and fails for the reason it failed of before.
        let loads = outcome.postponed == 0 || observed.config == compiled.desired.config;
        self.rounds.loaded = compiled.complete && failed.is_none() && loads;
        if let Some(failure) = failed {
            self.rounds.error = Some(failure.error.clone());
        } else if loads {
            self.rounds.error = None;
        }
    }

    /// Loads the programs, and writes the Services that they are to find, before they are put in front of anybody: what
    /// is sent to a Service address that they do not know is lost.
    async fn fill_new_maps(&mut self, desired: &Desired, observed: &mut Observed) {
        if desired.config.is_none() || observed.config == desired.config || !self.waits_for_maps() {
            return;
        }
        let base = Desired {
            config: desired.config,
            vxlan: desired.vxlan.clone(),
            ..Desired::default()
        };
        let outcome = self.reconciler.converge(&base, observed, Removals::Held).await;
        self.rounds.add(&outcome);
        if let Some(failure) = outcome.failures.first() {
            // The round that follows leaves out what has just failed.
            self.rounds.error = Some(failure.error.clone());
        }
        if outcome.is_complete() {
            observed.config = base.config;
            observed.vxlan = base.vxlan;
            self.begin_services().await;
        }
    }

    /// Takes over the cluster's settings. Those that make no sense on this node leave the last good ones in force.
    fn follow_settings(&mut self) -> Vec<String> {
        let labels = self
            .state
            .nodes
            .get(&self.base.node_name)
            .map(|node| &node.labels);
        let wanted = match (self.state.settings.get(SETTINGS), labels) {
            (Some(settings), Some(labels)) => self.base.following(settings, labels),
            (Some(settings), None) => self.base.following(settings, &Labels::default()),
            (None, _) => Ok(Config::clone(&self.base)),
        };
        match wanted {
            Ok(config) => {
                if config != *self.config {
                    tracing::info!("the cluster's settings have changed");
                    self.config = Arc::new(config);
                }
                Vec::new()
            }
            Err(problems) => problems
                .iter()
                .map(|problem| format!("MillraceConfig {SETTINGS} on this node: {problem}"))
                .collect(),
        }
    }

    fn compile(&mut self) -> Compiled {
        let unusable = self.follow_settings();
        let config = Arc::clone(&self.config);
        let topology = compile::Topology::new(&config, &self.state);
        self.pool.set_ranges(&topology.pod_cidrs);
        self.rounds.devices = topology
            .devices
            .iter()
            .map(|device| device.name.clone())
            .collect();
        self.rounds.node_addresses = [true, false]
            .iter()
            .filter_map(|v4| topology.node_address(*v4))
            .collect();
        drop(topology);
        self.rounds.rank = Rank::new(&self.state, &config.node_name);
        self.place(&config);
        self.state.pods.take_changed();
        let compiled = compile::compile(&config, &self.state);
        self.rounds.problems.clone_from(&compiled.problems);
        self.rounds.problems.extend(unusable);
        compiled
    }

    /// Gives up endpoints whose device is gone: a reboot, a namespace that was deleted, a DEL that nobody heard of. The
    /// look came after they were programmed, so it would have seen the device. Still, a list of devices that are being
    /// changed can lack some, and a mistake would cut a pod off for good: it takes a second look, at each by its name.
    async fn collect(&mut self, observed: &Observed) {
        let mut suspects = self.without_device(
            &self.state.endpoints.keys().copied().collect::<Vec<_>>(),
            observed,
        );
        if suspects.is_empty() {
            return;
        }
        let names = suspects.iter().filter_map(|id| self.state.endpoints.get(id));
        let wanted = Desired {
            veths: names
                .map(|endpoint| (endpoint.host_ifname(), Veth::Reserved))
                .collect(),
            ..Desired::default()
        };
        match self.reconciler.observe(&wanted, Scope::Keys).await {
            Ok(again) => suspects = self.without_device(&suspects, &again),
            // Later.
            Err(_) => suspects.clear(),
        }
        if suspects.is_empty() {
            return;
        }
        let leaving: Vec<Endpoint> = suspects
            .iter()
            .filter_map(|id| self.state.endpoints.get(id).cloned())
            .collect();
        // By their keys, as for a DEL: what this round finds too much stays where it is until every source has spoken.
        // A device of the same name is another attachment's.
        let gone = Desired {
            veths: BTreeMap::new(),
            ..compile::endpoint_keys(&self.config, &self.state, &leaving)
        };
        for id in &suspects {
            tracing::info!(endpoint = id, "its device is gone, and so is the endpoint");
            self.forget(*id);
        }
        match self.reconciler.remove_keys(&gone, &Desired::default()).await {
            Ok(outcome) => self.rounds.add(&outcome),
            Err(error) => {
                tracing::warn!(%error, "what is left of endpoints without a device is removed later")
            }
        }
    }

    fn without_device(&self, ids: &[u32], observed: &Observed) -> Vec<u32> {
        let is_gone = |endpoint: &&Endpoint| match endpoint.phase {
            Phase::Reserved => false,
            Phase::Programmed { ifindex } => observed
                .veths
                .get(&endpoint.host_ifname())
                .is_none_or(|veth| veth.ifindex != ifindex),
        };
        let endpoints = ids.iter().filter_map(|id| self.state.endpoints.get(id));
        endpoints.filter(is_gone).map(|endpoint| endpoint.id).collect()
    }
}
