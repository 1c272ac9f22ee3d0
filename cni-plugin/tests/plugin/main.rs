//! The real `millrace-cni` on real network namespaces, with an agent that has no datapath.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests fail by panicking.

mod add;
mod check;
mod del;
mod interrupted;
mod ipam;
mod node;
mod reference;
mod verbs;
