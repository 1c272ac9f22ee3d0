//! The API server: watches on the kinds that the agent needs.
//!
//! Each watch tells its objects, then which ones there are, then every change; after a break it goes on where it was, or
//! tells everything again if the server has forgotten that. A server that is away changes nothing: what was heard stays in
//! force. Types of Kubernetes stop here.

mod access;
mod control_plane;
mod desk;
mod fault;
mod servers;
mod watch;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    config::{Config, KubernetesConfig},
    model::{Event, Kind, Source},
    source::object::{NamespaceObject, NodeObject, PodObject, ServiceCidrObject},
};
use access::{Access, AccessError};
use control_plane::Memory;
use desk::Desk;
use servers::Servers;
use watch::{Office, Watched, follow};

/// Between looks at files that are missing or wrong.
const PAUSE: Duration = Duration::from_secs(2);

const NODES: Watched = Watched {
    resource: "nodes",
    kind: Kind::Node,
};
const NAMESPACES: Watched = Watched {
    resource: "namespaces",
    kind: Kind::Namespace,
};
const PODS: Watched = Watched {
    resource: "pods",
    kind: Kind::Pod,
};
const SERVICE_CIDRS: Watched = Watched {
    resource: "servicecidrs",
    kind: Kind::ServiceCidr,
};

/// What the source needs to know of the settings.
#[derive(Clone, Debug)]
pub struct Settings {
    kubernetes: KubernetesConfig,
    node: Arc<str>,
    state: PathBuf,
}

impl Settings {
    pub fn new(config: &Config) -> Self {
        Self {
            kubernetes: config.kubernetes.clone(),
            node: config.node_name.as_str().into(),
            state: config.paths.state.clone(),
        }
    }
}

/// Says what the cluster is, then what changes in it, until nobody listens.
pub async fn watch(settings: Settings, events: mpsc::Sender<Event>) {
    let all = [NODES, NAMESPACES, PODS, SERVICE_CIDRS];
    let desk = Desk::new(events, all.iter().map(|watched| watched.resource));
    let memory = Memory::new(&settings.state);
    let servers = loop {
        match begin(&settings, &memory).await {
            Ok(servers) => break servers,
            Err(error) => {
                tracing::warn!("{error}");
                let problems = Event::Problems(Source::Kubernetes, vec![error.to_string()]);
                if !desk.tell(problems).await {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    desk.tell(Event::Problems(Source::Kubernetes, Vec::new())).await;
    let office = Office {
        servers,
        desk: Arc::clone(&desk),
        node: settings.node,
    };
    // Dropped with this future, they end with it.
    let mut watches = JoinSet::new();
    watches.spawn(follow::<NodeObject>(NODES, office.clone()));
    watches.spawn(follow::<NamespaceObject>(NAMESPACES, office.clone()));
    watches.spawn(follow::<PodObject>(PODS, office.clone()));
    watches.spawn(follow::<ServiceCidrObject>(SERVICE_CIDRS, office.clone()));
    watches.spawn(control_plane::follow(office, memory));
    desk.report().await;
}

async fn begin(settings: &Settings, memory: &Memory) -> Result<Arc<Servers>, AccessError> {
    let access = Access::resolve(&settings.kubernetes).await?;
    Servers::new(access, &memory.read())
}
