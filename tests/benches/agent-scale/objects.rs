//! The objects of a big cluster, by their number.

use std::net::Ipv4Addr;

use cni_tests::bench::cluster::{
    Change,
    objects::{self, Endpoint, NODES, Object, PODS, SLICES},
};
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

/// What becomes of a pod in each turn of the churn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Replaced,
    Readdressed,
    Labelled,
}

impl Fate {
    fn of(pod: usize) -> Self {
        [Self::Replaced, Self::Readdressed, Self::Labelled][pod % 3]
    }
}

/// Turn 0 is before the churn.
fn address(pod: usize, scale: &Scale, turn: usize) -> Ipv4Addr {
    let node = pod % scale.nodes;
    let moved = Fate::of(pod) != Fate::Labelled && turn % 2 == 1;
    let host = 2 + pod / scale.nodes + if moved { 100 } else { 0 };
    [10, 64 + (node / 256) as u8, (node % 256) as u8, host as u8].into()
}

/// All pods in turn, without an end.
pub(crate) fn changes(scale: Scale) -> impl Iterator<Item = Change> {
    let turns = (1..).flat_map(move |turn| (0..scale.pods).map(move |pod| (pod, turn)));
    turns.flat_map(move |(pod, turn)| change(pod, turn, &scale))
}

fn change(number: usize, turn: usize, scale: &Scale) -> Vec<Change> {
    let pod = pod(number, scale, turn);
    let mut changes = match Fate::of(number) {
        Fate::Replaced => {
            let mut changes = vec![Change::delete(PODS, pod.name())];
            changes.extend(Change::create(&pod));
            changes
        }
        Fate::Readdressed => vec![Change::status(&pod)],
        Fate::Labelled => {
            let labels = json!({"metadata": {"labels": {"turn": turn.to_string()}}});
            return vec![Change::merge(format!("{PODS}/{}", pod.name()), labels)];
        }
    };
    let service = number / ENDPOINTS;
    if service < scale.services {
        // Those behind it have their turn yet.
        let slice = slice(service, scale, |other| turn - usize::from(other > number));
        let endpoints = json!({"endpoints": slice.body["endpoints"]});
        changes.push(Change::merge(format!("{SLICES}/{}", slice.name()), endpoints));
    }
    changes
}

pub(crate) fn pod(number: usize, scale: &Scale, turn: usize) -> Object {
    let address = address(number, scale, turn);
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

/// `turn`: which one a pod has had.
pub(crate) fn slice(number: usize, scale: &Scale, turn: impl Fn(usize) -> usize) -> Object {
    let endpoints = (0..ENDPOINTS).map(|endpoint| {
        let pod = (number * ENDPOINTS + endpoint) % scale.pods;
        Endpoint {
            address: address(pod, scale, turn(pod)).into(),
            node: format!("worker-{}", pod % scale.nodes),
            zone: format!("zone-{}", pod % 3),
            pod: format!("app-{pod}"),
        }
    });
    objects::slice(&format!("service-{number}"), endpoints)
}
