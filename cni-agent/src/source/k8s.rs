//! The API server: watches on the kinds that the agent needs.
//!
//! Each watch tells its objects, then which ones there are, then every change; after a break it goes on where it was, or
//! tells everything again if the server has forgotten that. A server that is away changes nothing: what was heard stays in
//! force. Types of Kubernetes stop here.

mod access;
mod control_plane;
mod crd;
mod desk;
mod discovery;
mod fault;
mod node_events;
mod own_node;
mod pace;
mod servers;
mod service_events;
mod watch;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch as published},
    task::JoinSet,
};

use crate::{
    config::{Config, KubernetesConfig, Proxy},
    model::{Event, Kind, Source},
    source::object::{
        EndpointSliceObject, NamespaceObject, NodeObject, PodObject, ServiceCidrObject, ServiceObject,
    },
    status::Status,
};
pub(super) use crd::Review;
pub use crd::yaml as crds;

use access::{Access, AccessError};
use control_plane::Memory;
use crd::MillraceConfigObject;
use desk::Desk;
use servers::Servers;
use watch::{Office, Watched, follow};

/// Between looks at files that are missing or wrong.
const PAUSE: Duration = Duration::from_secs(2);

const NODES: Watched = Watched {
    resource: "nodes",
    kind: Kind::Node,
    optional: false,
};
const NAMESPACES: Watched = Watched {
    resource: "namespaces",
    kind: Kind::Namespace,
    optional: false,
};
const PODS: Watched = Watched {
    resource: "pods",
    kind: Kind::Pod,
    optional: false,
};
const SERVICE_CIDRS: Watched = Watched {
    resource: "servicecidrs",
    kind: Kind::ServiceCidr,
    optional: true,
};

const SERVICES: Watched = Watched {
    resource: "services",
    kind: Kind::Service,
    optional: false,
};
const ENDPOINT_SLICES: Watched = Watched {
    resource: control_plane::ENDPOINT_SLICES,
    kind: Kind::EndpointSlice,
    optional: false,
};

const SETTINGS: Watched = Watched {
    resource: crd::PLURAL,
    kind: Kind::Settings,
    optional: true,
};

/// What the source needs to know of the settings.
#[derive(Clone, Debug)]
pub struct Settings {
    kubernetes: KubernetesConfig,
    node: Arc<str>,
    state: PathBuf,
    /// Services are served here. Otherwise nobody needs to know a cluster's endpoints.
    serves: bool,
}

impl Settings {
    pub fn new(config: &Config) -> Self {
        Self {
            kubernetes: config.kubernetes.clone(),
            node: config.node_name.as_str().into(),
            state: config.paths.state.clone(),
            serves: config.services.proxy == Proxy::Millrace,
        }
    }
}

/// Says what the cluster is, then what changes in it, until nobody listens. What the agent says of itself goes to the
/// objects where operators look.
pub async fn watch(
    settings: Settings,
    events: mpsc::Sender<Event>,
    status: published::Receiver<Arc<Status>>,
) {
    let mut all = vec![NODES, NAMESPACES, PODS, SERVICE_CIDRS, SETTINGS];
    if settings.serves {
        all.extend([SERVICES, ENDPOINT_SLICES]);
    }
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
                tokio::time::sleep(pace::around(PAUSE)).await;
            }
        }
    };
    desk.tell(Event::Problems(Source::Kubernetes, Vec::new())).await;
    let (review, reviews) = mpsc::channel(8);
    let office = Office {
        servers,
        desk: Arc::clone(&desk),
        node: settings.node,
        reviews: review,
    };
    // Dropped with this future, they end with it.
    let mut watches = JoinSet::new();
    watches.spawn(follow::<NodeObject>(NODES, office.clone()));
    watches.spawn(follow::<NamespaceObject>(NAMESPACES, office.clone()));
    watches.spawn(follow::<PodObject>(PODS, office.clone()));
    watches.spawn(follow::<ServiceCidrObject>(SERVICE_CIDRS, office.clone()));
    watches.spawn(follow::<MillraceConfigObject>(SETTINGS, office.clone()));
    if settings.serves {
        watches.spawn(follow::<ServiceObject>(SERVICES, office.clone()));
        watches.spawn(follow::<EndpointSliceObject>(ENDPOINT_SLICES, office.clone()));
        watches.spawn(service_events::announce(office.clone(), status.clone()));
    }
    watches.spawn(crd::publish(office.clone(), reviews));
    watches.spawn(discovery::compare(office.clone()));
    watches.spawn(control_plane::follow(office.clone(), memory));
    let taint = settings.kubernetes.startup_taint;
    watches.spawn(node_events::announce(office.clone(), status.clone()));
    watches.spawn(own_node::proclaim(office, taint, status));
    desk.report().await;
}

async fn begin(settings: &Settings, memory: &Memory) -> Result<Arc<Servers>, AccessError> {
    let access = Access::resolve(&settings.kubernetes).await?;
    Servers::new(access, &memory.read())
}
