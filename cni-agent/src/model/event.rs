//! What sources say.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use super::{
    ClusterSettings, Device, EndpointSlice, Namespace, NamespacedName, Node, Pod, PodName, Service,
    ServiceCidr,
};

/// An input of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The folder of manifests, where there is no API server.
    Files,
    /// The API server.
    Kubernetes,
    /// The folder where the container runtime finds its networks.
    Runtime,
    /// The host's devices and addresses.
    Devices,
    /// The ports on which others ask for this proxy.
    Ports,
    /// Another proxy of Services on this node.
    KubeProxy,
    /// The endpoints on disk and the queue of deletions.
    Endpoints,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Files => "manifests",
            Self::Kubernetes => "kubernetes",
            Self::Runtime => "runtime",
            Self::Devices => "devices",
            Self::Ports => "ports",
            Self::KubeProxy => "kube-proxy",
            Self::Endpoints => "endpoints",
        })
    }
}

/// A change of the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The object is new or different.
    Set(Object),
    Gone(ObjectKey),
    /// There are no objects of this kind but these; all of them have been told with [`Event::Set`].
    Only(Kind, BTreeSet<ObjectKey>),
    /// All devices of the host's namespace as they are now, addresses included.
    Devices(Vec<Device>),
    /// Somebody took something away from the kernel that may be Millrace's: worth a look at once.
    Disturbed,
    /// The source has said everything that it knew when it began.
    Synced(Source),
    /// What is wrong at a source; replaces what the source said before, so an empty list is good news.
    Problems(Source, Vec<String>),
    /// The Services whose objects cannot be read; replaces what was said before.
    Unread(Vec<ServiceProblem>),
}

/// Why a Service is not served as it asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceProblem {
    pub service: NamespacedName,
    pub uid: String,
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Node(Node),
    Namespace(Namespace),
    Pod(Pod),
    ServiceCidr(ServiceCidr),
    Service(Box<Service>),
    EndpointSlice(EndpointSlice),
    Settings(ClusterSettings),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    Node(String),
    Namespace(String),
    Pod(PodName),
    ServiceCidr(String),
    Service(NamespacedName),
    EndpointSlice(NamespacedName),
    Settings(String),
}

/// The kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Node,
    Namespace,
    Pod,
    ServiceCidr,
    Service,
    EndpointSlice,
    Settings,
}

impl Object {
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Node(node) => ObjectKey::Node(node.name.clone()),
            Self::Namespace(namespace) => ObjectKey::Namespace(namespace.name.clone()),
            Self::Pod(pod) => ObjectKey::Pod(pod.name.clone()),
            Self::ServiceCidr(ranges) => ObjectKey::ServiceCidr(ranges.name.clone()),
            Self::Service(service) => ObjectKey::Service((*service.name).clone()),
            Self::EndpointSlice(slice) => ObjectKey::EndpointSlice(slice.name.clone()),
            Self::Settings(settings) => ObjectKey::Settings(settings.name.clone()),
        }
    }
}

impl ObjectKey {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Node(_) => Kind::Node,
            Self::Namespace(_) => Kind::Namespace,
            Self::Pod(_) => Kind::Pod,
            Self::ServiceCidr(_) => Kind::ServiceCidr,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Settings(_) => Kind::Settings,
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "Node {name}"),
            Self::Namespace(name) => write!(f, "Namespace {name}"),
            Self::Pod(name) => write!(f, "Pod {name}"),
            Self::ServiceCidr(name) => write!(f, "ServiceCIDR {name}"),
            Self::Service(name) => write!(f, "Service {name}"),
            Self::EndpointSlice(name) => write!(f, "EndpointSlice {name}"),
            Self::Settings(name) => write!(f, "MillraceConfig {name}"),
        }
    }
}
