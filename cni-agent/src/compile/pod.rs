//! What the cluster's pods are to this node, address by address: so one that comes or goes costs its addresses, and no look
//! at the others.

use std::{collections::BTreeSet, net::IpAddr};

use cni_ebpf::abi::{Addr, Prefix, Route, peer_flags};

use super::{Topology, address, host, route};
use crate::{
    config::Config,
    desired::{Desired, HostRoute, RouteKey},
    model::Pod,
    state::{PodChanges, State},
};

/// What is to be in the kernel under some keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Part {
    pub desired: Desired,
    /// All keys that may be different, those of `desired` among them.
    pub touched: Desired,
}

/// Ways to pods whose addresses are not in their nodes' ranges.
pub(super) fn routes(topology: &Topology<'_>, state: &State, desired: &mut Desired) {
    let own = of_endpoints(state);
    for (ip, _) in state.pods.by_address().filter(|(ip, _)| !own.contains(ip)) {
        route_at(topology, state, ip, desired);
    }
}

fn route_at(topology: &Topology<'_>, state: &State, ip: IpAddr, desired: &mut Desired) {
    let pods = state.pods.at(ip).iter();
    for other in pods.filter_map(|pod| route::node_apart(topology, pod, ip)) {
        route::of_pod(topology, ip, &other, desired);
    }
}

/// What these changes come to, as a part of the whole. `None`: more than the addresses of pods elsewhere is concerned, and
/// the whole must be compiled.
pub fn changed_pods(config: &Config, state: &State, changes: &PodChanges) -> Option<Part> {
    let after = changes.keys().filter_map(|name| state.pods.get(name));
    let before = changes.values().flatten().map(|pod| &**pod);
    let pods: Vec<&Pod> = before.chain(after).collect();
    if pods.iter().any(|pod| *pod.node == *config.node_name) {
        return None;
    }
    let served = |ip: &IpAddr| config.families.has(*ip);
    let peers = pods.into_iter().filter(|pod| pod.is_peer());
    let places: Vec<(IpAddr, &Pod)> = peers
        .flat_map(|pod| {
            pod.addresses
                .iter()
                .copied()
                .filter(served)
                .map(move |ip| (ip, pod))
        })
        .collect();
    let mut part = Part::default();
    if places.is_empty() {
        return Some(part);
    }
    let topology = Topology::new(config, state);
    host::constants(&topology)?;
    let addresses: BTreeSet<IpAddr> = places.iter().map(|(ip, _)| *ip).collect();
    if is_anything_else(&topology, state, &addresses) {
        return None;
    }
    for ip in addresses {
        let (addr, peer) = (Addr::from(ip), address::peer(peer_flags::POD));
        if !state.pods.at(ip).is_empty() {
            part.desired.tables.peers.insert(addr, peer.clone());
        }
        part.touched.tables.peers.insert(addr, peer);
    }
    let apart = places
        .iter()
        .filter(|(ip, pod)| route::node_apart(&topology, pod, *ip).is_some());
    for ip in apart.map(|(ip, _)| *ip).collect::<BTreeSet<_>>() {
        if route::is_range(&topology, ip) {
            return None;
        }
        let (prefix, key) = (
            Prefix::host(ip.into()),
            RouteKey {
                destination: ip.into(),
            },
        );
        part.touched.tables.routes.insert(prefix, Route::default());
        part.touched.routes.insert(key, HostRoute::Unreachable);
        route_at(&topology, state, ip, &mut part.desired);
    }
    Some(part)
}

/// The address of a pod here, or of a node.
fn is_anything_else(topology: &Topology<'_>, state: &State, addresses: &BTreeSet<IpAddr>) -> bool {
    addresses.iter().any(|ip| topology.is_of_a_node(*ip)) || !of_endpoints(state).is_disjoint(addresses)
}

fn of_endpoints(state: &State) -> BTreeSet<IpAddr> {
    state
        .endpoints
        .values()
        .flat_map(|endpoint| endpoint.addresses.iter().copied())
        .collect()
}
