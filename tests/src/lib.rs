#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on panics"
)]
//! What the tests on real kernels stand on.
//!
//! [`lab`] brings up nodes as network namespaces, each with the real agent, and pods that the real CNI binary attaches;
//! [`traffic`] talks between them over real sockets, [`wire`] over hand-made frames. [`object`] loads the BPF object by
//! itself.
//!
//! A missing privilege or kernel feature is a failure when `CI=true`; elsewhere the test says why it does not run
//! ([`require`]) and counts as skipped. What the kernels of our virtual machines alone are sure to have ([`require_in_vm`]:
//! SCTP, bonds, VLANs, `fq`) is a failure only there, and layer `vm` must have passed it there.

pub mod bench;
pub mod cgroup;
pub mod frames;
pub mod lab;
pub mod memory;
pub mod netns;
pub mod object;
pub mod traffic;
pub mod wire;
pub mod world;

use std::{
    io::{self, Write},
    thread,
    time::Duration,
};

/// Says that a test was not run. `cargo xtask test` reads it and counts the test as skipped.
pub fn not_run(whose: NotRun, why: &str) {
    let this = thread::current();
    let test = this.name().unwrap_or("a test");
    // An error's backtrace is no reason.
    let why = why.lines().next().unwrap_or_default();
    // By itself, because what a test prints is kept back when it passes. Nobody reads it: nobody is told.
    let _ = writeln!(io::stdout().lock(), "{}: {test}: {why}", whose.words());
}

/// Who runs a test that cannot run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRun {
    Nobody,
    /// The layer `vm`.
    Machine,
}

impl NotRun {
    fn words(self) -> &'static str {
        match self {
            Self::Nobody => "NOT RUN",
            Self::Machine => "NOT RUN, layer vm does",
        }
    }
}

/// A time limit of a test, stretched by the factor `MILLRACE_PATIENCE` on machines that are slow by nature.
pub fn patience(limit: Duration) -> Duration {
    let factor = std::env::var("MILLRACE_PATIENCE").ok();
    limit * factor.and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

/// Ends the test if `condition` does not hold: with a failure in our virtual machines (`MILLRACE_VM`), whose kernels have
/// everything; elsewhere it is left to them.
#[macro_export]
macro_rules! require_in_vm {
    ($condition:expr, $($why:tt)*) => {
        if !$condition {
            let why = format!($($why)*);
            assert!(std::env::var_os("MILLRACE_VM").is_none(), "a virtual machine must run the test: {why}");
            $crate::not_run($crate::NotRun::Machine, &why);
            return;
        }
    };
}

/// Ends the test if `condition` does not hold: with a failure under `CI=true`, skipped elsewhere.
#[macro_export]
macro_rules! require {
    ($condition:expr, $($why:tt)*) => {
        if !$condition {
            let why = format!($($why)*);
            assert!(std::env::var_os("CI").is_none(), "this machine cannot run the test: {why}");
            $crate::not_run($crate::NotRun::Nobody, &why);
            return;
        }
    };
}
