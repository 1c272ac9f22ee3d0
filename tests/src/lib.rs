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
pub mod crew;
pub mod frames;
pub mod lab;
pub mod memory;
pub mod netns;
mod not_run;
pub mod object;
#[path = "../../cni-agent/src/kernel/loader/signals.rs"]
mod signals;
pub mod traffic;
pub mod wire;
pub mod world;

use std::time::Duration;

pub use not_run::cannot_run;

/// Says that the virtual machines of layer `vm` are to run a test.
pub fn left_to_machines(why: &str) {
    not_run::say("NOT RUN, layer vm does", why);
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
            $crate::left_to_machines(&why);
            return;
        }
    };
}

/// Ends the test if `condition` does not hold: with a failure under `CI=true`, skipped elsewhere.
#[macro_export]
macro_rules! require {
    ($condition:expr, $($why:tt)*) => {
        if !$condition {
            $crate::cannot_run(&format!($($why)*));
            return;
        }
    };
}
