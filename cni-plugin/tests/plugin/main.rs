//! The real `millrace-cni` on real network namespaces, with an agent that has no datapath.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Tests fail by panicking.

mod add;
mod check;
mod del;
mod interrupted;
mod ipam;
mod node;
#[path = "../../../tests/src/not_run.rs"]
mod not_run;
mod reference;
mod steps;
mod verbs;
