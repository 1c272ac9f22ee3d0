//! `CNI_ARGS`: `KEY=VALUE` pairs with semicolons between them.

use crate::{CniError, code, rpc::Pod};
use std::collections::BTreeMap;

/// The pairs. Keys that nobody asks for are ignored, as runtimes expect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments(BTreeMap<String, String>);

impl Arguments {
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let mut pairs = BTreeMap::new();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                CniError::new(code::INVALID_ENVIRONMENT, "invalid environment variables").with_details(format!(
                    "CNI_ARGS has \"{pair}\" where KEY=VALUE is expected, with semicolons between the pairs"
                ))
            })?;
            pairs.insert(key.to_owned(), value.to_owned());
        }
        Ok(Self(pairs))
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .get(key)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// The pod that a Kubernetes runtime names.
    pub fn pod(&self) -> Option<Pod> {
        let text = |key| self.get(key).unwrap_or_default().to_owned();
        Some(Pod {
            namespace: self.get("K8S_POD_NAMESPACE")?.to_owned(),
            name: self.get("K8S_POD_NAME")?.to_owned(),
            uid: text("K8S_POD_UID"),
            infra_container_id: text("K8S_POD_INFRA_CONTAINER_ID"),
        })
    }
}
