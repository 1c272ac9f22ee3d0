//! One request that changes an object.

use anyhow::Result;
use http::Method;
use kube::Client;
use serde_json::{Value, json};

use super::{loader::send, objects::Object};

#[derive(Clone, Debug)]
pub struct Change {
    pub(super) path: String,
    method: Method,
    body: Value,
}

impl Change {
    /// Creates an object; its status is put after it.
    pub fn create(object: &Object) -> Vec<Self> {
        let create = Self {
            path: object.collection.to_owned(),
            method: Method::POST,
            body: object.body.clone(),
        };
        let mut changes = vec![create];
        changes.extend(object.body.get("status").map(|_| Self::status(object)));
        changes
    }

    /// Replaces what an object's status says.
    pub fn status(object: &Object) -> Self {
        let path = format!("{}/{}/status", object.collection, object.name());
        Self::merge(path, json!({ "status": object.body["status"] }))
    }

    pub fn merge(path: String, body: Value) -> Self {
        Self {
            path,
            method: Method::PATCH,
            body,
        }
    }

    /// At once, without the time that a pod has for its end.
    pub fn delete(collection: &str, name: &str) -> Self {
        Self {
            path: format!("{collection}/{name}"),
            method: Method::DELETE,
            body: json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}),
        }
    }

    pub(super) async fn make(&self, client: &Client) -> Result<()> {
        send(client, self.method.clone(), &self.path, &self.body).await
    }
}
