//! What the agent says of itself: the base of `millrace status`, of readiness and of the metrics.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{
    model::{Endpoint, ServiceProblem, Source},
    services::{Summary, Troubles},
};

/// Published whenever something of it changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub node: String,
    pub version: String,
    /// ADD can be served: every source has synced, the programs are loaded, and the last reconciliation ended well.
    pub ready: bool,
    pub sources: BTreeMap<Source, SourceStatus>,
    pub reconcile: ReconcileStatus,
    pub pools: Vec<PoolStatus>,
    /// `None` until what an earlier agent has left is in agreement with what is known.
    #[serde(default)]
    pub services: Option<ServicesStatus>,
    pub endpoints: Vec<Endpoint>,
    /// The node's devices that programs are attached to.
    pub devices: Vec<String>,
    pub node_addresses: Vec<IpAddr>,
    /// Whatever does not work, and what to do about it.
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    pub synced: bool,
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconcileStatus {
    /// Rounds over everything since the agent began.
    pub rounds: u64,
    pub changes: u64,
    pub failures: u64,
    /// What failed in the last round and will be tried again.
    pub failing: Vec<String>,
}

/// Services in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicesStatus {
    #[serde(flatten)]
    pub summary: Summary,
    /// When everything that was known was last in the kernel.
    pub synced: Option<SystemTime>,
    /// From everything being known to all of it being in the kernel, when the agent began.
    #[serde(default)]
    pub first_sync: Option<Duration>,
    #[serde(default)]
    pub troubles: Troubles,
    /// Those that this agent tells their objects of.
    #[serde(skip)]
    pub troubled: Vec<ServiceProblem>,
}

/// One range of pod addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    pub range: IpNetwork,
    pub used: u64,
    pub quarantined: u64,
    /// Saturates: an IPv6 range has more than a number can say.
    pub free: u64,
}
