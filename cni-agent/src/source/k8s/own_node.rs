//! What this node's object says of the network: that there is one, and no taint any more that keeps pods away.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{desk::Resource, fault, pace, watch::Office};
use crate::{
    source::object::{described, nullable, resource},
    status::Status,
};

/// Cloud controllers write the condition too.
const LOOK: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(5);
const THIS_NODE: Resource = "this node's object";

const CONDITION: &str = "NetworkUnavailable";
const REASON: &str = "MillraceReady";

/// Of this node's object what is written.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct OwnNode {
    #[serde(deserialize_with = "described")]
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "nullable")]
    spec: Spec,
    #[serde(default, deserialize_with = "nullable")]
    status: Conditions,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Spec {
    #[serde(default, deserialize_with = "nullable")]
    taints: Vec<Value>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Conditions {
    #[serde(default, deserialize_with = "nullable")]
    conditions: Vec<Value>,
}

resource!(OwnNode, ClusterResourceScope, "", "v1", "Node", "nodes");

/// Says on the node's object that the network is there, once it is, until nobody listens.
pub(super) async fn proclaim(office: Office, taint: String, mut status: watch::Receiver<Arc<Status>>) {
    let desk = Arc::clone(&office.desk);
    let client = office.servers.client(|| ());
    loop {
        if status.wait_for(|status| status.ready).await.is_err() {
            return;
        }
        let pause = match proclaim_once(&client, &office.node, &taint).await {
            Ok(()) => {
                desk.fine(THIS_NODE);
                LOOK
            }
            Err((verb, error)) => {
                if let Some(text) = fault::of_request(verb.0, verb.1, &error) {
                    desk.fault(THIS_NODE, text);
                }
                RETRY
            }
        };
        tokio::time::sleep(pace::around(pause)).await;
    }
}

/// What was tried when it failed.
type Attempt = (&'static str, &'static str);

async fn proclaim_once(client: &Client, name: &str, taint: &str) -> Result<(), (Attempt, kube::Error)> {
    let api = Api::<OwnNode>::all(client.clone());
    let tried = |verb, resource| move |error| ((verb, resource), error);
    let Some(node) = api.get_opt(name).await.map_err(tried("get", "nodes"))? else {
        // The source says that already.
        return Ok(());
    };
    let params = PatchParams::default();
    if let Some(patch) = condition(&node, &Timestamp::now()) {
        api.patch_status(name, &params, &Patch::Strategic(patch))
            .await
            .map_err(tried("patch", "nodes/status"))?;
        tracing::info!("the Node object says that the network is available");
    }
    if let Some(patch) = without_taint(&node, taint) {
        match api.patch(name, &params, &Patch::Merge(patch)).await {
            Ok(_) => tracing::info!(taint, "the start-up taint is taken off this node"),
            // Somebody else wrote the object meanwhile: the next look sees what came of it.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                return Err((("patch", "nodes"), kube::Error::Api(status)));
            }
            Err(error) => return Err((("patch", "nodes"), error)),
        }
    }
    Ok(())
}

/// `None`: it is as it should be.
fn condition(node: &OwnNode, now: &Timestamp) -> Option<Value> {
    let own = node
        .status
        .conditions
        .iter()
        .find(|condition| condition["type"] == CONDITION);
    if own.is_some_and(|own| own["status"] == "False") {
        return None;
    }
    let now = Time(*now);
    Some(json!({ "status": { "conditions": [{
        "type": CONDITION,
        "status": "False",
        "reason": REASON,
        "message": "the Millrace agent serves pods on this node",
        "lastTransitionTime": now,
        "lastHeartbeatTime": now,
    }] } }))
}

/// The whole list is written, so nobody may have changed it meanwhile. `None`: there is no such taint.
fn without_taint(node: &OwnNode, key: &str) -> Option<Value> {
    let taints = &node.spec.taints;
    let left: Vec<&Value> = taints.iter().filter(|taint| taint["key"] != key).collect();
    (left.len() != taints.len()).then(|| {
        json!({
            "metadata": { "resourceVersion": node.metadata.resource_version },
            "spec": { "taints": left },
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(taints: Value, conditions: Value) -> OwnNode {
        serde_json::from_value(json!({
            "metadata": { "name": "a", "resourceVersion": "7", "managedFields": [{}] },
            "spec": { "taints": taints }, "status": { "conditions": conditions },
        }))
        .unwrap()
    }

    #[test]
    fn only_our_taint_goes_and_only_from_the_version_that_was_seen() {
        let other = json!({ "key": "gpu", "effect": "NoSchedule" });
        let ours = json!({ "key": "millrace.dev/agent-not-ready", "effect": "NoExecute" });
        let node = node(json!([ours, other]), Value::Null);
        assert_eq!(
            without_taint(&node, "millrace.dev/agent-not-ready").unwrap(),
            json!({ "metadata": { "resourceVersion": "7" }, "spec": { "taints": [other] } })
        );
        assert_eq!(without_taint(&node, ""), None);
    }

    #[test]
    fn the_condition_is_written_only_if_it_says_something_else() {
        let now = Timestamp::UNIX_EPOCH;
        let said = |status: &str| json!([{ "type": CONDITION, "status": status, "reason": "other" }]);
        assert_eq!(condition(&node(Value::Null, said("False")), &now), None);
        for conditions in [Value::Null, said("True")] {
            let patch = condition(&node(Value::Null, conditions), &now).unwrap();
            assert_eq!(patch["status"]["conditions"][0]["status"], "False");
            assert_eq!(
                patch["status"]["conditions"][0]["lastTransitionTime"],
                "1970-01-01T00:00:00Z"
            );
        }
    }
}
