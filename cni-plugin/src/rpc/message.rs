//! The messages. A field that is added later needs `#[serde(default)]`; a field that is here stays.

use crate::{Attachment, CniError, Mac, code};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A request or a response with the protocol version of its sender.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message<T> {
    pub version: u32,
    #[serde(flatten)]
    pub body: T,
}

impl<T> Message<T> {
    /// A message in this build's version.
    pub fn new(body: T) -> Self {
        Self {
            version: super::VERSION,
            body,
        }
    }

    /// The body, or the error that tells the other side to upgrade.
    pub fn accept(self) -> Result<T, CniError> {
        let accepted = super::ACCEPTED_VERSIONS;
        if accepted.contains(&self.version) {
            return Ok(self.body);
        }
        Err(CniError::new(
            code::PROTOCOL,
            format!(
                "agent and CNI plugin are too far apart: protocol version {} is not within {} to {}",
                self.version,
                accepted.start(),
                accepted.end()
            ),
        )
        .with_details("install millrace-cni and the agent of the same release"))
    }
}

/// What the plugin asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    Allocate(Box<Allocate>),
    Program(Program),
    Finish(Finish),
    Release(Release),
    Check(Check),
    Status(Status),
    Gc(Gc),
    /// An operation of a newer plugin. Answer it with [`Response::unknown_operation`].
    #[serde(other)]
    Unknown,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Response {
    Allocated(Box<Allocated>),
    Checked(Box<Checked>),
    Collected(Collected),
    Done,
    Failed(CniError),
    /// An answer of a newer agent.
    #[serde(other)]
    Unknown,
}

impl Response {
    /// The answer to [`Request::Unknown`].
    pub fn unknown_operation() -> Self {
        Self::Failed(
            CniError::new(code::PROTOCOL, "the agent does not know this operation")
                .with_details("install millrace-cni and the agent of the same release"),
        )
    }
}

impl From<Result<Response, CniError>> for Response {
    fn from(result: Result<Response, CniError>) -> Self {
        result.unwrap_or_else(Response::Failed)
    }
}

/// Reserve an endpoint and its addresses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Allocate {
    /// The network's name in the CNI configuration.
    pub network: String,
    pub container_id: String,
    /// The interface's name in the container.
    pub ifname: String,
    /// `CNI_NETNS`, literally.
    pub netns: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni_version: Option<String>,
    /// The pod, where the runtime named it in `CNI_ARGS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// Addresses that the runtime asked for. A pool without them answers with an error.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requested_ips: Vec<IpNetwork>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_mac: Option<Mac>,
    /// Addresses that a delegated IPAM plugin has already reserved: use these, allocate none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delegated_ips: Vec<IpNetwork>,
    /// The pod's packets pass the host's stack, because a later plugin of the chain acts there.
    #[serde(default)]
    pub via_stack: bool,
    /// The MTU that the CNI configuration demands instead of the agent's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Bandwidth::is_empty")]
    pub bandwidth: Bandwidth,
}

impl Allocate {
    pub fn attachment(&self) -> Attachment {
        Attachment::new(&self.container_id, &self.ifname)
    }
}

/// A Kubernetes pod as `K8S_POD_*` of `CNI_ARGS` describe it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub infra_container_id: String,
}

/// The rates of the `bandwidth` capability, seen from the pod: ingress is what it receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Shaping>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Shaping>,
}

impl Bandwidth {
    pub fn is_empty(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

/// One direction's limit, in CNI's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shaping {
    /// Bits a second.
    pub rate: u64,
    /// Bits; zero leaves the choice to the agent.
    #[serde(default)]
    pub burst: u64,
}

/// The endpoint that [`Allocate`] reserved, and all that the plugin needs to wire it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Allocated {
    pub endpoint_id: u32,
    /// The name for the host's end; [`crate::host_ifname`] of the attachment.
    pub host_ifname: String,
    /// The pod's end.
    pub mac: Mac,
    /// The host's end, which is also the gateways' address.
    pub host_mac: Mac,
    /// One host prefix (`/32` or `/128`) for each address.
    pub addresses: Vec<IpNetwork>,
    /// The pod's next hops, at most one a family, [`crate::GATEWAY_V4`] and [`crate::GATEWAY_V6`].
    pub gateways: Vec<IpAddr>,
    pub mtu: u32,
    /// The pod's routes, through the gateway of the destination's family.
    pub routes: Vec<Route>,
}

/// A route in the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub dst: IpNetwork,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
}

impl From<IpNetwork> for Route {
    fn from(dst: IpNetwork) -> Self {
        Self {
            dst,
            mtu: None,
            advmss: None,
            priority: None,
        }
    }
}

/// Write the endpoint into the kernel and attach its programs. The veth pair exists, its host end is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    pub endpoint_id: u32,
    pub host_ifindex: u32,
    /// [`Request::Finish`] will follow. A plugin that does not know it is done with this.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub finishes: bool,
}

/// The runtime has the result: the ADD is over, whatever becomes of its plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finish {
    pub endpoint_id: u32,
}

/// Take everything of an attachment out of the kernel and free its addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub network: String,
    pub container_id: String,
    pub ifname: String,
}

impl Release {
    pub fn attachment(&self) -> Attachment {
        Attachment::new(&self.container_id, &self.ifname)
    }
}

/// Is the endpoint programmed as [`Program`] left it?
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub network: String,
    pub container_id: String,
    pub ifname: String,
    #[serde(default)]
    pub netns: String,
}

/// The endpoint as the agent has it in the kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    pub endpoint_id: u32,
    pub host_ifname: String,
    pub mac: Mac,
    pub addresses: Vec<IpNetwork>,
}

/// Could an ADD for this network be served now?
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub network: String,
}

/// Release every attachment of this network that is not in the list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gc {
    pub network: String,
    pub valid: Vec<Attachment>,
}

/// What [`Gc`] released.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    #[serde(default)]
    pub released: Vec<Attachment>,
}
