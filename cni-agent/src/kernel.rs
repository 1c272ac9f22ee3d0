//! The kernel, as the reconciler sees it. Only what stands below this module writes maps, links, routes or devices.

pub mod bpf;
pub mod devices;
mod fault;
pub mod host;
pub mod kube_proxy;
pub mod links;
pub mod linux;
pub mod loader;
pub mod maps;
mod netfilter;
pub mod netlink;
mod notices;
pub mod pins;
pub mod routes;
pub mod sockets;

use std::future::Future;

pub use linux::Linux;
pub use pins::Pins;

use crate::{
    desired::{Desired, Observed, Table},
    reconcile::Change,
};

/// How much of the kernel is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything that bears Millrace's mark.
    Whole,
    /// Only what stands under the keys of the given [`Desired`]: the cost of one endpoint's ADD must not grow with the
    /// cluster.
    Keys,
}

/// Why the kernel could not be read or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{action}: {cause}{separator}{remedy}", separator = if remedy.is_empty() { "" } else { "; " })]
pub struct KernelError {
    /// What was attempted, with the name of the object ("attach from_pod to mr0123456789a").
    pub action: String,
    pub cause: String,
    /// What to do about it; empty where nothing but time helps.
    pub remedy: String,
}

impl KernelError {
    pub fn new(action: impl Into<String>, cause: impl ToString) -> Self {
        Self {
            action: action.into(),
            cause: cause.to_string(),
            remedy: String::new(),
        }
    }

    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

/// Reads and changes the kernel.
///
/// Every change is idempotent: applying it twice, or to a kernel that was changed by somebody else in between, ends in
/// the state that it names. Removing what is not there succeeds.
pub trait Kernel: Send + 'static {
    /// What the kernel holds now.
    ///
    /// `wanted` names what cannot be found by a mark: `sysctls` and `neighbours` are read for its keys in both scopes.
    /// Maps that do not exist yet are empty. `veths` are all devices with a pod's host-side name, in both scopes for
    /// [`Scope::Whole`] and those named in `wanted` for [`Scope::Keys`].
    fn observe(
        &mut self,
        wanted: &Desired,
        scope: Scope,
    ) -> impl Future<Output = Result<Observed, KernelError>> + Send;

    /// Reads a table that is not part of [`Observed`], row by row. One that does not exist yet is empty.
    fn scan(
        &mut self,
        table: Table,
        each: &mut (dyn FnMut(&[u8], &[u8]) + Send),
    ) -> impl Future<Output = Result<(), KernelError>> + Send;

    fn apply(&mut self, change: &Change) -> impl Future<Output = Result<(), KernelError>> + Send;
}

#[cfg(test)]
pub(crate) mod fake;
