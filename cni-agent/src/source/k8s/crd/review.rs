//! What became of an object, in its status.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use super::MillraceConfigObject;
use crate::source::k8s::{fault, watch::Office};

/// Every node sees every object, and what it thinks of it is the same everywhere: each waits for a time of its own, and
/// whoever comes first writes. The others see that it is written.
const SPREAD: Duration = Duration::from_secs(20);
/// Nodes that do not wait long serve a small cluster at once.
const LEAST: Duration = Duration::from_millis(200);

/// Between two that are written: whoever changes an object all the time is answered now and then.
const REST: Duration = Duration::from_secs(10);

/// What a node thinks of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::source) struct Review {
    pub(in crate::source) name: String,
    pub(in crate::source) generation: i64,
    /// What its status says: of which generation, and the text.
    pub(in crate::source) said: Option<(Option<i64>, String)>,
    pub(in crate::source) verdict: Result<(), String>,
}

impl Review {
    pub(in crate::source) const CONDITION: &'static str = "Accepted";

    fn message(&self) -> String {
        match &self.verdict {
            Ok(()) => "nodes follow it".to_owned(),
            Err(error) => format!("{error}; the last good version stays in force"),
        }
    }

    fn is_said(&self) -> bool {
        self.said == Some((Some(self.generation), self.message()))
    }

    fn status(&self, now: Timestamp) -> Value {
        let (status, reason) = match self.verdict {
            Ok(()) => ("True", "Valid"),
            Err(_) => ("False", "Invalid"),
        };
        json!({ "status": { "observedGeneration": self.generation, "conditions": [{
            "type": Self::CONDITION, "status": status, "reason": reason, "message": self.message(),
            "observedGeneration": self.generation, "lastTransitionTime": Time(now),
        }] } })
    }
}

/// Writes reviews into the objects, those that nobody else has written, until nobody reviews any more.
pub(in crate::source::k8s) async fn publish(office: Office, mut reviews: mpsc::Receiver<Review>) {
    let desk = Arc::clone(&office.desk);
    let client = office.servers.client(move || desk.fine(STATUS));
    let api = Api::<MillraceConfigObject>::all(client);
    let mut open: BTreeMap<String, (Review, Instant)> = BTreeMap::new();
    let mut rested = Instant::now();
    loop {
        let next = open.values().map(|(_, at)| *at).min();
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            review = reviews.recv() => match review {
                Some(review) if review.is_said() => { open.remove(&review.name); }
                Some(review) => {
                    let at = rested.max(Instant::now() + delay(&office.node));
                    open.entry(review.name.clone())
                        .and_modify(|(known, _)| known.clone_from(&review))
                        .or_insert((review, at));
                }
                None => return,
            },
            () = due => {
                let now = Instant::now();
                rested = now + REST;
                let ready: Vec<String> = open.iter().filter(|(_, (_, at))| *at <= now).map(|(name, _)| name.clone()).collect();
                for name in ready {
                    let Some((review, _)) = open.remove(&name) else { continue };
                    let patch = Patch::Merge(review.status(Timestamp::now()));
                    if let Err(error) = api.patch_status(&name, &PatchParams::default(), &patch).await
                        // Taken away meanwhile: nobody reads its status. Whether there is such a kind, the watch says.
                        && !fault::is_gone(&error)
                    {
                        if let Some(text) = fault::of_request("patch", STATUS, &error) {
                            office.desk.fault(STATUS, text);
                        }
                        // Also after a connection that broke: nobody else may be there to write it.
                        open.insert(name, (review, now + SPREAD));
                    }
                }
            }
        }
    }
}

/// The subresource, as RBAC names it.
const STATUS: &str = "millraceconfigs/status";

fn delay(node: &str) -> Duration {
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    let spread = u64::try_from(SPREAD.as_millis()).unwrap_or(u64::MAX);
    LEAST + Duration::from_millis(hasher.finish() % spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_already_is_not_written_again() {
        let mut review = Review {
            name: "default".into(),
            generation: 3,
            said: None,
            verdict: Err("field spec.mtu: bad".into()),
        };
        assert!(!review.is_said());
        let status = review.status(Timestamp::UNIX_EPOCH);
        let condition = &status["status"]["conditions"][0];
        assert_eq!(condition["status"], "False");
        let message = condition["message"].as_str().unwrap().to_owned();
        assert!(message.contains("spec.mtu") && message.contains("last good"));
        review.said = Some((Some(3), message.clone()));
        assert!(review.is_said());
        review.said = Some((Some(2), message));
        assert!(!review.is_said());
    }
}
