//! Programs are loaded whatever signals arrive meanwhile.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::time::Duration;

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
        let over = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&over);
        let sender = std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                // The thread lives: it joins this one.
                pthread_kill(loads, Signal::SIGUSR1).unwrap();
                std::thread::sleep(BETWEEN);
            }
        });
        let loaded = block_on(linux.apply(&Change::Load(Config::DEFAULT)));
        over.store(true, Ordering::Relaxed);
        sender.join().unwrap();
        loaded.unwrap();
    });
}
