//! Pods elsewhere that come and go: a few keys, without a round over everything.

use std::{sync::Arc, time::Instant};

use super::{Agent, round::PAUSE};
use crate::{compile, kernel::Kernel, reconcile::Removals};

/// When changed pods were looked at last.
#[derive(Debug, Default)]
pub(super) struct PodWork {
    last: Option<Instant>,
}

impl<K: Kernel> Agent<K> {
    /// A round over everything finds them too.
    pub(super) fn pods_due(&self) -> Option<Instant> {
        let waits = self.state.pods.have_changed() && self.is_ready() && !self.rounds.is_dirty();
        let last = self.pods.last.or(self.rounds.last()).filter(|_| waits)?;
        Some(last + PAUSE)
    }

    pub(super) async fn change_pods(&mut self) {
        if self.pods_due().is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.pods.last = Some(Instant::now());
        let (config, changes) = (Arc::clone(&self.config), self.state.pods.take_changed());
        let Some(part) = compile::changed_pods(&config, &self.state, &changes) else {
            return self.rounds.mark_dirty();
        };
        let removals = match self.state.unsynced().as_slice() {
            [] => Removals::Allowed,
            _ => Removals::Held,
        };
        match self
            .reconciler
            .replace_keys(part.desired, &part.touched, removals)
            .await
        {
            Ok(outcome) => {
                self.rounds.add(&outcome);
                if !outcome.is_complete() {
                    self.rounds.mark_dirty();
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the kernel could not be read");
                self.rounds.mark_dirty();
            }
        }
    }
}
