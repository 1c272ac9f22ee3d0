//! What the plugin changes and reads in the kernel: by netlink and `/proc/sys`, in two network namespaces.

pub(crate) mod host;
pub(crate) mod inspect;
pub(crate) mod message;
pub(crate) mod namespace;
pub(crate) mod netlink;
pub(crate) mod pod;
pub(crate) mod sysctl;

use cni_plugin::{CniError, code};

/// An error of a system call, with what it was to achieve.
pub(crate) fn failed(what: impl Into<String>, error: impl ToString) -> CniError {
    CniError::new(code::IO, what).with_details(error)
}
