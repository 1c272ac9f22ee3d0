//! ADDs whose plugin died together with the agent that served it: the endpoint is on disk and in the kernel, and no
//! runtime knows of it.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use cni_plugin::{
    Attachment,
    underway::{self, Progress},
};

use super::Agent;
use crate::kernel::Kernel;

/// Between looks at plugins that are still at work.
const PAUSE: Duration = Duration::from_secs(1);

/// Endpoints of an earlier agent's whose plugins have not come to their end.
#[derive(Debug, Default)]
pub(super) struct GoingOn {
    endpoints: BTreeSet<u32>,
    next: Option<Instant>,
}

impl GoingOn {
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }
}

impl<K: Kernel> Agent<K> {
    /// At the beginning, when everything on disk is of earlier agents. Those whose plugins live are left alone: they go on
    /// without the agent that served them, and are looked at again.
    pub(super) async fn take_back_cut_short(&mut self) {
        self.going_on.endpoints = self.state.endpoints.keys().copied().collect();
        self.look_at_going_on().await;
    }

    pub(super) async fn look_again_if_due(&mut self) {
        if self.going_on.next.is_some_and(|at| at <= Instant::now()) {
            self.look_at_going_on().await;
        }
    }

    async fn look_at_going_on(&mut self) {
        let suspects = std::mem::take(&mut self.going_on.endpoints);
        let adds = match underway::list(&self.config.paths.state) {
            Ok(adds) => adds,
            Err(error) => {
                let folder = underway::folder(&self.config.paths.state);
                tracing::warn!(folder = %folder.display(), %error, "ADDs that were cut short cannot be looked for");
                self.going_on.next = None;
                return;
            }
        };
        for (host_ifname, progress) in adds {
            let mut known = suspects.iter().filter_map(|id| self.state.endpoints.get(id));
            let endpoint = known
                .find(|endpoint| endpoint.host_ifname() == host_ifname)
                .map(|endpoint| endpoint.id);
            match (progress, endpoint) {
                (Progress::GoesOn, Some(id)) => drop(self.going_on.endpoints.insert(id)),
                (Progress::GoesOn, None) => {}
                (Progress::CutShort(add), endpoint) => {
                    if let Some(id) = endpoint {
                        tracing::info!(endpoint = id, "its plugin died before its ADD was over; undoing");
                        self.undo(id).await;
                    }
                    forget(add);
                }
            }
        }
        let waits = !self.going_on.endpoints.is_empty();
        self.going_on.next = waits.then(|| Instant::now() + PAUSE);
    }

    /// What becomes of this attachment is decided by its connection.
    pub(super) fn forget_cut_short(&self, attachment: &Attachment) {
        match underway::cut_short(&self.config.paths.state, attachment) {
            Ok(add) => drop(add.map(forget)),
            Err(error) => tracing::warn!(%error, "whether an earlier ADD was cut short cannot be seen"),
        }
    }
}

fn forget(add: underway::CutShort) {
    if let Err(error) = add.forget() {
        tracing::warn!(%error, "an ADD that was cut short cannot be taken off the list");
    }
}
