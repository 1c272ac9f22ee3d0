//! What was needed for a while goes back to the machine.

use std::time::{Duration, Instant};

/// Behind what needs much: more of it may follow at once.
const PAUSE: Duration = Duration::from_secs(2);

/// A look at everything takes many times what the agent keeps, and the allocator holds on to it, each thread's by itself.
#[derive(Debug, Default)]
pub struct Spare {
    due: Option<Instant>,
}

impl Spare {
    /// Much was allocated and is free again.
    pub fn accrue(&mut self) {
        self.due.get_or_insert_with(|| Instant::now() + PAUSE);
    }

    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    pub fn return_if_due(&mut self) {
        if self.due.is_some_and(|at| at <= Instant::now()) {
            self.due = None;
            trim();
        }
    }
}

/// All threads allocate from one heap: what one frees another uses, where each thread's own heap would keep its holes. To be
/// called before there are threads.
#[cfg(target_env = "gnu")]
pub fn share_the_heap() {
    // SAFETY: takes no pointers, and there is no other thread yet that allocates.
    let accepted = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    if accepted == 0 {
        tracing::debug!("the allocator keeps a heap for each thread");
    }
}

/// Other allocators know best.
#[cfg(not(target_env = "gnu"))]
pub fn share_the_heap() {}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: takes no pointers, may be called by any thread at any time, and touches no memory that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators give back by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}
