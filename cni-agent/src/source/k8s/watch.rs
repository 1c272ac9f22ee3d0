//! One resource: its objects as they are, and what changes in them.

use std::{collections::BTreeSet, pin::pin, sync::Arc};

use futures_util::StreamExt;
use kube::{
    Api,
    runtime::{WatchStreamExt, watcher},
};

use tokio::sync::mpsc;

use super::{
    crd::Review,
    desk::{Desk, Resource},
    discovery, fault,
    servers::Servers,
};
use crate::{
    model::{Event, Kind, Object},
    source::object::Known,
};

/// One of the agent's watches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watched {
    pub(super) resource: Resource,
    pub(super) kind: Kind,
    /// A server may lack it: then there are no objects.
    pub(super) optional: bool,
}

/// What watches share.
#[derive(Clone, Debug)]
pub(super) struct Office {
    pub(super) servers: Arc<Servers>,
    pub(super) desk: Arc<Desk>,
    pub(super) node: Arc<str>,
    pub(super) reviews: mpsc::Sender<Review>,
}

/// Follows a resource until nobody listens.
pub(super) async fn follow<K: Known>(watched: Watched, office: Office) {
    let resource = watched.resource;
    let desk = Arc::clone(&office.desk);
    let client = office.servers.client(move || desk.fine(resource));
    let api = Api::<K>::all(client);
    let mut config = watcher::Config::default().streaming_lists();
    while let Some(refused) = run(&api, &config, watched, &office).await {
        tracing::info!(resource, %refused, "the API server does not stream lists; asking for pages");
        config.initial_list_strategy = watcher::InitialListStrategy::ListWatch;
    }
}

/// Ends if nobody listens, or with the error that says that the server cannot stream a list.
async fn run<K: Known>(
    api: &Api<K>,
    config: &watcher::Config,
    watched: Watched,
    office: &Office,
) -> Option<watcher::Error> {
    let streams = config.initial_list_strategy == watcher::InitialListStrategy::StreamingList;
    let mut stream = pin!(watcher(api.clone(), config.clone()).default_backoff());
    // The list that is being told.
    let mut listed = BTreeSet::new();
    while let Some(event) = stream.next().await {
        let listening = match event {
            Ok(watcher::Event::Init) => {
                listed.clear();
                true
            }
            Ok(watcher::Event::InitApply(object)) => {
                listed.insert(K::key(object.meta()));
                set(object, office).await
            }
            Ok(watcher::Event::InitDone) => only(watched, std::mem::take(&mut listed), office).await,
            Ok(watcher::Event::Apply(object)) => set(object, office).await,
            Ok(watcher::Event::Delete(object)) => {
                let key = K::key(object.meta());
                office.desk.object(&key, "", None);
                office.desk.tell(Event::Gone(key)).await
            }
            Err(error) if streams && fault::cannot_stream(&error) => return Some(error),
            Err(error) => {
                tracing::debug!(resource = watched.resource, %error, "a watch failed");
                if let Some(text) = fault::of_watch(watched.resource, &error) {
                    office.desk.fault(watched.resource, text);
                }
                let absent = watched.optional
                    && fault::is_unknown(&error)
                    && discovery::lacks::<K>(&office.servers.client(|| ())).await;
                !absent || only(watched, BTreeSet::new(), office).await
            }
        };
        if !listening {
            return None;
        }
    }
    None
}

async fn set<K: Known>(object: K, office: &Office) -> bool {
    let key = K::key(object.meta());
    let uid = object.meta().uid.clone().unwrap_or_default();
    if let Some(review) = object.review() {
        // Nobody takes it any more: nobody listens either.
        let _ = office.reviews.send(review).await;
    }
    match object.into_object() {
        Ok(object) => {
            office.desk.object(&key, "", None);
            office.desk.tell(Event::Set(reduce(object, &office.node))).await
        }
        Err(error) => {
            let text = format!(
                "{key}, {error}; its last good version, if one is known, stays in force. Correct the field"
            );
            office.desk.object(&key, &uid, Some(text));
            true
        }
    }
}

/// Of a pod elsewhere only its place and its labels matter.
fn reduce(object: Object, node: &str) -> Object {
    match object {
        Object::Pod(mut pod) if *pod.node != *node => {
            pod.uid = String::new();
            pod.requested_addresses = Box::default();
            pod.host_ports = Vec::new();
            Object::Pod(pod)
        }
        object => object,
    }
}

async fn only(watched: Watched, keys: BTreeSet<crate::model::ObjectKey>, office: &Office) -> bool {
    office.desk.only(|key| key.kind() == watched.kind, &keys);
    let listening = office.desk.tell(Event::Only(watched.kind, keys)).await;
    office.desk.heard_all(watched.resource).await;
    listening
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::object::PodObject;

    #[test]
    fn of_a_pod_elsewhere_only_place_labels_and_addresses_are_kept() {
        let pod = |node: &str| {
            let object: PodObject = serde_json::from_value(serde_json::json!({
                "metadata": {
                    "name": "a", "namespace": "n", "uid": "u", "labels": { "app": "a" },
                    "annotations": { "millrace.dev/addresses": "10.1.0.9" },
                },
                "spec": {
                    "nodeName": node,
                    "containers": [{ "name": "c", "ports": [{ "containerPort": 80, "hostPort": 8080, "protocol": "TCP" }] }],
                },
                "status": { "phase": "Running", "podIPs": [{ "ip": "10.1.0.9" }] },
            }))
            .unwrap();
            let whole = object.into_object().unwrap();
            (whole.clone(), reduce(whole, "here"))
        };
        let (whole, kept) = pod("here");
        assert_eq!(whole, kept);
        let (Object::Pod(whole), Object::Pod(kept)) = pod("elsewhere") else {
            panic!("not pods")
        };
        assert!(!whole.uid.is_empty() && !whole.host_ports.is_empty());
        assert!(kept.uid.is_empty() && kept.host_ports.is_empty() && kept.requested_addresses.is_empty());
        assert_eq!(
            (&kept.addresses, &kept.labels, &kept.node),
            (&whole.addresses, &whole.labels, &whole.node)
        );
    }
}
