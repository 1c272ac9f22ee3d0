//! One Service: from the objects to its frontends, and to the endpoints behind each of them. Numbers come later.

mod address;
mod choice;
mod host_port;
pub mod maglev;
#[cfg(test)]
mod oracle;
mod place;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, net::IpAddr};

use cni_ebpf::abi::{Addr, Port, ServiceKey, backend_flags, service_flags, service_scope};
use ipnetwork::IpNetwork;

use crate::{
    config::{Algorithm, Mode},
    model::{EndpointSlice, Service, ServicePort, TrafficPolicy},
};
use address::Kind;
pub use choice::Topology as HintsUsed;
use choice::{Candidate, Choice, Standing, candidates};
pub use host_port::compile as host_ports;
pub use place::Place;

/// What a backend is, wherever it is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    pub addr: Addr,
    pub port: Port,
    pub proto: u8,
}

/// A set of endpoints that frontends share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSet {
    pub name: SetName,
    pub targets: Vec<Target>,
    /// Clients are kept at theirs.
    pub affinity: bool,
    pub hints: HintsUsed,
    /// The size of the Maglev table by which connections from outside get theirs; `None`: they get any.
    pub maglev: Option<u32>,
}

/// What a set is in its Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetName {
    pub port: u16,
    pub proto: u8,
    pub v4: bool,
    pub local: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    pub key: ServiceKey,
    /// `None`: there is nothing behind it, ever.
    pub set: Option<SetName>,
    pub flags: u32,
    pub affinity_seconds: u32,
    /// Only [`Compiled::ranges`] may use it.
    pub restricted: bool,
}

impl Frontend {
    /// Whether all that it is good for is that its address answers pings.
    pub fn only_answers_pings(&self) -> bool {
        self.set.is_none() && self.flags & service_flags::REJECT == 0 && self.key.port == Port::ZERO
    }
}

/// What load balancers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    pub port: u16,
    /// Of each family that the Service has: `[IPv4, IPv6]`.
    pub local_ready: [Option<usize>; 2],
}

/// What one Service needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compiled {
    pub frontends: Vec<Frontend>,
    pub sets: Vec<SlotSet>,
    /// Every endpoint that answers, with its flags: connections may stay with one that gets no new ones.
    pub serving: Vec<(Target, u32)>,
    pub ranges: Vec<IpNetwork>,
    pub health: Option<Health>,
    pub problems: Vec<String>,
    /// Of two that ask for the same frontend the one with the lower number gets it.
    pub created: i64,
}

pub fn compile(place: &Place, service: &Service, slices: &[&EndpointSlice]) -> Compiled {
    let mut compiled = Compiled {
        created: service.created,
        ..Compiled::default()
    };
    if service.unserved.is_some() {
        return compiled;
    }
    compiled.problems.extend(service.misread.iter().cloned());
    if service.mode == Some(Mode::Dsr) && !place.tunnelled {
        compiled.problems.push(format!(
            "Service {}: dsr needs the tunnel; clients are answered by the node that they ask. Set routing to vxlan, or take \
             the annotation out",
            service.name
        ));
    }
    let mut serving = BTreeSet::new();
    let mut local_ready = [None; 2];
    for (family_ready, v4) in local_ready.iter_mut().zip([true, false]) {
        // Without an address of its own in a family a Service has nothing there, wherever else it has one.
        if !place.families.has(family(v4)) || !service.cluster_ips.iter().any(|ip| ip.is_ipv4() == v4) {
            continue;
        }
        let fronts = address::all(place, service, v4, &mut compiled.problems);
        let mut ready = BTreeSet::new();
        for port in &service.ports {
            let mut candidates = candidates(slices, port, v4, place);
            address::refuse_itself(place, service, &fronts, &mut candidates, &mut compiled.problems);
            let choice = Choice::new(candidates, place);
            serving.extend(
                choice
                    .serving
                    .iter()
                    .map(|candidate| (target(port, candidate), flags_of(candidate))),
            );
            ready.extend(
                choice
                    .local
                    .iter()
                    .filter(|one| one.state == Standing::Ready)
                    .map(|one| one.address),
            );
            PortAt {
                place,
                service,
                port,
                v4,
                choice: &choice,
            }
            .compile(&fronts, &mut compiled);
        }
        *family_ready = Some(ready.len());
        let answering = fronts
            .iter()
            .filter(|front| address::answers_pings(place, service, front));
        compiled
            .frontends
            .extend(answering.map(|(ip, kind)| address::alone(*ip, *kind)));
        let of_family = service.source_ranges.iter().filter(|range| range.is_ipv4() == v4);
        let before = compiled.ranges.len();
        compiled.ranges.extend(of_family.copied());
        if compiled.ranges.len() == before {
            compiled.problems.extend(open_to_nobody(service, v4, &fronts));
        }
    }
    if !compiled.ranges.is_empty() || !service.source_ranges.is_empty() {
        admit_the_node(place, &mut compiled.ranges);
    }
    compiled.serving = serving.into_iter().collect();
    let asked = service
        .health_check_node_port
        .filter(|_| service.external_policy == TrafficPolicy::Local);
    compiled.health = asked.map(|port| Health { port, local_ready });
    compiled.problems.extend(unserved_family(place, service));
    for slice in slices {
        if let Some(refused) = &slice.refused {
            let (count, reason) = &**refused;
            compiled.problems.push(format!(
                "EndpointSlice {}: {reason}; {count} endpoints are left out. Correct them",
                slice.name
            ));
        }
    }
    compiled.problems.dedup();
    compiled
}

