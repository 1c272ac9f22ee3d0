//! Services: from what has changed to the kernel, without a look at anything else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::watch;

use super::Agent;
use crate::{
    compile::{
        Topology,
        service::{self, Place},
    },
    config::{MapSizes, Proxy, SocketLb},
    kernel::Kernel,
    model::{EndpointSlice, NamespacedName, ServiceProblem, Source},
    observe::health::{Health, ServiceHealth, Turn},
    reconcile::Change,
    services::{
        Book, Capacity, Edits, Keys, Numbers, Pending, Progress, Rows, Troubles,
        audit::{self, Findings},
        recovered,
    },
    source::resolvers,
    status::ServicesStatus,
};

/// Even if nobody says anything: others change the kernel too.
const AUDIT: Duration = Duration::from_secs(60);
/// From a change until sockets are looked through, which many changes have in common.
const RELEASE: Duration = Duration::from_millis(100);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// How much is said at a time of what is wrong.
const SHOWN: usize = 20;

#[derive(Debug)]
pub(super) struct ServiceWork {
    pub(super) book: Book,
    place: Place,
    /// What is in the kernel is in the book, and the other way round.
    begun: bool,
    pending: Pending,
    /// When sockets are looked for whose backend is gone.
    release: Option<Instant>,
    /// When the kernel is looked at next; `None`: not before it has begun.
    audit: Option<Instant>,
    failures: u32,
    error: Option<String>,
    /// Why sockets could not be looked through. It is not tried again by itself: not every kernel can.
    unreleased: Option<String>,
    progress: Progress,
    leaving: bool,
    health: watch::Sender<Arc<Health>>,
    pub(super) turn: Turn,
}

impl ServiceWork {
    pub(super) fn new(numbers: Numbers, sizes: &MapSizes) -> Self {
        Self {
            book: Book::new(numbers, Capacity::of(sizes)),
            place: Place::default(),
            begun: false,
            pending: Pending::default(),
            release: None,
            audit: None,
            failures: 0,
            error: None,
            unreleased: None,
            progress: Progress::default(),
            leaving: false,
            health: watch::Sender::default(),
            turn: Turn::default(),
        }
    }

    pub(super) fn health(&self) -> watch::Receiver<Arc<Health>> {
        self.health.subscribe()
    }

    pub(super) fn begun(&self) -> bool {
        self.begun
    }

    pub(super) fn latency(&self) -> Histogram {
        self.progress.latency().clone()
    }

    fn tell_health(&self) {
        let services = self.book.health().map(|(name, health)| {
            let service = ServiceHealth {
                name: name.clone(),
                local_ready: health.local_ready,
            };
            (health.port, service)
        });
        let health = Health {
            addresses: self
                .place
                .node_ports
                .iter()
                .copied()
                .filter(|ip| !ip.is_loopback())
                .collect(),
            services: services.collect(),
            behind_since: self.progress.behind_since(),
            updated: self.progress.behind_since().and(self.progress.synced()),
            turn: self.turn.clone(),
            begun: self.begun,
            leaving: self.leaving,
        };
        self.health.send_if_modified(|last| {
            let changed = **last != health;
            if changed {
                *last = Arc::new(health);
            }
            changed
        });
    }

    /// The kernel may hold something else than what the book says.
    pub(super) fn suspect(&mut self) {
        if self.begun {
            self.audit = Some(Instant::now());
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        let due = [self.audit, self.pending.due(), self.release];
        due.into_iter().flatten().min()
    }

    fn failed(&mut self, error: String) {
        if self.error.as_ref() != Some(&error) {
            tracing::warn!(%error, "Services could not be written and will be tried again");
        }
        self.failures += 1;
        self.progress.failed();
        let wait = FIRST_RETRY
            .saturating_mul(1 << (self.failures - 1).min(10))
            .min(LONGEST_RETRY);
        self.audit = Some(Instant::now() + wait);
        self.error = Some(error);
        self.tell_health();
    }

    fn succeeded(&mut self) {
        self.failures = 0;
        self.error = None;
        self.progress.succeeded();
        self.audit = Some(Instant::now() + AUDIT);
    }
}

impl<K: Kernel> Agent<K> {
    /// Whoever is asked for Services needs maps to write to, and must know all of them: what is not known would be taken
    /// away.
    fn may_serve(&self) -> bool {
        self.knows_services() && self.rounds.loaded
    }

    fn knows_services(&self) -> bool {
        let objects = [Source::Kubernetes, Source::Files];
        objects.iter().any(|source| self.state.is_synced(*source))
    }

    /// As soon as there are maps, Services can be written.
    pub(super) fn waits_for_maps(&self) -> bool {
        self.knows_services() && !self.services.begun
    }

