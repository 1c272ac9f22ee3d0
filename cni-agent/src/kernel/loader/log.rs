//! Messages of programs that were built with `--debug-log`. A release object has neither the messages nor their ring.

use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use nix::poll::{PollFd, PollFlags, poll};

/// Milliseconds after which the thread looks whether it is still wanted.
const PATIENCE: u16 = 1000;

/// Forwards the programs' messages to the agent's log, until it is dropped.
#[derive(Debug)]
pub(super) struct Messages(Arc<AtomicBool>);

impl Messages {
    /// `None` if the object has no messages.
    pub(super) fn of(ebpf: &mut Ebpf) -> Option<Self> {
        let mut logger = EbpfLogger::init(ebpf).ok()?;
        let wanted = Arc::new(AtomicBool::new(true));
        let here = Arc::clone(&wanted);
        thread::Builder::new()
            .name("bpf-messages".into())
            .spawn(move || {
                while here.load(Ordering::Relaxed) {
                    let mut fds = [PollFd::new(logger.as_fd(), PollFlags::POLLIN)];
                    // An interrupted wait is as good as one that ended.
                    let _ = poll(&mut fds, PATIENCE);
                    logger.flush();
                }
            })
            .ok()?;
        Some(Self(wanted))
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