/// Whoever names ranges does not mean everybody: in a family without any, nobody comes in.
fn open_to_nobody(service: &Service, v4: bool, fronts: &[(IpAddr, Kind)]) -> Option<String> {
    let first = service.source_ranges.first()?;
    let (ip, _) = fronts.iter().find(|(_, kind)| *kind == Kind::LoadBalancer)?;
    let (family, everybody) = if v4 {
        ("IPv4", "0.0.0.0/0")
    } else {
        ("IPv6", "::/0")
    };
    Some(format!(
        "Service {}: spec.loadBalancerSourceRanges ({first} is one) has no range of {family}, so that nobody reaches its address \
         {ip}. Add one, {everybody} for everybody",
        service.name
    ))
}

/// One of two families is enough: the other one is other nodes' business.
fn unserved_family(place: &Place, service: &Service) -> Option<String> {
    if service.cluster_ips.iter().any(|ip| place.families.has(*ip)) {
        return None;
    }
    let first = service.cluster_ips.first()?;
    let family = if first.is_ipv4() { "IPv4" } else { "IPv6" };
    Some(format!(
        "Service {}: its address {first} is of {family} alone, which this node does not serve: `families` is {}. Set it to dual, \
         or give the Service an address of the other family (spec.ipFamilyPolicy)",
        service.name, place.families
    ))
}

fn family(v4: bool) -> IpAddr {
    if v4 { [0; 4].into() } else { [0u16; 8].into() }
}

/// Load balancers that ask a node by its own address must not be shut out by it, if a range has the node at all.
fn admit_the_node(place: &Place, ranges: &mut Vec<IpNetwork>) {
    let own = place
        .own
        .iter()
        .copied()
        .filter(|ip| ranges.iter().any(|range| range.contains(*ip)));
    let own: Vec<IpNetwork> = own.map(IpNetwork::from).collect();
    if !own.is_empty() {
        // Whatever address the node sends from.
        ranges.extend(place.own.iter().copied().map(IpNetwork::from));
    }
    ranges.sort();
    ranges.dedup();
}

fn target(port: &ServicePort, candidate: &Candidate<'_>) -> Target {
    Target {
        addr: candidate.address.into(),
        port: Port::new(candidate.port),
        proto: port.protocol.number(),
    }
}

fn flags_of(candidate: &Candidate<'_>) -> u32 {
    let local = if candidate.local { backend_flags::LOCAL } else { 0 };
    let leaving = if candidate.state == Standing::Leaving {
        backend_flags::TERMINATING
    } else {
        0
    };
    local | leaving
}

fn key(ip: IpAddr, port: u16, proto: u8, scope: u8) -> ServiceKey {
    ServiceKey {
        addr: ip.into(),
        port: Port::new(port),
        proto,
        scope,
        pad: 0,
    }
}

/// One port in one family.
struct PortAt<'a> {
    place: &'a Place,
    service: &'a Service,
    port: &'a ServicePort,
    v4: bool,
    choice: &'a Choice<'a>,
}