    /// Every Service is looked at anew if this node is another place than before.
    pub(super) fn place(&mut self, topology_of: &crate::config::Config) {
        let topology = Topology::new(topology_of, &self.state);
        let resolvers = if topology.config.services.external_ips {
            resolvers::read(&topology.config.paths.resolv_conf)
        } else {
            BTreeSet::new()
        };
        let place = Place::new(&topology, &self.state, resolvers);
        // Whose object is deleted is still what it was said to be.
        let leaving = topology.own.map(|node| node.leaving);
        drop(topology);
        self.services.leaving = leaving.unwrap_or(self.services.leaving);
        self.services.tell_health();
        if place != self.services.place {
            let names: Vec<_> = match place.nodes_alone(&self.services.place) {
                Some(nodes) => self.state.services.that_ask_for(&nodes),
                None => self.state.services.names().cloned().collect(),
            };
            self.services.place = place;
            self.state.services.touch(names);
        }
    }

    pub(super) async fn serve_services(&mut self) {
        if !self.may_serve() {
            return;
        }
        if !self.services.begun {
            if self.services.audit.is_none_or(|at| at <= Instant::now()) {
                self.begin_services().await;
            }
            return;
        }
        self.change_services().await;
        let now = Instant::now();
        if self.services.audit.is_some_and(|at| at <= now) {
            self.audit_services().await;
        }
        let due = self.services.pending.take_due(now);
        if !due.is_empty() {
            self.remove_rows(&due).await;
            // Not before: up to here each seemed to serve.
            if !due.backends.is_empty() {
                self.services.release.get_or_insert(now + RELEASE);
            }
        }
        let blocks = self.services.pending.take_blocks(now);
        if !due.is_empty() || !blocks.is_empty() {
            self.services.book.free_blocks(blocks);
            self.settle_room();
        }
        // Room that became free is given away at once.
        self.change_services().await;
        if self.services.release.take_if(|at| *at <= now).is_some() {
            self.release_sockets().await;
        }
    }

    /// Takes over what an earlier agent has left: its numbers, so that rows stay as they are, and then the differences.
    pub(super) async fn begin_services(&mut self) {
        let start = Instant::now();
        let recovered = match recovered::read(&mut self.reconciler).await {
            Ok(recovered) => recovered,
            Err(error) => return self.services.failed(error.to_string()),
        };
        let found_nothing = recovered.is_empty();
        self.services.book.recover(recovered);
        let mut names: Vec<_> = self.state.services.names().cloned().collect();
        // Those whose frontends are theirs find the numbers that these had.
        names.sort_by_cached_key(|name| self.state.services.rank(name));
        self.state.services.take_changed();
        // Whatever changes is found afterwards, as a whole.
        self.compile_services(names, None);
        self.services.book.recovery_is_over();
        self.services.begun = true;
        if found_nothing {
            // Of maps without a row it is known what they lack.
            let findings = audit::everything(&self.services.book);
            self.put_right(findings).await;
        } else {
            self.audit_services().await;
        }
        if self.services.error.is_none() {
            self.services.progress.began(start.elapsed());
        }
        let summary = self.services.book.summary();
        tracing::info!(?summary, "Services are as the cluster has them");
    }

    fn compile_service(&mut self, name: &Arc<NamespacedName>) -> Edits {
        let served = self.config.services.proxy == Proxy::Millrace;
        let compiled = match self.state.services.get(name).filter(|_| served) {
            Some(service) => {
                let slices: Vec<&EndpointSlice> = self.state.services.slices_of(name).collect();
                service::compile(&self.services.place, service, &slices)
            }
            None => match self.state.services.with_host_ports(name).filter(|_| served) {
                Some(pod) => service::host_ports(&self.services.place, pod),
                None => service::Compiled::default(),
            },
        };
        self.services.book.set(name, compiled)
    }

    /// These, and whoever has to be looked at because of them.
    fn compile_services(&mut self, mut names: Vec<Arc<NamespacedName>>, mut edits: Option<&mut Edits>) {
        while !names.is_empty() {
            let mut heirs = BTreeSet::new();
            for name in std::mem::take(&mut names) {
                let more = self.compile_service(&name);
                heirs.append(&mut self.services.book.heirs(&more.gone.services));
                if let Some(edits) = &mut edits {
                    edits.append(more);
                }
            }
            names.extend(heirs);
        }
    }

    /// What no frontend names since the last write goes to others when nobody can be reading it.
    fn retire_blocks(&mut self, now: Instant) {
        let retired = self.services.book.take_retired();
        self.services.pending.retire(retired, now);
    }

    /// Rows that are gone make room for Services that wait for it.
    fn settle_room(&mut self) {
        let services = &mut self.services;
        services.book.set_leaving(services.pending.counts());
        self.state.services.touch(services.book.take_waiting());
    }

    async fn change_services(&mut self) {
        while self.state.services.has_changed() {
            self.change_some().await;
        }
    }

    async fn change_some(&mut self) {
        let changed = self.state.services.take_changed();
        let causes: Vec<_> = changed.values().copied().flatten().collect();
        let mut edits = Edits::default();
        self.compile_services(changed.into_keys().collect(), Some(&mut edits));
        // One that another Service has taken over is not gone.
        edits.gone.services.retain(|key| !self.services.book.has(key));
        if self.write(edits).await {
            self.services.progress.written(&causes);
        }
        self.services.tell_health();
    }

