//! Programs are loaded whatever signals arrive meanwhile.

use std::{
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use cni_agent::{kernel::Kernel, reconcile::Change};
use cni_ebpf::abi::Config;
use nix::sys::{
    pthread::{pthread_kill, pthread_self},
    signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

use crate::namespace::{block_on, on_host};

/// Far shorter than the kernel's check of one of the larger programs.
const BETWEEN: Duration = Duration::from_millis(1);

extern "C" fn heard(_: libc::c_int) {}

#[test]
fn programs_are_loaded_while_signals_arrive() {
    let action = SigAction::new(SigHandler::Handler(heard), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing, and nobody else in this process has one for this signal.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
    on_host(|host| {
        let mut linux = host.linux(None);
        let loads = pthread_self();
        thread::scope(|scope| {
            // Gone as soon as programs are loaded or a panic is under way, so that no thread that has ended gets signals.
            let (_loading, over) = channel::<()>();
            scope.spawn(move || {
                while over.recv_timeout(BETWEEN) == Err(RecvTimeoutError::Timeout) {
                    pthread_kill(loads, Signal::SIGUSR1).unwrap();
                }
            });
            block_on(linux.apply(&Change::Load(Config::DEFAULT))).unwrap();
        });
    });
}
