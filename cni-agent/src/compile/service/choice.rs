//! Which endpoints a Service's port may use, on this node and from anywhere.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::Place;
use crate::model::{EndpointSlice, Hints, ServicePort, SliceEndpoint};

/// An endpoint, as all slices that name it say together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) state: Standing,
    pub(super) local: bool,
    hints: &'a Hints,
}

/// The better ones come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    Ready,
    /// On its way out, and still answering.
    Leaving,
    Unusable,
}

impl Standing {
    fn of(endpoint: &SliceEndpoint) -> Self {
        match endpoint {
            SliceEndpoint { ready: true, .. } => Self::Ready,
            SliceEndpoint {
                serving: true,
                terminating: true,
                ..
            } => Self::Leaving,
            _ => Self::Unusable,
        }
    }
}

/// By what hints narrow the choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topology {
    #[default]
    Anywhere,
    SameZone,
    SameNode,
}

/// The endpoints of one port and family.
#[derive(Debug, Default)]
pub(super) struct Choice<'a> {
    /// All that answer, usable for a new connection or not.
    pub(super) serving: Vec<Candidate<'a>>,
    pub(super) cluster: Vec<Candidate<'a>>,
    pub(super) local: Vec<Candidate<'a>>,
    pub(super) topology: Topology,
}

/// Every endpoint of the port once. One in two slices is as good as the better of the two say.
pub(super) fn candidates<'a>(
    slices: &[&'a EndpointSlice],
    port: &ServicePort,
    v4: bool,
    place: &Place,
) -> Vec<Candidate<'a>> {
    let mut found: BTreeMap<(IpAddr, u16), Candidate<'a>> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.v4 == v4) {
        let ports = slice
            .ports
            .iter()
            .filter(|other| other.name == port.name && other.protocol == port.protocol);
        for port in ports {
            for endpoint in &slice.endpoints {
                let candidate = Candidate {
                    address: endpoint.address,
                    port: port.port,
                    state: Standing::of(endpoint),
                    local: endpoint.locality.node.as_deref() == Some(place.node.as_str()),
                    hints: &endpoint.locality.hints,
                };
                found
                    .entry((endpoint.address, port.port))
                    .and_modify(|known| {
                        known.local |= candidate.local;
                        if candidate.state < known.state {
                            known.state = candidate.state;
                            known.hints = candidate.hints;
                        }
                    })
                    .or_insert(candidate);
            }
        }
    }
    found.into_values().collect()
}

impl<'a> Choice<'a> {
    pub(super) fn new(candidates: Vec<Candidate<'a>>, place: &Place) -> Self {
        let of = |state: Standing| {
            candidates
                .iter()
                .copied()
                .filter(move |candidate| candidate.state == state)
        };
        let topology = topology(&candidates, place);
        let usable = |candidate: &Candidate<'_>| candidate.is_for(topology, place);
        let or_leaving = |ready: Vec<Candidate<'a>>, local: bool| {
            if ready.is_empty() {
                of(Standing::Leaving)
                    .filter(|candidate| !local || candidate.local)
                    .collect()
            } else {
                ready
            }
        };
        let local: Vec<_> = of(Standing::Ready).filter(|candidate| candidate.local).collect();
        Self {
            cluster: or_leaving(of(Standing::Ready).filter(usable).collect(), false),
            local: or_leaving(local, true),
            topology,
            serving: candidates
                .into_iter()
                .filter(|candidate| candidate.state != Standing::Unusable)
                .collect(),
        }
    }
}

impl Candidate<'_> {
    fn has_node(&self, node: &str) -> bool {
        self.hints.nodes.iter().any(|name| **name == *node)
    }

    fn has_zone(&self, zone: &str) -> bool {
        self.hints.zones.iter().any(|name| **name == *zone)
    }

    fn is_for(&self, topology: Topology, place: &Place) -> bool {
        match topology {
            Topology::Anywhere => true,
            Topology::SameNode => self.has_node(&place.node),
            Topology::SameZone => place.zone.as_deref().is_some_and(|zone| self.has_zone(zone)),
        }
    }
}

/// Hints count only if all ready endpoints have them and one is meant for here: half of them would send everybody to the
/// other half.
fn topology(candidates: &[Candidate<'_>], place: &Place) -> Topology {
    let ready = || {
        candidates
            .iter()
            .filter(|candidate| candidate.state == Standing::Ready)
    };
    let all_have = |has: fn(&Hints) -> bool| ready().all(|candidate| has(candidate.hints));
    if all_have(|hints| !hints.nodes.is_empty()) && ready().any(|candidate| candidate.has_node(&place.node)) {
        return Topology::SameNode;
    }
    let here = |zone: &str| ready().any(|candidate| candidate.has_zone(zone));
    if all_have(|hints| !hints.zones.is_empty()) && place.zone.as_deref().is_some_and(here) {
        return Topology::SameZone;
    }
    Topology::Anywhere
}
