//! What the watches have to say, collected: whether everything has been heard, and what is wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{Notify, mpsc};

use crate::model::{Event, ObjectKey, ServiceProblem, Source};

/// A resource, as URLs call it.
pub(super) type Resource = &'static str;

#[derive(Debug)]
pub(super) struct Desk {
    events: mpsc::Sender<Event>,
    ledger: Mutex<Ledger>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Ledger {
    unheard: BTreeSet<Resource>,
    faults: BTreeMap<Resource, String>,
    /// With what the object is known by.
    objects: BTreeMap<ObjectKey, (String, String)>,
}

impl Desk {
    /// `resources` must have been heard before the source has said everything.
    pub(super) fn new(
        events: mpsc::Sender<Event>,
        resources: impl IntoIterator<Item = Resource>,
    ) -> Arc<Self> {
        let ledger = Ledger {
            unheard: resources.into_iter().collect(),
            ..Ledger::default()
        };
        Arc::new(Self {
            events,
            ledger: Mutex::new(ledger),
            changed: Notify::new(),
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let result = change(&mut self.ledger.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
        result
    }

    /// False if nobody listens any more.
    pub(super) async fn tell(&self, event: Event) -> bool {
        self.events.send(event).await.is_ok()
    }

    /// All objects of the resource have been told.
    pub(super) async fn heard_all(&self, resource: Resource) {
        let last = self.with(|ledger| ledger.unheard.remove(resource) && ledger.unheard.is_empty());
        if last {
            tracing::info!("everything has been heard from the API server");
            self.tell(Event::Synced(Source::Kubernetes)).await;
        }
    }

    pub(super) fn fault(&self, resource: Resource, text: String) {
        let known = self.with(|ledger| ledger.faults.insert(resource, text.clone()));
        if known.as_ref() != Some(&text) {
            tracing::warn!(resource, "{text}");
        }
    }

    /// A request for the resource succeeded.
    pub(super) fn fine(&self, resource: Resource) {
        if self.with(|ledger| ledger.faults.remove(resource)).is_some() {
            tracing::info!(resource, "the API server answers again");
        }
    }

    /// Says what is wrong with an object; `None`: nothing.
    pub(super) fn object(&self, key: &ObjectKey, uid: &str, fault: Option<String>) {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = match fault {
            Some(text) => {
                let fault = (text, uid.to_owned());
                let changed = ledger.objects.get(key) != Some(&fault);
                if changed {
                    tracing::warn!("{}", fault.0);
                    ledger.objects.insert(key.clone(), fault);
                }
                changed
            }
            None => ledger.objects.remove(key).is_some(),
        };
        drop(ledger);
        if changed {
            self.changed.notify_one();
        }
    }

    /// There are no other objects of this kind: what was wrong with them is past.
    pub(super) fn only(&self, of_kind: impl Fn(&ObjectKey) -> bool, keys: &BTreeSet<ObjectKey>) {
        self.with(|ledger| {
            ledger
                .objects
                .retain(|key, _| !of_kind(key) || keys.contains(key));
        });
    }

    /// Passes on what is wrong whenever that is something else, until nobody listens.
    pub(super) async fn report(self: Arc<Self>) {
        let (mut told, mut told_of) = (Vec::new(), Vec::new());
        loop {
            self.changed.notified().await;
            let (problems, unread) = self.problems();
            if unread != told_of {
                told_of.clone_from(&unread);
                if !self.tell(Event::Unread(unread)).await {
                    return;
                }
            }
            if problems != told {
                told.clone_from(&problems);
                if !self.tell(Event::Problems(Source::Kubernetes, problems)).await {
                    return;
                }
            }
        }
    }

    /// All that is wrong, and what of it is about Services.
    fn problems(&self) -> (Vec<String>, Vec<ServiceProblem>) {
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        // Each resource fails of the same server.
        let faults: BTreeSet<&String> = ledger.faults.values().collect();
        let objects = ledger.objects.values().map(|(text, _)| text);
        let of_services = ledger.objects.iter().filter_map(|(key, (text, uid))| {
            let ObjectKey::Service(service) = key else {
                return None;
            };
            Some(ServiceProblem {
                service: service.clone(),
                uid: uid.clone(),
                text: text.clone(),
            })
        });
        let all = faults.into_iter().chain(objects).cloned();
        (all.collect(), of_services.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NamespacedName;

    #[tokio::test]
    async fn a_service_that_cannot_be_read_is_told_with_its_uid_until_it_can() {
        let (events, mut told) = mpsc::channel(8);
        let desk = Desk::new(events, []);
        let report = tokio::spawn(Arc::clone(&desk).report());
        let service = NamespacedName {
            namespace: "n".into(),
            name: "s".into(),
        };
        let pod = NamespacedName {
            name: "p".into(),
            ..service.clone()
        };
        desk.object(&ObjectKey::Pod(pod), "v", Some("a pod".to_owned()));
        let key = ObjectKey::Service(service.clone());
        desk.object(&key, "u", Some("not read".to_owned()));
        let unread = ServiceProblem {
            service,
            uid: "u".to_owned(),
            text: "not read".to_owned(),
        };
        assert_eq!(told.recv().await, Some(Event::Unread(vec![unread])));
        let both = vec!["a pod".to_owned(), "not read".to_owned()];
        assert_eq!(told.recv().await, Some(Event::Problems(Source::Kubernetes, both)));
        desk.object(&key, "", None);
        assert_eq!(told.recv().await, Some(Event::Unread(Vec::new())));
        report.abort();
    }
}
