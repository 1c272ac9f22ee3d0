//! What people are shown of a Service.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use cni_ebpf::abi::{Service, ServiceKey, backend_flags, service_flags, service_scope};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::{Book, Entry, Set};
use crate::{
    compile::service::{HintsUsed, SetName},
    config::Algorithm,
    model::{NamespacedName, Protocol},
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    pub name: NamespacedName,
    pub frontends: Vec<Front>,
    /// Every endpoint that answers, whether it gets new connections or not.
    pub backends: Vec<Back>,
    /// Where load balancers ask, and what they are told by way of each family.
    pub health_check_node_port: Option<u16>,
    pub local_ready: Option<[Option<usize>; 2]>,
    /// Who may use its load balancer's addresses (`spec.loadBalancerSourceRanges`); empty: everybody.
    #[serde(default)]
    pub source_ranges: Vec<IpNetwork>,
    pub problems: Vec<String>,
    /// Why this agent serves nothing of it.
    #[serde(default)]
    pub unserved: Option<String>,
}

/// One address and port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Front {
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    pub clients: Clients,
    pub answer: Answer,
    /// The set's number, which connections bear.
    pub number: u32,
    /// By their numbers.
    pub backends: Vec<u32>,
    pub hints: HintsUsed,
    #[serde(default)]
    pub algorithm: Algorithm,
    /// The places of its Maglev table; 0: it has none.
    #[serde(default)]
    pub table_size: u32,
    pub affinity_seconds: Option<u32>,
    /// The client's address is translated.
    pub masquerade: bool,
    /// But not that of one whose endpoint's node can answer it.
    #[serde(default)]
    pub direct_return: bool,
    /// Only clients of the source ranges may use it.
    pub restricted: bool,
}

/// Whom a frontend is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clients {
    /// Pods and this node.
    Inside,
    Outside,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Forward,
    /// There is nobody anywhere.
    Refuse,
    /// There is nobody on this node.
    Drop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Back {
    pub number: u32,
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    pub local: bool,
    pub terminating: bool,
}

/// How many endpoints one message tells of: far fewer than it has room for.
const PART: usize = 10_000;

impl Description {
    pub(crate) fn unserved(name: &NamespacedName, why: String) -> Self {
        Self {
            name: name.clone(),
            frontends: Vec::new(),
            backends: Vec::new(),
            health_check_node_port: None,
            local_ready: None,
            source_ranges: Vec::new(),
            problems: Vec::new(),
            unserved: Some(why),
        }
    }

    /// Parts that fit into a message each, whatever the Service has; [`Description::join`] makes the whole of them.
    pub(crate) fn parts(mut self) -> Vec<Self> {
        let named: usize = self.frontends.iter().map(|front| front.backends.len()).sum();
        if named + self.backends.len() <= PART {
            return vec![self];
        }
        let fronts = std::mem::take(&mut self.frontends);
        let backends = std::mem::take(&mut self.backends);
        let bare = Self {
            source_ranges: Vec::new(),
            problems: Vec::new(),
            ..self.clone()
        };
        let mut parts = vec![self];
        parts.extend(fronts.into_iter().map(|front| Self {
            frontends: vec![front],
            ..bare.clone()
        }));
        parts.extend(backends.chunks(PART).map(|some| Self {
            backends: some.to_vec(),
            ..bare.clone()
        }));
        parts
    }

    pub(crate) fn join(&mut self, more: Self) {
        self.frontends.extend(more.frontends);
        self.backends.extend(more.backends);
    }
}

impl Book {
    /// Those that `wanted` names (see `NamespacedName::is_wanted`).
    pub fn describe(&self, wanted: &str) -> Vec<Description> {
        let found = self.entries.iter().filter(|(name, _)| name.is_wanted(wanted));
        found
            .map(|(name, entry)| self.describe_one(name, entry))
            .collect()
    }

    /// Which Service's each of these numbers is, and which of its sets, as far as there are such sets.
    pub fn owners(&self, numbers: &BTreeSet<u32>) -> BTreeMap<u32, (NamespacedName, SetName)> {
        let entries = self.entries.iter();
        let sets = entries.flat_map(|(name, entry)| entry.sets.iter().map(move |set| (name, set)));
        let known = sets.filter(|(_, set)| numbers.contains(&set.number));
        known
            .map(|(name, set)| (set.number, (NamespacedName::clone(name), set.name)))
            .collect()
    }

