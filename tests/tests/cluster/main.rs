//! A real Kubernetes on two nodes, brought up by `cargo xtask test cluster`, which tells where it is.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on panics"
)]

mod agent;
mod kube_proxy;
mod kubernetes;
mod leftovers;
mod plans;
mod power;
mod uninstall;
mod workloads;
