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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Objects {
    nodes: Vec<Node>,
    #[serde(default)]
    service_cidrs: Vec<ServiceCidr>,
    #[serde(default)]
    settings: Vec<ClusterSettings>,
}

impl Objects {
    fn of(state: &State) -> Self {
        Self {
            nodes: state.nodes.values().cloned().collect(),
            service_cidrs: state.service_cidrs.values().cloned().collect(),
            settings: state.settings.values().cloned().collect(),
        }
    }

    fn into_events(self) -> impl Iterator<Item = Event> {
        let nodes = self.nodes.into_iter().map(Object::Node);
        let ranges = self.service_cidrs.into_iter().map(Object::ServiceCidr);
        let settings = self.settings.into_iter().map(Object::Settings);
        nodes.chain(ranges).chain(settings).map(Event::Set)
    }
}

/// The file, and what it holds.
#[derive(Debug)]
pub(super) struct Recollection {
    path: PathBuf,
    objects: Objects,
    started: Instant,
    written: Option<Instant>,
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
        }
    }

    fn write(path: &Path, objects: &Objects) -> io::Result<()> {
        let aside = path.with_extension("tmp");
        fs::write(&aside, serde_json::to_vec(objects)?)?;
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
        let objects = Objects::of(&self.state);
        if objects == self.recollection.objects {
            return;
        }
        self.recollection.written = Some(Instant::now());
        let (path, written) = (self.recollection.path.clone(), objects.clone());
        let result = tokio::task::spawn_blocking(move || Recollection::write(&path, &written)).await;
        match result.map_err(io::Error::other).flatten() {
            Ok(()) => self.recollection.objects = objects,
            Err(error) => tracing::warn!(%error, "what is known of the cluster could not be written to disk"),
        }
    }
}