    fn describe_one(&self, name: &NamespacedName, entry: &Entry) -> Description {
        let health = self.health.get(name);
        let frontends = entry.frontends.iter();
        Description {
            name: name.clone(),
            frontends: frontends
                .filter_map(|(key, service)| front(entry, key, service))
                .collect(),
            backends: entry
                .serving
                .iter()
                .filter_map(|number| {
                    let known = self.backends.get(*number)?;
                    Some(Back {
                        number: *number,
                        address: known.target.addr.into(),
                        port: known.target.port.get(),
                        protocol: Protocol::from_number(known.target.proto)?,
                        local: known.flags & backend_flags::LOCAL != 0,
                        terminating: known.flags & backend_flags::TERMINATING != 0,
                    })
                })
                .collect(),
            health_check_node_port: health.map(|health| health.port),
            local_ready: health.map(|health| health.local_ready),
            // They are the object's.
            source_ranges: Vec::new(),
            problems: entry.problems.to_vec(),
            unserved: None,
        }
    }
}

/// `None` for the row that stands for all other ports.
fn front(entry: &Entry, key: &ServiceKey, service: &Service) -> Option<Front> {
    let has = |flag| service.flags & flag != 0;
    let set = entry.sets.iter().find(|set| set.number == service.id);
    Some(Front {
        address: key.addr.into(),
        port: key.port.get(),
        protocol: Protocol::from_number(key.proto)?,
        clients: if key.scope == service_scope::EXTERNAL {
            Clients::Outside
        } else {
            Clients::Inside
        },
        answer: if has(service_flags::REJECT) {
            Answer::Refuse
        } else if has(service_flags::DROP) {
            Answer::Drop
        } else {
            Answer::Forward
        },
        number: service.id,
        backends: set.map(Set::backends).unwrap_or_default(),
        hints: set.map(|set| set.hints).unwrap_or_default(),
        algorithm: match service.maglev {
            0 => Algorithm::Random,
            _ => Algorithm::Maglev,
        },
        table_size: service.maglev_size,
        affinity_seconds: has(service_flags::AFFINITY).then_some(service.affinity_seconds),
        masquerade: has(service_flags::MASQUERADE),
        direct_return: has(service_flags::DSR),
        restricted: service.ranges != 0,
    })
}

impl Set {
    fn backends(&self) -> Vec<u32> {
        self.slots.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_of_any_size_is_told_in_messages_that_have_room_for_it() {
        let back = |number: u32| Back {
            number,
            address: [0xfd00, 1, 2, 3, 0xffff, 0xffff, 0xffff, 0xffff].into(),
            port: 65_535,
            protocol: Protocol::Sctp,
            local: false,
            terminating: false,
        };
        let front = |port| Front {
            address: [10, 96, 0, 1].into(),
            port,
            protocol: Protocol::Tcp,
            clients: Clients::Inside,
            answer: Answer::Forward,
            number: 7,
            backends: (1_000_000..1_065_535).collect(),
            hints: HintsUsed::Anywhere,
            algorithm: Algorithm::Random,
            table_size: 0,
            affinity_seconds: None,
            masquerade: false,
            direct_return: false,
            restricted: false,
        };
        let whole = |fronts: u16, backends: u32| Description {
            name: NamespacedName {
                namespace: "n".into(),
                name: "s".into(),
            },
            frontends: (0..fronts).map(front).collect(),
            backends: (0..backends).map(back).collect(),
            health_check_node_port: Some(1),
            local_ready: Some([Some(1), None]),
            source_ranges: vec!["10.0.0.0/8".parse().unwrap()],
            problems: vec!["one".into()],
            unserved: None,
        };
        for (fronts, backends, count) in [(0, 10, 1), (0, 65_535, 8), (20, 65_535, 28), (1, 1, 3)] {
            let mut parts = whole(fronts, backends).parts();
            assert_eq!(parts.len(), count);
            for part in &parts {
                let bytes = serde_json::to_vec(part).unwrap().len();
                assert!(bytes < cni_plugin::rpc::MAX_MESSAGE / 2, "{bytes}");
            }
            let mut joined = parts.remove(0);
            parts.into_iter().for_each(|part| joined.join(part));
            assert_eq!(joined, whole(fronts, backends));
        }
    }
}
