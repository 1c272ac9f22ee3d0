//! Nodes and pods as network namespaces, the real agent, the real plugin, real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on panics"
)]

mod bonds;
mod chaos;
mod clock;
mod demo;
mod devices;
mod events;
mod expedite;
mod firewall;
mod flood;
mod forgery;
mod host;
mod icmp;
mod lifecycle;
mod matrix;
mod restart;
mod routing;
mod runtimes;
mod sctp;
mod services;
mod settings;
mod sizes;
#[path = "../../../cni-plugin/tests/plugin/steps.rs"]
mod steps;
mod uninstall;
mod upgrade;

use std::{
    io::ErrorKind,
    thread,
    time::{Duration, Instant},
};

/// Waits until `done` says `None`; its last words are the failure.
#[track_caller]
fn eventually(mut done: impl FnMut() -> Option<String>) {
    let deadline = Instant::now() + cni_tests::patience(Duration::from_secs(20));
    while let Some(words) = done() {
        assert!(Instant::now() < deadline, "{words}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Why the kernel refused a connection.
fn kind_of(error: &anyhow::Error) -> Option<ErrorKind> {
    error.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
}

/// Whether namespaces can be made; says so if not.
macro_rules! needs_root {
    () => {
        cni_tests::require!(nix::unistd::geteuid().is_root(), "network namespaces need root")
    };
}
use needs_root;

/// A program of the release to come; says so if it was not built.
macro_rules! next_release {
    ($variable:literal, $name:literal) => {{
        let next = cni_tests::lab::binary($variable, concat!("bpf/", $name, "-next"));
        cni_tests::require!(
            next.is_file(),
            "`cargo xtask test netns` builds {}",
            next.display()
        );
        next
    }};
}
use next_release;
