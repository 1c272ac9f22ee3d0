//! An end in the middle of things, for tests of what a killed agent leaves behind. Release builds have none.
//!
//! `MILLRACE_DIE_BEFORE_CHANGE=NUMBER` kills the process before this change of the kernel, counted from 1;
//! `MILLRACE_DIE_EXPEDITED=1` while grace periods are expedited.

#[cfg(debug_assertions)]
pub(super) fn before_change() {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };
    static LAST: LazyLock<Option<u64>> =
        LazyLock::new(|| std::env::var("MILLRACE_DIE_BEFORE_CHANGE").ok()?.parse().ok());
    static CHANGES: AtomicU64 = AtomicU64::new(0);
    if Some(CHANGES.fetch_add(1, Ordering::Relaxed) + 1) == *LAST {
        die();
    }
}

#[cfg(debug_assertions)]
pub(super) fn while_expedited() {
    if std::env::var_os("MILLRACE_DIE_EXPEDITED").is_some() {
        die();
    }
}

#[cfg(debug_assertions)]
fn die() {
    let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
}

#[cfg(not(debug_assertions))]
#[inline]
pub(super) fn before_change() {}

#[cfg(not(debug_assertions))]
#[inline]
pub(super) fn while_expedited() {}
