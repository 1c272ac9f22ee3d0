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
            desired.tables.peers.entry(Addr::from(ip)).or_insert(peer(flags));
        }
    };
    for ip in &topology.own_addresses {
        put(*ip, peer_flags::HOST);
    }
    for other in topology.others() {
        for ip in &other.node.addresses {
            put(*ip, peer_flags::REMOTE_NODE);
        }
    }
    for (ip, _) in state.pods.by_address() {
        put(ip, peer_flags::POD);
    }
}

pub(super) fn peer(flags: u32) -> Peer {
    Peer {
        flags,
        ..Peer::default()
    }
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
    let here = |pod: &&Pod| *pod.node == *topology.config.node_name && pod.is_peer();
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
