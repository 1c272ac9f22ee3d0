//! The objects of a big cluster, by their number.

use std::net::Ipv4Addr;

use cni_tests::bench::cluster::objects::{self, Endpoint, NODES, Object, PODS};
use serde_json::json;

/// How many there are of each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) nodes: usize,
    pub(crate) pods: usize,
    pub(crate) services: usize,
}

/// The clusters that people call big.
const FULL: Scale = Scale {
    nodes: 5_000,
    pods: 50_000,
    services: 10_000,
};
const ENDPOINTS: usize = 10;

impl Scale {
    /// A share of it, for a trial.
    pub(crate) fn share(share: f64) -> Self {
        let of = |number: usize| ((number as f64 * share) as usize).max(ENDPOINTS);
        Self {
            nodes: of(FULL.nodes),
            pods: of(FULL.pods),
            services: of(FULL.services),
        }
    }
}

fn range(node: usize) -> String {
    format!("10.{}.{}", 64 + node / 256, node % 256)
}

pub(crate) fn node(number: usize) -> Object {
    let pods = format!("{}.0/24", range(number));
    let body = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": format!("worker-{number}"),
            "labels": {
                "topology.kubernetes.io/zone": format!("zone-{}", number % 3),
                "kubernetes.io/hostname": format!("worker-{number}"), "kubernetes.io/os": "linux",
                "node.kubernetes.io/instance-type": "big",
            },
        },
        "spec": {"podCIDR": pods, "podCIDRs": [pods]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": format!("172.20.{}.{}", number / 250, number % 250 + 1)}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    });
    Object {
        collection: NODES,
        body,
    }
}

fn address(pod: usize, scale: &Scale) -> Ipv4Addr {
    let node = pod % scale.nodes;
    [
        10,
        64 + (node / 256) as u8,
        (node % 256) as u8,
        2 + (pod / scale.nodes) as u8,
    ]
    .into()
}

pub(crate) fn pod(number: usize, scale: &Scale) -> Object {
    let address = address(number, scale);
    let body = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("app-{number}"),
            "labels": {
                "app": format!("app-{}", number % 500), "tier": "backend", "team": format!("team-{}", number % 40),
                "pod-template-hash": format!("{:08x}", number % 500),
            },
        },
        "spec": {
            "nodeName": format!("worker-{}", number % scale.nodes),
            "containers": [{"name": "app", "image": "registry.example.com/team/app:1.2.3"}],
        },
        "status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    Object {
        collection: PODS,
        body,
    }
}

pub(crate) fn slice(number: usize, scale: &Scale) -> Object {
    let endpoints = (0..ENDPOINTS).map(|endpoint| {
        let pod = (number * ENDPOINTS + endpoint) % scale.pods;
        Endpoint {
            address: address(pod, scale).into(),
            node: format!("worker-{}", pod % scale.nodes),
            zone: format!("zone-{}", pod % 3),
            pod: format!("app-{pod}"),
        }
    });
    objects::slice(&format!("service-{number}"), endpoints)
}
