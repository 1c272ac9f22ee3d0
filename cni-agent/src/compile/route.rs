//! Where addresses lie: the `routes` table for the programs, and the host's own routes to the pods of other nodes.

use std::{collections::BTreeMap, net::IpAddr};

use cni_ebpf::abi::{Addr, Prefix, Route, route_action, route_flags};
use ipnetwork::IpNetwork;

use super::{
    Topology,
    topology::{Other, told_by_rest},
};
use crate::{
    desired::{Desired, HostRoute, NextHop, RouteKey},
    model::Pod,
};

/// Who said what first: a prefix is entered once, and the first one who claims it has it.
struct Claims<'a> {
    table: &'a mut BTreeMap<Prefix, Route>,
    families: crate::config::Families,
}

impl Claims<'_> {
    /// False if somebody else has the prefix.
    fn put(&mut self, range: IpNetwork, route: Route) -> bool {
        let Some(prefix) = Prefix::new(range.network(), range.prefix()) else {
            return true;
        };
        if !self.families.has(range.ip()) {
            return true;
        }
        *self.table.entry(prefix).or_insert(route) == route
    }

    fn address(&mut self, ip: IpAddr, route: Route) {
        self.put(ip.into(), route);
    }
}

pub(super) fn routes(topology: &Topology<'_>, desired: &mut Desired, problems: &mut Vec<String>) {
    let config = topology.config;
    let mut claims = Claims {
        table: &mut desired.tables.routes,
        families: config.families,
    };
    for ip in &topology.own_addresses {
        claims.address(*ip, route(route_action::HOST, route_flags::NODE));
    }
    for other in topology.others() {
        for ip in &other.node.addresses {
            // Pod to node goes through the tunnel too: the fabric need not know pods' addresses.
            let to_node = match other.tunnel_address {
                Some(gateway) if topology.tunnelled() => tunnel(topology, gateway),
                _ => route(route_action::FIB, 0),
            };
            claims.address(
                *ip,
                Route {
                    flags: route_flags::NODE,
                    ..to_node
                },
            );
        }
    }
    for range in &topology.pod_cidrs {
        claims.put(*range, route(route_action::ENDPOINTS, 0));
        // Pods' own routes are narrower. Without this the stack sends what is for an address that no pod has by its
        // default route, and a router sends it back, until its time to live is over.
        if config.families.has(range.ip()) {
            let key = RouteKey { destination: *range };
            desired.routes.insert(key, HostRoute::Unreachable);
        }
    }
    for other in topology.others() {
        let told = told_by_rest(&other.node.pod_cidrs);
        for range in &other.node.pod_cidrs {
            let mut route = to_pods(topology, other.tunnel_address, range, &other.node.addresses);
            if route.action == route_action::TUNNEL && (range.is_ipv4() || told == Some(range)) {
                route.flags = route_flags::DSR;
            }
            if overlaps(topology, range) || !claims.put(*range, route) {
                problems.push(format!(
                    "Node {}: pod range {range} is another node's too; correct spec.podCIDRs of one of them",
                    other.node.name
                ));
                continue;
            }
            host_route(
                topology,
                range,
                &other.node.addresses,
                other.tunnel_address,
                &mut desired.routes,
            );
        }
    }
    for range in &topology.via_stack {
        claims.put(*range, route(route_action::STACK, 0));
    }
    for range in &topology.service_ranges {
        claims.put(*range, route(route_action::SERVICE, 0));
    }
    for range in &config.masquerade.non_masquerade_cidrs {
        claims.put(*range, route(route_action::FIB, 0));
    }
    let outside = if config.masquerade.enabled {
        route_flags::MASQUERADE
    } else {
        0
    };
    for everything in [IpAddr::from([0u8; 4]), IpAddr::from([0u8; 16])] {
        if let Ok(range) = IpNetwork::new(everything, 0) {
            claims.put(range, route(route_action::FIB, outside));
        }
    }
}

/// The node of a pod whose address is not in its node's ranges: another IPAM gave it, or it moved.
pub(super) fn node_apart<'s>(topology: &Topology<'s>, pod: &Pod, ip: IpAddr) -> Option<Other<'s>> {
    let other = topology.other(&pod.node)?;
    let ranges = &other.node.pod_cidrs;
    (!ranges.iter().any(|range| range.contains(ip))).then_some(other)
}