impl PortAt<'_> {
    fn compile(&self, fronts: &[(IpAddr, Kind)], compiled: &mut Compiled) {
        let number = self.port.port;
        for (ip, kind) in fronts {
            if *kind == Kind::Cluster {
                self.cluster(*ip, &mut compiled.frontends);
            } else {
                self.external(*ip, number, *kind == Kind::LoadBalancer, &mut compiled.frontends);
            }
        }
        if let Some(number) = self.port.node_port {
            for ip in self.place.node_ports.iter().filter(|ip| ip.is_ipv4() == self.v4) {
                self.external(*ip, number, false, &mut compiled.frontends);
            }
        }
        for local in [false, true] {
            let name = self.set(local);
            let scopes = compiled
                .frontends
                .iter()
                .filter(|frontend| frontend.set == Some(name));
            let scopes: BTreeSet<u8> = scopes.map(|frontend| frontend.key.scope).collect();
            if !scopes.is_empty() {
                let chosen = if local {
                    &self.choice.local
                } else {
                    &self.choice.cluster
                };
                compiled.sets.push(SlotSet {
                    name,
                    targets: chosen
                        .iter()
                        .map(|candidate| target(self.port, candidate))
                        .collect(),
                    affinity: self.service.affinity_seconds.is_some(),
                    hints: if local {
                        HintsUsed::Anywhere
                    } else {
                        self.choice.topology
                    },
                    maglev: scopes
                        .contains(&service_scope::EXTERNAL)
                        .then(|| self.maglev(chosen.len(), &mut compiled.problems))
                        .flatten(),
                });
            }
        }
    }

    /// The size of the table for so many endpoints, if there is to be one.
    fn maglev(&self, endpoints: usize, problems: &mut Vec<String>) -> Option<u32> {
        if self.algorithm() != Algorithm::Maglev {
            return None;
        }
        let size = match self.service.maglev_size.unwrap_or(self.place.maglev_size) {
            0 => maglev::size(endpoints),
            size => size,
        };
        if endpoints > size as usize {
            problems.push(format!(
                "Service {}: a Maglev table of {size} places leaves some of its {endpoints} endpoints without connections \
                 from outside; {}",
                self.service.name,
                maglev::advice()
            ));
        }
        Some(size)
    }

    fn set(&self, local: bool) -> SetName {
        SetName {
            port: self.port.port,
            proto: self.port.protocol.number(),
            v4: self.v4,
            local,
        }
    }

    fn cluster(&self, ip: IpAddr, frontends: &mut Vec<Frontend>) {
        let masquerade = if self.place.masquerade_all {
            service_flags::MASQUERADE
        } else {
            0
        };
        let local = self.service.internal_policy == TrafficPolicy::Local;
        frontends.push(self.frontend(ip, self.port.port, service_scope::CLUSTER, local, masquerade));
    }

    fn external(&self, ip: IpAddr, number: u16, restricted: bool, frontends: &mut Vec<Frontend>) {
        let restricted = restricted && !self.service.source_ranges.is_empty();
        let local = self.service.external_policy == TrafficPolicy::Local;
        let (inside, outside) = if local {
            (0, 0)
        } else {
            (
                service_flags::MASQUERADE,
                service_flags::MASQUERADE | self.direct(),
            )
        };
        // Inside of the cluster there is no client's address to lose: every endpoint will do.
        let inside = self.frontend(ip, number, service_scope::CLUSTER, false, inside);
        frontends.push(Frontend { restricted, ..inside });
        if !ip.is_loopback() {
            let outside = self.frontend(ip, number, service_scope::EXTERNAL, local, outside);
            frontends.push(Frontend {
                restricted,
                ..outside
            });
        }
    }

    fn algorithm(&self) -> Algorithm {
        self.service.algorithm.unwrap_or(self.place.algorithm)
    }

    /// Whether clients from outside are answered past the node that they ask.
    fn direct(&self) -> u32 {
        match self.service.mode.unwrap_or(self.place.mode) {
            Mode::Dsr if self.place.tunnelled && self.algorithm() == Algorithm::Maglev => {
                service_flags::DSR | service_flags::ANY_NODE
            }
            Mode::Dsr if self.place.tunnelled => service_flags::DSR,
            _ => 0,
        }
    }

    fn frontend(&self, ip: IpAddr, number: u16, scope: u8, local: bool, flags: u32) -> Frontend {
        let chosen = if local {
            &self.choice.local
        } else {
            &self.choice.cluster
        };
        let nothing = match (chosen.is_empty(), self.choice.serving.is_empty()) {
            (false, _) => 0,
            (true, true) => service_flags::REJECT,
            (true, false) => service_flags::DROP,
        };
        let affinity = match self.service.affinity_seconds {
            Some(_) => service_flags::AFFINITY,
            None => 0,
        };
        Frontend {
            key: key(ip, number, self.port.protocol.number(), scope),
            set: Some(self.set(local)),
            flags: flags | nothing | affinity,
            affinity_seconds: self.service.affinity_seconds.unwrap_or(0),
            restricted: false,
        }
    }
}
