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
//! A missing privilege or kernel feature is a failure when `CI=true`; elsewhere the reason is printed and the test
//! passes without having proved anything ([`require`]). What the kernels of our virtual machines alone are sure to have
//! ([`require_in_vm`]: SCTP, bonds, VLANs, `fq`) is a failure only there.

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

use std::time::Duration;

/// A time limit of a test, stretched by the factor `MILLRACE_PATIENCE` on machines that are slow by nature.
pub fn patience(limit: Duration) -> Duration {
    let factor = std::env::var("MILLRACE_PATIENCE").ok();
    limit * factor.and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

/// Ends the test if `condition` does not hold: with a failure in our virtual machines (`MILLRACE_VM`), whose kernels have
/// everything, with a message elsewhere.
#[macro_export]
macro_rules! require_in_vm {
    ($condition:expr, $($why:tt)*) => {
        if !$condition {
            let why = format!($($why)*);
            assert!(std::env::var_os("MILLRACE_VM").is_none(), "a virtual machine must run the test: {why}");
            eprintln!("NOT RUN, a virtual machine does (`cargo xtask vm run netns`): {why}");
            return;
        }
    };
}

/// Ends the test if `condition` does not hold: with a failure under `CI=true`, with a message elsewhere.
#[macro_export]
macro_rules! require {
    ($condition:expr, $($why:tt)*) => {
        if !$condition {
            let why = format!($($why)*);
            assert!(std::env::var_os("CI").is_none(), "this machine cannot run the test: {why}");
            eprintln!("NOT RUN: {why}");
            return;
        }
    };
}
