//! Values that several CPUs write without a lock.

use core::cell::UnsafeCell;
#[cfg(target_arch = "bpf")]
use core::intrinsics::AtomicOrdering;
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::{AtomicU64, Ordering};

use super::Plain;

/// A number in map memory that other CPUs may change at any moment.
///
/// Reads and writes are single volatile accesses, so a value is never torn and never cached across a helper call.
/// Of concurrent writers one is lost.
#[repr(transparent)]
pub struct Racy<T>(UnsafeCell<T>);

// SAFETY: transparent over a `Plain` type.
unsafe impl<T: Plain> Plain for Racy<T> {}
// SAFETY: every access is one volatile access of a word that the hardware does not tear.
unsafe impl<T: Copy + Send> Sync for Racy<T> {}

impl<T: Copy> Racy<T> {
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    #[inline(always)]
    pub fn get(&self) -> T {
        // SAFETY: the cell is valid and aligned; `T` is a plain word.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    pub fn set(&self, value: T) {
        // SAFETY: as in `get`; nobody holds a reference into the cell.
        unsafe { self.0.get().write_volatile(value) }
    }
}

impl Racy<u64> {
    /// Adds. Not atomic: two CPUs that add in the same nanoseconds count once. The packets of one direction of a flow
    /// come on one CPU, and a locked instruction on every packet costs more than the last digit is worth.
    #[inline(always)]
    pub fn add(&self, value: u64) {
        self.set(self.get().wrapping_add(value));
    }
}

impl Racy<u64> {
    /// Adds one, atomically: for what many CPUs count, and seldom.
    #[inline(always)]
    pub fn count(&self) {
        // SAFETY: the cell is valid and aligned, as a word of a map is.
        #[cfg(not(target_arch = "bpf"))]
        unsafe {
            AtomicU64::from_ptr(self.0.get()).fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the same. The instruction is there, while the library's types ask for more than these processors have.
        #[cfg(target_arch = "bpf")]
        unsafe {
            core::intrinsics::atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(self.0.get(), 1);
        }
    }
}

impl<T: Copy> Clone for Racy<T> {
    fn clone(&self) -> Self {
        Self::new(self.get())
    }
}

impl<T: Copy + Default> Default for Racy<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: Copy + PartialEq> PartialEq for Racy<T> {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl<T: Copy + Eq> Eq for Racy<T> {}

impl<T: Copy + core::fmt::Debug> core::fmt::Debug for Racy<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.get().fmt(f)
    }
}
