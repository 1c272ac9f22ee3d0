//! Addresses of a Service: which are served, what each of them is, and that none is behind itself.

use std::net::IpAddr;

use cni_ebpf::abi::{service_flags, service_scope};

use super::{Frontend, Place, choice::Candidate, key};
use crate::model::Service;

/// Where a Service is reached, as far as it makes a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Cluster,
    External,
    LoadBalancer,
}

/// Those of one family, NodePorts apart.
pub(super) fn all(
    place: &Place,
    service: &Service,
    v4: bool,
    problems: &mut Vec<String>,
) -> Vec<(IpAddr, Kind)> {
    let mut fronts: Vec<(IpAddr, Kind)> = Vec::new();
    let mut add = |ip: IpAddr, kind| {
        if ip.is_ipv4() == v4 && !fronts.iter().any(|(other, _)| *other == ip) {
            fronts.push((ip, kind));
        }
    };
    service.cluster_ips.iter().for_each(|ip| add(*ip, Kind::Cluster));
    service
        .load_balancer_ips
        .iter()
        .for_each(|ip| add(*ip, Kind::LoadBalancer));
    for ip in service.external_ips.iter().filter(|ip| ip.is_ipv4() == v4) {
        match refused_external(place, *ip) {
            None => add(*ip, Kind::External),
            Some(reason) => problems.push(format!(
                "Service {}: spec.externalIPs has {ip}, {reason}",
                service.name
            )),
        }
    }
    fronts
}

/// Whoever may write Services could take over what others use.
fn refused_external(place: &Place, ip: IpAddr) -> Option<&'static str> {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if !place.external_ips {
        Some("which is not served; set services.externalIPs to serve such addresses")
    } else if place.nodes.contains(&ip) {
        Some("which is a node's own address and is not served; take it out")
    } else if place.is_service_address(ip) {
        Some("which is in the range of Service addresses and is not served; take it out")
    } else if place.pod_ranges.iter().any(|range| range.contains(ip)) {
        Some("which is in a node's range of pods and is not served; take it out")
    } else if place.resolvers.contains(&ip) {
        Some("which this node resolves names by (paths.resolvConf) and is not served; take it out")
    } else if link_local || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() {
        Some("which means something else on every machine and is not served; take it out")
    } else {
        None
    }
}

/// A Service behind itself would go round for ever. A node's address may be both: where a load balancer has it, and what a pod of
/// the node's own network listens at.
pub(super) fn refuse_itself(
    place: &Place,
    service: &Service,
    fronts: &[(IpAddr, Kind)],
    candidates: &mut Vec<Candidate<'_>>,
    problems: &mut Vec<String>,
) {
    candidates.retain(|candidate| {
        let address = candidate.address;
        let is_own = |(ip, kind): &(IpAddr, Kind)| {
            *ip == address && (*kind == Kind::Cluster || !place.nodes.contains(ip))
        };
        let own = fronts.iter().any(is_own);
        if own {
            problems.push(format!(
                "Service {}: its own address {address} is among its endpoints and left out; correct its EndpointSlices",
                service.name
            ));
        }
        !own
    });
}

/// Somebody else may answer for a node's address, which is never served as an external one, and not everybody is to hear of a
/// load balancer that names its clients.
pub(super) fn answers_pings(place: &Place, service: &Service, (ip, kind): &(IpAddr, Kind)) -> bool {
    match kind {
        Kind::Cluster | Kind::External => true,
        Kind::LoadBalancer => !place.nodes.contains(ip) && service.source_ranges.is_empty(),
    }
}

/// An address by itself: it answers pings, and every other port of a ClusterIP refuses.
pub(super) fn alone(ip: IpAddr, kind: Kind) -> Frontend {
    let refuses = kind == Kind::Cluster;
    Frontend {
        key: key(ip, 0, 0, service_scope::CLUSTER),
        set: None,
        flags: if refuses { service_flags::REJECT } else { 0 },
        affinity_seconds: 0,
        restricted: false,
    }
}
