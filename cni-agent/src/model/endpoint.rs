//! A pod's interface on this node.

use std::net::IpAddr;

use cni_plugin::{Attachment, Mac};
use serde::{Deserialize, Serialize};

use super::PodName;

/// One interface of one container on this node: what the plugin attached, and what is kept on disk of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Local to this node, not 0, not used again soon.
    pub id: u32,
    pub network: String,
    pub attachment: Attachment,
    #[serde(default)]
    pub pod: Option<PodName>,
    /// As the runtime said it; empty where it said none.
    #[serde(default)]
    pub pod_uid: String,
    /// The pod's object has been seen with that uid.
    #[serde(default)]
    pub confirmed: bool,
    /// At most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The addresses come from another IPAM plugin: the pool neither gave them nor takes them back.
    #[serde(default)]
    pub delegated: bool,
    pub mac: Mac,
    pub host_mac: Mac,
    pub mtu: u32,
    #[serde(default)]
    pub via_stack: bool,
    #[serde(default)]
    pub rates: Rates,
    /// Seconds since the epoch.
    pub created: u32,
    pub phase: Phase,
}

impl Endpoint {
    /// The name of the host's end.
    pub fn host_ifname(&self) -> String {
        self.attachment.host_ifname()
    }

    /// The index of the host's end, once there is one.
    pub fn ifindex(&self) -> Option<u32> {
        match self.phase {
            Phase::Reserved => None,
            Phase::Programmed { ifindex } => Some(ifindex),
        }
    }
}

/// How far an ADD has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Addresses are taken, the plugin is making the device. Does not outlive the agent.
    Reserved,
    /// The device exists.
    Programmed { ifindex: u32 },
}

/// Limits in bytes a second, seen from the pod; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    #[serde(default)]
    pub egress: u64,
    #[serde(default)]
    pub ingress: u64,
    /// Bytes that may pass at once.
    #[serde(default)]
    pub egress_burst: u32,
    #[serde(default)]
    pub ingress_burst: u32,
}
