//! The agent's own vocabulary. Sources translate into it, everything behind them speaks nothing else: no Kubernetes,
//! aya or netlink type appears here.

mod device;
mod endpoint;
mod event;
mod labels;
mod object;
mod service;
mod settings;

pub use device::{Device, DeviceAddress, DeviceKind, is_pod_device};
pub use endpoint::{Endpoint, Phase, Rates};
pub use event::{Event, Kind, Object, ObjectKey, ServiceProblem, Source};
pub use labels::Labels;
pub use object::{HostPort, Namespace, NamespacedName, Node, Pod, PodName, ServiceCidr};
pub use service::{
    EndpointSlice, Hints, Locality, Protocol, Service, ServicePort, SliceEndpoint, SlicePort, TrafficPolicy,
    Unserved,
};
pub use settings::{ClusterSettings, NodeSettings, ServiceSettings, Settings};
