//! What was known of the cluster, on disk: for an agent that starts while the API server is away.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::Agent;
use crate::{
    kernel::Kernel,
    model::{ClusterSettings, Event, Node, Object, ServiceCidr, Source},
    state::State,
};

/// For so long an agent that starts hopes for the server itself.
const HOPE: Duration = Duration::from_secs(5);
/// Between writes, so that a stream of changes does not become a stream of writes.
const PAUSE: Duration = Duration::from_secs(5);

/// The objects without which no pod can be given a network.
#[derive(Debug, Default, Deserialize)]
struct Objects {
    nodes: Vec<Node>,
    #[serde(default)]
    service_cidrs: Vec<ServiceCidr>,
    #[serde(default)]
    settings: Vec<ClusterSettings>,
}

impl Objects {
    fn into_events(self) -> impl Iterator<Item = Event> {
        let nodes = self.nodes.into_iter().map(Object::Node);
        let ranges = self.service_cidrs.into_iter().map(Object::ServiceCidr);
        let settings = self.settings.into_iter().map(Object::Settings);
        nodes.chain(ranges).chain(settings).map(Event::Set)
    }
}

/// The same as they are written, without a copy: there may be thousands of nodes.
#[derive(Serialize)]
struct Known<'a> {
    nodes: Vec<&'a Node>,
    service_cidrs: Vec<&'a ServiceCidr>,
    settings: Vec<&'a ClusterSettings>,
}

impl<'a> Known<'a> {
    fn of(state: &'a State) -> Self {
        Self {
            nodes: state.nodes.values().collect(),
            service_cidrs: state.service_cidrs.values().collect(),
            settings: state.settings.values().collect(),
        }
    }
}

/// The file, and what an earlier agent has left in it.
#[derive(Debug)]
pub(super) struct Recollection {
    path: PathBuf,
    objects: Objects,
    started: Instant,
    written: Option<Instant>,
    /// Of the state that stands in it; 0: another agent's.
    revision: u64,
}

impl Recollection {
    pub(super) fn open(state: &Path) -> Self {
        let path = state.join("cluster.json");
        let read = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Objects::default()),
            Err(error) => Err(error),
        };
        let objects = read.unwrap_or_else(|error| {
            tracing::warn!(file = %path.display(), %error, "what was known of the cluster is not readable");
            Objects::default()
        });
        Self {
            path,
            objects,
            started: Instant::now(),
            written: None,
            revision: 0,
        }
    }

    fn write(path: &Path, text: &[u8]) -> io::Result<()> {
        let aside = path.with_extension("tmp");
        fs::write(&aside, text)?;
        fs::rename(aside, path)
    }
}

impl<K: Kernel> Agent<K> {
    /// When there is no hope left that the server answers soon.
    pub(super) fn recall_due(&self) -> Option<Instant> {
        let waits = self.state.unsynced() == [Source::Kubernetes] && !self.state.is_recalled();
        let knows = !self.recollection.objects.nodes.is_empty();
        (waits && knows).then_some(self.recollection.started + HOPE)
    }

    /// Takes what was known for what is, until the server says more. It adds to the kernel and takes nothing away.
    pub(super) fn recall_if_due(&mut self) {
        if self.recall_due().is_none_or(|at| at > Instant::now()) {
            return;
        }
        tracing::warn!("the API server does not answer; going on with what was known of the cluster");
        for event in std::mem::take(&mut self.recollection.objects).into_events() {
            self.state.handle(event);
        }
        self.state.recall();
        self.rounds.mark_dirty();
    }

    /// Writes what is known, if it is something else than what was written.
    pub(super) async fn remember(&mut self) {
        let soon = self.recollection.written.is_some_and(|at| at.elapsed() < PAUSE);
        if soon || !self.state.is_synced(Source::Kubernetes) {
            return;
        }
        let revision = self.state.revision();
        if revision == self.recollection.revision {
            return;
        }
        self.recollection.objects = Objects::default();
        self.recollection.written = Some(Instant::now());
        let text = serde_json::to_vec(&Known::of(&self.state)).map_err(io::Error::from);
        let path = self.recollection.path.clone();
        let write = move || Recollection::write(&path, &text?);
        let result = tokio::task::spawn_blocking(write).await;
        match result.map_err(io::Error::other).flatten() {
            Ok(()) => self.recollection.revision = revision,
            Err(error) => tracing::warn!(%error, "what is known of the cluster could not be written to disk"),
        }
    }
}
