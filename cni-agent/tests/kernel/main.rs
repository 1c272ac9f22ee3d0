//! The kernel side of the agent against the real kernel.
//!
//! Every test has a network and a mount namespace of its own, with a bpffs of its own in it: all of it goes away with
//! the test's thread, also when it panics.

// Helpers of tests may fail as loudly as the tests.
#![allow(clippy::unwrap_used, clippy::panic)]

mod capabilities;
mod cli;
mod devices;
mod host;
mod kube_proxy;
mod links;
mod maps;
mod namespace;
#[path = "../../../tests/src/not_run.rs"]
mod not_run;
mod requests;
mod routes;
mod signals;
