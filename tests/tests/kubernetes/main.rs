//! The agent and a real API server: two agents in namespaces, etcd and kube-apiserver on the fabric, no kubelet.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on panics"
)]

mod churn;
mod control_plane;
mod endpoints;
mod flow;
mod front_end;
mod kube_proxy;
mod oracle;
mod own_node;
mod rbac;
mod service_events;
mod services;
mod settings;
mod shipped;
mod sync;

use std::{
    thread,
    time::{Duration, Instant},
};

use cni_tests::lab::Node;

/// Waits until `done` says `None`; its last words are the failure. A watch that failed is tried again after up to a minute.
#[track_caller]
fn eventually(mut done: impl FnMut() -> Option<String>) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while let Some(words) = done() {
        assert!(Instant::now() < deadline, "{words}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// What the agent has written into the kernel, Services included.
fn everything(node: &Node) -> Vec<String> {
    let mut all = node.intent().unwrap();
    for map in [
        "services",
        "service_slots",
        "service_members",
        "service_ranges",
        "backends",
    ] {
        all.extend(
            node.dump(map)
                .unwrap()
                .into_iter()
                .map(|entry| format!("{map} {entry}")),
        );
    }
    all
}

/// Whether a control plane can run here; says so if not.
macro_rules! needs_control_plane {
    () => {
        cni_tests::require!(nix::unistd::geteuid().is_root(), "network namespaces need root");
        cni_tests::require!(
            cni_tests::lab::control_plane::is_available(),
            "MILLRACE_KUBERNETES_PROGRAMS names no folder with etcd, kube-apiserver and kubectl; `cargo xtask test kubernetes` builds them"
        )
    };
}
use needs_control_plane;
