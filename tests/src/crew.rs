//! Threads that somebody waits for.
//!
//! A handle that is dropped detaches its thread, and glibc's `pthread_detach` looks at the thread's descriptor after it may have become
//! another's (glibc bug 19951). Where threads began and ended by the hundred thousand, under load, one of others' threads was never
//! seen to end, and one could not be joined. Servers that answer each client on a thread keep the handles here instead.

use std::{
    mem,
    thread::{self, JoinHandle},
};

/// Threads that end by themselves. Dropped, it waits for them.
#[derive(Debug, Default)]
pub struct Crew {
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    pub fn spawn(&mut self, work: impl FnOnce() + Send + 'static) {
        let (ended, busy) = mem::take(&mut self.threads)
            .into_iter()
            .partition(JoinHandle::is_finished);
        self.threads = busy;
        join(ended);
        self.threads.push(thread::spawn(work));
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        join(mem::take(&mut self.threads));
    }
}

/// What panicked has said so.
fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        let _ = thread.join();
    }
}
