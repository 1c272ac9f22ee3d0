//! Who is behind an address of the cluster.

use std::{collections::BTreeSet, net::IpAddr};

use cni_ebpf::abi::{Addr, Peer, peer_flags};

use super::Topology;
use crate::{desired::Desired, model::Pod, state::State};

/// The `peers` table. Nodes come first: a pod that claims a node's address does not become that node, nor the node a
/// pod.
pub(super) fn peers(topology: &Topology<'_>, state: &State, desired: &mut Desired) {
    let families = topology.config.families;
    let mut put = |ip, flags| {
        if families.has(ip) {
            desired.tables.peers.entry(Addr::from(ip)).or_insert(Peer {
                flags,
                ..Peer::default()
            });
        }
    };
    for ip in &topology.own_addresses {
        put(*ip, peer_flags::HOST);
    }
    for other in &topology.others {
        for ip in &other.node.addresses {
            put(*ip, peer_flags::REMOTE_NODE);
        }
    }
    for pod in state.pods.values().filter(|pod| is_peer(pod)) {
        for ip in &pod.addresses {
            put(*ip, peer_flags::POD);
        }
    }
}

/// Those of `gone` that a Pod object names. Without a copy of the whole table: a DEL must not cost more in a larger
/// cluster than a look at each pod.
pub(super) fn named_by_pods(state: &State, gone: &Desired) -> Vec<Addr> {
    state
        .pods
        .values()
        .filter(|pod| is_peer(pod))
        .flat_map(|pod| pod.addresses.iter().copied().map(Addr::from))
        .filter(|addr| gone.tables.peers.contains_key(addr))
        .collect()
}

/// Pods of this node that run and are no endpoints: they were started before Millrace was there, or by another network.
/// Nothing of theirs passes its programs.
pub(super) fn unmanaged(topology: &Topology<'_>, state: &State) -> Option<String> {
    let known: BTreeSet<IpAddr> = state
        .endpoints
        .values()
        .flat_map(|endpoint| endpoint.addresses.iter().copied())
        .collect();
    let is_unknown =
        |pod: &&Pod| !pod.addresses.is_empty() && !pod.addresses.iter().any(|ip| known.contains(ip));
    let here = |pod: &&Pod| pod.node == topology.config.node_name && is_peer(pod);
    let names: Vec<String> = state
        .pods
        .values()
        .filter(here)
        .filter(is_unknown)
        .map(|pod| pod.name.to_string())
        .collect();
    let examples = names.get(..3).unwrap_or(&names).join(", ");
    let more = if names.len() > 3 { ", ..." } else { "" };
    (!names.is_empty()).then(|| {
        format!(
            "pods of this node with another network than Millrace's, which nothing filters: {} ({examples}{more}); \
             delete them, so that they are started anew",
            names.len()
        )
    })
}

/// A pod on its host's network has the node's addresses, one that has ended has none.
pub(super) fn is_peer(pod: &Pod) -> bool {
    !pod.host_network && !pod.finished
}