/// The way to such a pod, unless its address is somebody else's already.
pub(super) fn of_pod(topology: &Topology<'_>, ip: IpAddr, other: &Other<'_>, desired: &mut Desired) {
    let mut claims = Claims {
        table: &mut desired.tables.routes,
        families: topology.config.families,
    };
    let (range, addresses) = (IpNetwork::from(ip), &other.node.addresses);
    if claims.put(range, to_pods(topology, other.tunnel_address, &range, addresses)) {
        host_route(
            topology,
            &range,
            addresses,
            other.tunnel_address,
            &mut desired.routes,
        );
    }
}

/// Whether a range of the cluster is just this address, so that its way does not depend on pods alone.
pub(super) fn is_range(topology: &Topology<'_>, ip: IpAddr) -> bool {
    let pods = topology.pod_cidrs.iter();
    let mut ranges = pods
        .chain(&topology.via_stack)
        .chain(&topology.service_ranges)
        .chain(&topology.config.masquerade.non_masquerade_cidrs);
    topology.is_of_a_node(ip) || ranges.any(|range| *range == IpNetwork::from(ip))
}

fn route(action: u8, flags: u8) -> Route {
    Route {
        action,
        flags,
        ..Route::default()
    }
}

fn tunnel(topology: &Topology<'_>, gateway: IpAddr) -> Route {
    Route {
        gateway: Addr::from(gateway),
        ifindex: topology.tunnel.map_or(0, |device| device.ifindex),
        mtu: topology.mtu,
        action: route_action::TUNNEL,
        ..Route::default()
    }
}

fn overlaps(topology: &Topology<'_>, range: &IpNetwork) -> bool {
    topology
        .pod_cidrs
        .iter()
        .any(|own| crate::config::overlap(own, range))
}

/// The next hop to a range when the nodes share a link.
fn neighbour<'a>(
    topology: &Topology<'a>,
    range: &IpNetwork,
    addresses: &[IpAddr],
) -> Option<(IpAddr, &'a crate::model::Device)> {
    addresses
        .iter()
        .filter(|ip| ip.is_ipv4() == range.is_ipv4())
        .find_map(|ip| Some((*ip, topology.link_to(*ip)?)))
}

fn to_pods(
    topology: &Topology<'_>,
    gateway: Option<IpAddr>,
    range: &IpNetwork,
    addresses: &[IpAddr],
) -> Route {
    if topology.tunnelled() {
        // Without an address the node cannot be reached; saying so beats a packet on the wrong way.
        return gateway.map_or(route(route_action::UNREACHABLE, 0), |gateway| {
            tunnel(topology, gateway)
        });
    }
    match neighbour(topology, range, addresses) {
        Some((ip, device)) => Route {
            gateway: Addr::from(ip),
            ifindex: device.ifindex,
            mtu: device.mtu,
            action: route_action::DIRECT,
            ..Route::default()
        },
        None => route(route_action::FIB, 0),
    }
}

/// What the host itself sends to pods of other nodes. A node behind a router is the fabric's business.
fn host_route(
    topology: &Topology<'_>,
    range: &IpNetwork,
    addresses: &[IpAddr],
    tunnel_address: Option<IpAddr>,
    routes: &mut BTreeMap<RouteKey, HostRoute>,
) {
    if !topology.config.families.has(range.ip()) {
        return;
    }
    let next = if topology.tunnelled() {
        let (Some(device), Some(_)) = (topology.tunnel, tunnel_address) else {
            return;
        };
        NextHop {
            ifindex: device.ifindex,
            gateway: None,
            source: topology.node_address(range.is_ipv4()),
            mtu: None,
        }
    } else {
        let Some((ip, device)) = neighbour(topology, range, addresses) else {
            return;
        };
        NextHop {
            ifindex: device.ifindex,
            gateway: Some(ip),
            source: None,
            mtu: None,
        }
    };
    routes.insert(RouteKey { destination: *range }, HostRoute::Via(next));
}
