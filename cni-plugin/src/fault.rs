//! Failures on demand, for tests of what a killed plugin leaves behind. Release builds have none.
//!
//! `MILLRACE_CNI_FAIL_AT=STEP` makes that step fail, `MILLRACE_CNI_FAIL_AT=STEP:kill` kills the process there, and
//! `MILLRACE_CNI_FAIL_AT=STEP:stop` stops it until it gets SIGCONT.

use cni_plugin::CniError;

#[cfg(debug_assertions)]
pub(crate) fn at(step: &str) -> Result<(), CniError> {
    use nix::sys::signal::{Signal, raise};
    let Ok(wanted) = std::env::var("MILLRACE_CNI_FAIL_AT") else {
        return Ok(());
    };
    if wanted == step {
        return Err(CniError::new(
            cni_plugin::code::INTERNAL,
            format!("failure injected at {step}"),
        ));
    }
    for (suffix, signal) in [(":kill", Signal::SIGKILL), (":stop", Signal::SIGSTOP)] {
        if wanted.strip_suffix(suffix) == Some(step) {
            let _ = raise(signal);
        }
    }
    Ok(())
}

#[cfg(not(debug_assertions))]
#[inline]
pub(crate) fn at(_step: &str) -> Result<(), CniError> {
    Ok(())
}
