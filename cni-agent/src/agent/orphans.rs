//! Endpoints whose pod is no more, though nobody deleted them: the runtime forgot, or was asked while nobody listened.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::Agent;
use crate::{
    desired::Desired,
    kernel::Kernel,
    model::{Endpoint, Pod},
    state::State,
};

/// A pod that was deleted by force has containers that end in their own time.
pub(super) const GRACE: Duration = Duration::from_secs(30);

/// Those that were seen without their pod, and when first.
#[derive(Debug, Default)]
pub(super) struct Orphans(BTreeMap<u32, Instant>);

impl Orphans {
    /// Those without a pod at this look and for long enough.
    fn look(&mut self, state: &State, now: Instant) -> Vec<u32> {
        let suspects = state.programmed().filter(|endpoint| is_orphan(state, endpoint));
        self.0 = suspects
            .map(|endpoint| (endpoint.id, self.0.get(&endpoint.id).copied().unwrap_or(now)))
            .collect();
        let old = self.0.iter().filter(|(_, since)| now >= **since + GRACE);
        old.map(|(id, _)| *id).collect()
    }

    /// When the next one has waited long enough; `None` if that was looked at already.
    pub(super) fn next(&self, last_look: Option<Instant>) -> Option<Instant> {
        let next = self.0.values().min().map(|since| *since + GRACE)?;
        last_look.is_none_or(|last| last < next).then_some(next)
    }
}

fn pod_of<'a>(state: &'a State, endpoint: &Endpoint) -> Option<&'a Pod> {
    let pod = state.pods.get(endpoint.pod.as_ref()?)?;
    (!pod.uid.is_empty() && pod.uid == endpoint.pod_uid).then_some(pod)
}

/// Only of a pod that was known once its absence says something: a static pod's object comes late or never, and has
/// another uid than its sandbox.
fn is_orphan(state: &State, endpoint: &Endpoint) -> bool {
    endpoint.confirmed && pod_of(state, endpoint).is_none_or(|pod| pod.finished)
}

impl<K: Kernel> Agent<K> {
    /// Notes which endpoints' pods are known, and gives up those whose pods are no more.
    pub(super) async fn collect_orphans(&mut self) {
        self.confirm().await;
        for id in self.orphans.look(&self.state, Instant::now()) {
            tracing::info!(endpoint = id, "its pod is no more, and so is the endpoint");
            if let Err(error) = self.remove(&[id], Desired::default()).await {
                tracing::warn!(endpoint = id, %error, "an endpoint without a pod could not be removed");
            }
        }
    }

    async fn confirm(&mut self) {
        let state = &self.state;
        let known = |endpoint: &&Endpoint| !endpoint.confirmed && pod_of(state, endpoint).is_some();
        let fresh: Vec<Endpoint> = state
            .programmed()
            .filter(known)
            .map(|endpoint| Endpoint {
                confirmed: true,
                ..endpoint.clone()
            })
            .collect();
        if fresh.is_empty() {
            return;
        }
        let (writer, records) = (self.ledger.writer(), fresh.clone());
        let saved = tokio::task::spawn_blocking(move || writer.save(&records)).await;
        if let Err(error) = saved.map_err(std::io::Error::other).flatten() {
            // Tried again at the next round.
            tracing::warn!(%error, "endpoints could not be written to disk");
            return;
        }
        for endpoint in fresh {
            self.state.endpoints.insert(endpoint.id, endpoint);
        }
    }
}

#[cfg(test)]
mod tests {
    use cni_plugin::{Attachment, Mac};

    use super::*;
    use crate::model::{Event, Object, ObjectKey, Phase, PodName, Rates};

    fn name() -> PodName {
        PodName {
            namespace: "default".into(),
            name: "a".into(),
        }
    }

    fn pod(uid: &str, finished: bool) -> Event {
        Event::Set(Object::Pod(Pod {
            name: name(),
            uid: uid.into(),
            finished,
            ..Pod::default()
        }))
    }

    fn state(confirmed: bool) -> State {
        let endpoint = Endpoint {
            id: 1,
            network: "net".into(),
            attachment: Attachment::new("c", "eth0"),
            pod: Some(name()),
            pod_uid: "u".into(),
            confirmed,
            addresses: Vec::new(),
            delegated: false,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            host_mac: Mac([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            via_stack: false,
            rates: Rates::default(),
            created: 0,
            phase: Phase::Programmed { ifindex: 7 },
        };
        let mut state = State::new([]);
        state.endpoints.insert(1, endpoint);
        state
    }

    #[test]
    fn rel_43_a_second_look_after_a_while_decides() {
        let (mut state, mut orphans, start) = (state(true), Orphans::default(), Instant::now());
        let none: [u32; 0] = [];
        state.handle(pod("u", false));
        assert_eq!(orphans.look(&state, start), none);
        assert_eq!(orphans.next(None), None);
        for event in [
            Event::Gone(ObjectKey::Pod(name())),
            pod("another", false),
            pod("u", true),
        ] {
            state.handle(event);
            assert_eq!(orphans.look(&state, start), none);
            assert_eq!(orphans.look(&state, start + GRACE), [1]);
            // It is back: nothing was wrong.
            state.handle(pod("u", false));
            assert_eq!(orphans.look(&state, start + GRACE), none);
        }
    }

    #[test]
    fn a_pod_that_was_never_known_may_be_one_that_the_server_has_not() {
        let mut orphans = Orphans::default();
        orphans.look(&state(false), Instant::now());
        assert_eq!(orphans.next(None), None);
    }
}
