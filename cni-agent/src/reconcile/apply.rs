//! One round: look, compare, apply.

use std::{collections::BTreeSet, time::Instant};

use super::{Change, Group, Removals, Retry, diff};
use crate::{
    desired::{Desired, Observed, Table},
    kernel::{Kernel, KernelError, Scope},
};

/// A change that did not happen.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub change: Change,
    pub error: String,
}

/// What a round came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub applied: u64,
    pub failures: Vec<Failure>,
    /// Changes that were left out: they depend on one that failed, or their time to be tried again has not come.
    pub postponed: u64,
}

impl Outcome {
    pub fn is_complete(&self) -> bool {
        self.failures.is_empty() && self.postponed == 0
    }

    /// All that traffic depends on is there. A sysctl of a pod's device only doubles what the programs see to, and
    /// `/proc/sys` is read-only in many containers: that alone is no reason to refuse a pod.
    pub fn serves(&self) -> bool {
        self.postponed == 0 && self.essential().next().is_none()
    }

    fn essential(&self) -> impl Iterator<Item = &Failure> {
        self.failures
            .iter()
            .filter(|failure| !matches!(failure.change, Change::SetSysctl { .. }))
    }

    /// What failed, for whoever waits for it.
    pub fn text(&self) -> String {
        let mut errors: Vec<&str> = self.essential().map(|failure| failure.error.as_str()).collect();
        if errors.is_empty() {
            errors.push("an earlier failure is being tried again");
        }
        errors.join("; ")
    }
}

/// Owns the kernel, and remembers nothing of it but what failed.
#[derive(Debug)]
pub struct Reconciler<K> {
    kernel: K,
    retry: Retry,
}

impl<K: Kernel> Reconciler<K> {
    pub fn new(kernel: K) -> Self {
        Self {
            kernel,
            retry: Retry::default(),
        }
    }

    pub fn retry(&self) -> &Retry {
        &self.retry
    }

    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    pub async fn observe(&mut self, wanted: &Desired, scope: Scope) -> Result<Observed, KernelError> {
        self.kernel.observe(wanted, scope).await
    }

    /// Everything towards `desired`, after a look at the whole kernel. What failed lately waits.
    pub async fn converge(&mut self, desired: &Desired, observed: &Observed, removals: Removals) -> Outcome {
        let changes = diff(desired, observed, removals);
        let groups: BTreeSet<Group> = changes.iter().map(Change::group).collect();
        self.retry.keep_only(|group| groups.contains(group));
        let now = Instant::now();
        let waits: BTreeSet<Group> = groups
            .into_iter()
            .filter(|group| !self.retry.is_due(group, now))
            .collect();
        self.apply(changes, &waits).await
    }

    /// Makes these keys, and nothing else, be as `desired` says: somebody waits for it, so nothing is put off.
    pub async fn converge_keys(&mut self, desired: &Desired) -> Result<Outcome, KernelError> {
        let observed = self.kernel.observe(desired, Scope::Keys).await?;
        Ok(self
            .apply(diff(desired, &observed, Removals::Held), &BTreeSet::new())
            .await)
    }

    /// Removes what stands under the keys of `gone`, except what `keep` has under the same keys.
    pub async fn remove_keys(&mut self, gone: &Desired, keep: &Desired) -> Result<Outcome, KernelError> {
        let observed = self.kernel.observe(gone, Scope::Keys).await?;
        // Nothing is loaded for the sake of a removal.
        let target = Desired {
            config: observed.config,
            vxlan: observed.vxlan.clone(),
            ..keep.clone()
        };
        let changes = diff(&target, &observed, Removals::Allowed);
        let removals = changes.into_iter().filter(is_removal).collect();
        Ok(self.apply(removals, &BTreeSet::new()).await)
    }

    /// Makes what stands under the keys of `touched` be as `desired` says, which has no others.
    pub async fn replace_keys(
        &mut self,
        desired: Desired,
        touched: &Desired,
        removals: Removals,
    ) -> Result<Outcome, KernelError> {
        let observed = self.kernel.observe(touched, Scope::Keys).await?;
        // Nothing is loaded for the sake of a few keys.
        let target = Desired {
            config: observed.config,
            vxlan: observed.vxlan.clone(),
            ..desired
        };
        Ok(self
            .apply(diff(&target, &observed, removals), &BTreeSet::new())
            .await)
    }

    /// Reads a table that is compared apart.
    pub async fn scan(
        &mut self,
        table: Table,
        each: &mut (dyn FnMut(&[u8], &[u8]) + Send),
    ) -> Result<(), KernelError> {
        self.kernel.scan(table, each).await
    }

    /// Applies these in their order, until one fails. Whoever asks tries again.
    pub async fn carry_out(&mut self, changes: Vec<Change>) -> Result<u64, Failure> {
        let mut applied = 0;
        for change in changes {
            if let Err(error) = self.kernel.apply(&change).await {
                let error = error.to_string();
                return Err(Failure { change, error });
            }
            applied += 1;
        }
        Ok(applied)
    }

    async fn apply(&mut self, changes: Vec<Change>, waiting: &BTreeSet<Group>) -> Outcome {
        let mut outcome = Outcome::default();
        let mut blocked: Vec<Change> = Vec::new();
        for change in changes {
            let group = change.group();
            if waiting.contains(&group) || blocked.iter().any(|failed| change.needs(failed)) {
                outcome.postponed += 1;
                // What depends on this waits as well.
                block(&mut blocked, change);
                continue;
            }
            match self.kernel.apply(&change).await {
                Ok(()) => {
                    outcome.applied += 1;
                    self.retry.succeeded(&group);
                }
                Err(error) => {
                    let error = error.to_string();
                    tracing::warn!(%change, %error, "a change failed and will be tried again");
                    self.retry.failed(group, error.clone(), Instant::now());
                    block(&mut blocked, change.clone());
                    outcome.failures.push(Failure { change, error });
                }
            }
        }
        outcome
    }
}

/// One change of a table blocks as well as a thousand of them.
fn block(blocked: &mut Vec<Change>, change: Change) {
    let same_table = |other: &Change| matches!((other, &change), (Change::Put { table: a, .. }, Change::Put { table: b, .. }) if a == b);
    if !blocked.iter().any(same_table) {
        blocked.push(change);
    }
}

fn is_removal(change: &Change) -> bool {
    matches!(
        change,
        Change::RemoveVxlan(_)
            | Change::Delete { .. }
            | Change::Detach(_)
            | Change::DetachSockets
            | Change::RemoveVeth(_)
            | Change::RemoveRoute(_)
    )
}

#[cfg(test)]
mod tests;
