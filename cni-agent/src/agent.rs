//! The main loop: one task that owns the state, the pool, the records and the kernel.
//!
//! It may be ended at any instant. What it knows is in the records, in the sources and in the kernel; it starts by
//! reading all three, and until every source has spoken it changes nothing.

mod allocation;
mod attachment;
mod cut_short;
mod inquiry;
mod orphans;
mod pods;
mod rank;
mod recollection;
mod report;
mod round;
mod services;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use cni_plugin::queue;
use prometheus_client::metrics::histogram::Histogram;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    config::Config,
    ipam::Pool,
    kernel::Kernel,
    ledger::Ledger,
    memory::Spare,
    model::{Event, Source},
    observe::{admin::Inquiry, health::Health},
    reconcile::Reconciler,
    services::Numbers,
    source::{
        file, k8s,
        plugin::{self, Question},
    },
    state::State,
    status::Status,
};
use attachment::Waiting;
use cut_short::GoingOn;
use orphans::Orphans;
use pods::PodWork;
use recollection::Recollection;
use report::Reports;
use round::Rounds;
use services::ServiceWork;

/// Why the agent could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("{path}: {cause}; make it writable for root or choose another place under paths", path = .path.display())]
    Io {
        path: std::path::PathBuf,
        cause: io::Error,
    },
}

/// What others hold of a running agent.
#[derive(Clone, Debug)]
pub struct Handle {
    /// For sources that live outside of the agent, like the watch over the host's devices. Whoever sends here begins
    /// with everything it knows and says [`Event::Synced`].
    pub events: mpsc::Sender<Event>,
    pub status: watch::Receiver<Arc<Status>>,
    pub health: watch::Receiver<Arc<Health>>,
    pub inquiries: mpsc::Sender<Inquiry>,
    /// Seconds from what made a Service's endpoints change to their being in the kernel.
    pub latency: Histogram,
}

/// The agent before it runs.
#[derive(Debug)]
pub struct Agent<K> {
    /// As the file, the environment and the command line say it.
    base: Arc<Config>,
    /// What the cluster's settings make of it.
    config: Arc<Config>,
    state: State,
    pool: Pool,
    ledger: Ledger,
    reconciler: Reconciler<K>,
    rounds: Rounds,
    pods: PodWork,
    services: ServiceWork,
    orphans: Orphans,
    going_on: GoingOn,
    recollection: Recollection,
    reports: Reports,
    spare: Spare,
    /// The number given last.
    last_id: u32,
    /// ADDs that came before the agent could serve them.
    waiting: Vec<Waiting>,
    ledger_problems: Vec<String>,
    queue_problems: Vec<String>,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    inquiries: (mpsc::Sender<Inquiry>, mpsc::Receiver<Inquiry>),
    status: watch::Sender<Arc<Status>>,
}

/// How many messages are taken in before the kernel is looked at: a storm of ADDs shares its rounds.
const BATCH: usize = 512;

impl<K: Kernel> Agent<K> {
    /// Reads the records. Nothing is changed yet but that folders are made.
    pub fn new(config: Config, kernel: K) -> Result<(Self, Handle), AgentError> {
        let config = Arc::new(config);
        let state_dir = &config.paths.state;
        let (mut ledger, restored) = Ledger::open(state_dir).map_err(|cause| AgentError::Io {
            path: state_dir.clone(),
            cause,
        })?;
        let mut pool = Pool::new(Duration::from_secs(config.ipam.quarantine_seconds.into()));
        let objects = if config.kubernetes.is_enabled() {
            Source::Kubernetes
        } else {
            Source::Files
        };
        let mut state = State::new([objects, Source::Devices, Source::Endpoints]);
        let mut ledger_problems = restored.problems;
        for ip in restored.resting {
            pool.rest(ip, Instant::now());
        }
        if let Err(error) = ledger.wake(|ip| pool.is_resting(*ip)) {
            ledger_problems.push(format!(
                "records of rested addresses could not be removed: {error}"
            ));
        }
        for endpoint in restored.endpoints {
            for ip in &endpoint.addresses {
                if let Err(error) = pool.claim(*ip, endpoint.id) {
                    ledger_problems.push(format!("endpoint {}: {error}", endpoint.id));
                }
            }
            state.endpoints.insert(endpoint.id, endpoint);
        }
        let recollection = Recollection::open(state_dir);
        let numbers = state_dir.join("service-numbers");
        let numbers =
            Numbers::open(numbers.clone()).map_err(|cause| AgentError::Io { path: numbers, cause })?;
        let services = ServiceWork::new(numbers, &config.maps);
        let events = mpsc::channel(BATCH);
        let inquiries = mpsc::channel(8);
        let (status, watched) = watch::channel(Arc::new(Status::default()));
        let handle = Handle {
            events: events.0.clone(),
            status: watched,
            health: services.health(),
            inquiries: inquiries.0.clone(),
            latency: services.latency(),
        };
        let agent = Self {
            base: Arc::clone(&config),
            config,
            state,
            pool,
            ledger,
            reconciler: Reconciler::new(kernel),
            rounds: Rounds::default(),
            pods: PodWork::default(),
            services,
            orphans: Orphans::default(),
            going_on: GoingOn::default(),
            recollection,
            reports: Reports::default(),
            spare: Spare::default(),
            last_id: restored.last_id,
            waiting: Vec::new(),
            ledger_problems,
            queue_problems: Vec::new(),
            events,
            inquiries,
            status,
        };
        Ok((agent, handle))
    }

