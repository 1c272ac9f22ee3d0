//! Who is behind an address of the cluster.

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

/// A pod on its host's network has the node's addresses, one that has ended has none.
pub(super) fn is_peer(pod: &Pod) -> bool {
    !pod.host_network && !pod.finished
}
