//! Loading programs although signals arrive. The tests' own loaders share this file.
//!
//! The kernel gives the check of a program up with `EAGAIN` as soon as its thread has a signal pending, to be asked again
//! (`do_check` in kernel/bpf/verifier.c), and ours take it a while. aya asks again once, with a log: a second signal ends
//! that too, and a log that is longer than aya's longest makes a failure (`ENOSPC`) of a program that is in order.

use aya::programs::ProgramError;
use nix::sys::signal::{SigSet, SigmaskHow};

/// How often a program is handed to the kernel, as libbpf does (`PROG_LOAD_ATTEMPTS`).
const ATTEMPTS: u32 = 5;

/// Loads a program while the thread's signals wait. Some cannot be made to: the C library's and the kernel's own.
pub(crate) fn hold_back(load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    let _held = Held::all()?;
    again(load, |error| match error {
        ProgramError::LoadError { io_error, .. } => io_error.raw_os_error(),
        _ => None,
    })
}

fn again<E>(mut load: impl FnMut() -> Result<(), E>, errno: impl Fn(&E) -> Option<i32>) -> Result<(), E> {
    for _ in 1..ATTEMPTS {
        match load() {
            Err(error) if matches!(errno(&error), Some(libc::EAGAIN | libc::ENOSPC)) => {}
            result => return result,
        }
    }
    load()
}

/// Until it is dropped, signals to the process are other threads' and those to this one wait.
struct Held(SigSet);

impl Held {
    fn all() -> Result<Self, ProgramError> {
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
        Ok(Self(before.map_err(|error| ProgramError::IOError(error.into()))?))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Setting a mask that was in force cannot fail.
        let _ = self.0.thread_set_mask();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a program whose first loads end with these errors, and how often it was loaded.
    fn after(errors: &[i32]) -> (Result<(), i32>, usize) {
        let mut loads = 0;
        let load = || {
            loads += 1;
            errors.get(loads - 1).map_or(Ok(()), |error| Err(*error))
        };
        (again(load, |error| Some(*error)), loads)
    }

    #[test]
    fn an_interrupted_load_is_tried_again_and_a_refused_one_is_not() {
        assert_eq!(after(&[]), (Ok(()), 1));
        assert_eq!(after(&[libc::EAGAIN, libc::ENOSPC]), (Ok(()), 3));
        assert_eq!(after(&[libc::EAGAIN; 9]), (Err(libc::EAGAIN), 5));
        assert_eq!(after(&[libc::EACCES]), (Err(libc::EACCES), 1));
        assert_eq!(after(&[libc::EAGAIN, libc::EACCES]), (Err(libc::EACCES), 2));
    }
}