    /// False if it failed, and is tried again.
    async fn write(&mut self, edits: Edits) -> bool {
        let Edits { put, gone } = edits;
        self.services.pending.keep(&put);
        let frontends = Keys {
            services: gone.services.clone(),
            ..Keys::default()
        };
        if let Err(error) = self.carry_out(&put, &frontends).await {
            self.services.failed(error);
            return false;
        }
        let now = Instant::now();
        // One that comes back first may be where a socket can go.
        if !put.slots.is_empty() {
            self.services.release.get_or_insert(now + RELEASE);
        }
        self.services.pending.add(gone, now);
        // After a failure frontends of others may still name what the book has given up, until they have been compared.
        if self.services.failures == 0 {
            self.retire_blocks(now);
        }
        self.settle_room();
        true
    }

    async fn carry_out(&mut self, put: &Rows, gone: &Keys) -> Result<(), String> {
        let mut changes = put.changes();
        changes.extend(gone.changes());
        match self.reconciler.carry_out(changes).await {
            Ok(applied) => {
                self.rounds.changes += applied;
                Ok(())
            }
            Err(failure) => {
                self.rounds.failures += 1;
                Err(failure.error)
            }
        }
    }

    async fn audit_services(&mut self) {
        self.services.pending.clear();
        let findings = match audit::compare(&self.services.book, &mut self.reconciler).await {
            Ok(findings) => findings,
            Err(error) => return self.services.failed(error.to_string()),
        };
        self.put_right(findings).await;
    }

    /// What was found to be wrong with the rows in the kernel.
    async fn put_right(&mut self, findings: Findings) {
        let frontends = Keys {
            services: findings.superfluous.services.clone(),
            ..Keys::default()
        };
        let fits = self.services.book.has_room_beside(findings.superfluous.counts());
        let missing = if fits { findings.missing } else { Rows::default() };
        if let Err(error) = self.carry_out(&missing, &frontends).await {
            return self.services.failed(error);
        }
        let now = Instant::now();
        self.services.pending.add(findings.superfluous, now);
        if fits {
            self.retire_blocks(now);
        }
        self.settle_room();
        if !fits {
            let error = "rows that are not Millrace's fill the maps; they go first";
            return self.services.failed(error.to_owned());
        }
        // What they dialled is remembered anew.
        self.services.release.get_or_insert(now + RELEASE);
        self.services.succeeded();
        self.spare.accrue();
        self.services.tell_health();
    }

    async fn remove_rows(&mut self, keys: &Keys) {
        if let Err(error) = self.carry_out(&Rows::default(), keys).await {
            self.services.failed(error);
        }
    }

    async fn release_sockets(&mut self) {
        let services = &self.config.services;
        if services.proxy != Proxy::Millrace || services.socket_lb == SocketLb::Off {
            return;
        }
        let released = self.reconciler.carry_out(vec![Change::ReleaseSockets]).await;
        self.services.unreleased = released.err().map(|failure| failure.error);
    }

    pub(super) fn services_status(&self) -> Option<ServicesStatus> {
        let services = &self.services;
        services.begun.then(|| ServicesStatus {
            summary: services.book.summary(),
            synced: services.progress.synced(),
            first_sync: services.progress.first(),
            troubles: Troubles {
                unread: self.state.unread.len(),
                ..services.book.troubles()
            },
            troubled: self.trouble(),
        })
    }

    /// All that this agent tells: whoever tells it takes its time. For each Service once, though it may be served as it was
    /// before nobody could read it.
    fn trouble(&self) -> Vec<ServiceProblem> {
        let of_book = self.services.book.troubled().map(|(name, why)| {
            let services = &self.state.services;
            let service = services.get(name).map(|service| service.uid.to_string());
            let pod = || services.with_host_ports(name).map(|pod| pod.uid.clone());
            ServiceProblem {
                service: name.clone(),
                uid: service.or_else(pod).unwrap_or_default(),
                text: why.join("\n"),
            }
        });
        let all = of_book.chain(self.state.unread.iter().cloned());
        let mut told: BTreeMap<NamespacedName, ServiceProblem> = BTreeMap::new();
        for problem in all.filter(|problem| self.rounds.rank.tells_of(&problem.service)) {
            match told.get_mut(&problem.service) {
                Some(known) => known.text = format!("{}\n{}", known.text, problem.text),
                None => _ = told.insert(problem.service.clone(), problem),
            }
        }
        told.into_values().collect()
    }

    /// What is wrong with Services, the first of them and how many there are more.
    pub(super) fn service_problems(&self) -> Vec<String> {
        let mut all = self.services.book.problems();
        let mut problems: Vec<String> = all.by_ref().take(SHOWN).cloned().collect();
        let more = all.count();
        if more > 0 {
            problems.push(format!(
                "{more} more problems of Services; see `millrace services`"
            ));
        }
        problems.extend(
            self.services
                .error
                .iter()
                .map(|error| format!("Services: {error}")),
        );
        problems.extend(self.services.unreleased.iter().cloned());
        problems
    }
}