    /// Runs until `shutdown` is ready. What is in the kernel stays there.
    pub async fn run(mut self, shutdown: impl Future<Output = ()> + Send) -> Result<(), AgentError> {
        let socket = self.config.paths.agent_socket.clone();
        // Listening comes first: a deletion is then either in the queue when it is read, or comes by the socket.
        let listener = plugin::bind(&socket).map_err(|cause| AgentError::Io {
            path: socket.clone(),
            cause,
        })?;
        self.replay().await;
        self.take_back_cut_short().await;
        let (ask, mut questions) = mpsc::channel(BATCH);
        // Dropped with this future, they end with it.
        let mut tasks = JoinSet::new();
        tasks.spawn(plugin::serve(listener, ask));
        let events = self.events.0.clone();
        if self.config.kubernetes.is_enabled() {
            tasks.spawn(k8s::watch(
                k8s::Settings::new(&self.config),
                events,
                self.status.subscribe(),
            ));
        } else {
            tasks.spawn(file::watch(self.config.paths.manifests.clone(), events));
        }
        self.state.handle(Event::Synced(Source::Endpoints));
        tokio::pin!(shutdown);
        self.publish_if_due(true);
        loop {
            let mut batch = Vec::new();
            let mut quiet = false;
            let wake = tokio::time::Instant::from_std(self.next_wake(Instant::now()));
            tokio::select! {
                () = &mut shutdown => break,
                Some(event) = self.events.1.recv() => quiet = self.take(event),
                Some(inquiry) = self.inquiries.1.recv() => self.tell_of_services(inquiry),
                Some(question) = questions.recv() => batch.push(question),
                () = tokio::time::sleep_until(wake) => {}
            }
            quiet &= self.drain(&mut questions, &mut batch);
            // Most events of a large cluster mean nothing here. They end at this point.
            if quiet && batch.is_empty() && self.next_wake(Instant::now()) > Instant::now() {
                continue;
            }
            self.services.turn.begin();
            let asked = !batch.is_empty();
            self.answer(batch).await;
            self.look_again_if_due().await;
            self.recall_if_due();
            self.serve_services().await;
            self.round_if_due().await;
            self.change_pods().await;
            self.serve_waiting();
            self.wake_addresses();
            self.spare.return_if_due();
            self.publish_if_due(asked);
            self.services.turn.end();
        }
        tasks.shutdown().await;
        // Whoever tries now finds nobody, and queues.
        if let Err(error) = std::fs::remove_file(&socket) {
            tracing::debug!(%error, "the CNI socket was gone already");
        }
        Ok(())
    }

    /// True if nothing follows from it, except what a time is set for.
    fn take(&mut self, event: Event) -> bool {
        if matches!(event, Event::Disturbed) {
            self.services.suspect();
        }
        let is_object = matches!(event, Event::Set(_) | Event::Gone(_));
        if self.state.handle(event) {
            self.rounds.mark_dirty();
        }
        is_object && !self.state.services.has_changed()
    }

    fn drain(&mut self, questions: &mut mpsc::Receiver<Question>, batch: &mut Vec<Question>) -> bool {
        let mut quiet = true;
        for _ in 0..BATCH {
            let Ok(event) = self.events.1.try_recv() else {
                break;
            };
            quiet &= self.take(event);
        }
        while batch.len() < BATCH {
            let Ok(question) = questions.try_recv() else { break };
            batch.push(question);
        }
        quiet
    }

    /// The deletions that came while nobody listened, or that we were too slow to answer.
    async fn replay(&mut self) {
        self.queue_problems.clear();
        let queued = match queue::list(&self.config.paths.state) {
            Ok(queued) => queued,
            Err(error) => {
                self.queue_problems.push(format!(
                    "the queue of deletions cannot be read: {error}; look at {}",
                    queue::folder(&self.config.paths.state).display()
                ));
                return;
            }
        };
        for entry in queued {
            match entry {
                Ok(queued) => {
                    tracing::info!(attachment = ?queued.release, "carrying out a queued deletion");
                    if self.release(&[queued.release]).await.is_ok()
                        && let Err(error) = queue::remove(&queued.path)
                    {
                        self.queue_problems
                            .push(format!("{}: {error}; remove it", queued.path.display()));
                    }
                }
                Err(error) => self.queue_problems.push(error.to_string()),
            }
        }
    }

    fn next_wake(&self, now: Instant) -> Instant {
        let waiting = self.waiting.iter().map(|waiting| waiting.until);
        let round = self.rounds.next(self.reconciler.retry(), self.state.is_usable());
        waiting
            .chain(self.pool.next_wake())
            .chain(round)
            .chain(self.recall_due())
            .chain(self.orphans.next(self.rounds.last()))
            .chain(self.going_on.next())
            .chain(self.services.next())
            .chain(self.pods_due())
            .chain(self.spare.due())
            .chain(self.reports.due())
            .min()
            .unwrap_or(now + round::AUDIT)
    }

    fn wake_addresses(&mut self) {
        if self.pool.wake(Instant::now()).is_empty() {
            return;
        }
        let pool = &self.pool;
        if let Err(error) = self.ledger.wake(|ip| pool.is_resting(*ip)) {
            tracing::warn!(%error, "records of rested addresses could not be removed");
        }
    }
}

#[cfg(test)]
mod tests;
