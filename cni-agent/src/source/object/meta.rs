//! The part that every object has.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

use super::{endpoint_slice::TRIGGER_ANNOTATION, nullable, pod::ADDRESSES_ANNOTATION, service};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reduced {
    name: String,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "nullable")]
    annotations: Annotations,
}

/// Without those that nobody asks for: some are as large as the whole object (`last-applied-configuration`).
#[derive(Default)]
struct Annotations(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Filter)
    }
}

struct Filter;

impl<'de> Visitor<'de> for Filter {
    type Value = Annotations;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of annotations")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
        let mut kept = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if matches!(
                key.as_str(),
                ADDRESSES_ANNOTATION
                    | TRIGGER_ANNOTATION
                    | service::ALGORITHM_ANNOTATION
                    | service::MODE_ANNOTATION
                    | service::TABLE_ANNOTATION
            ) {
                kept.insert(key, map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Annotations(kept))
    }
}

/// Reads metadata as far as it is used.
pub(in crate::source) fn described<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<ObjectMeta, D::Error> {
    let reduced = Reduced::deserialize(deserializer)?;
    let annotations = reduced.annotations.0;
    Ok(ObjectMeta {
        name: Some(reduced.name),
        namespace: reduced.namespace,
        uid: reduced.uid,
        resource_version: reduced.resource_version,
        generation: reduced.generation,
        creation_timestamp: reduced.creation_timestamp,
        deletion_timestamp: reduced.deletion_timestamp,
        labels: reduced.labels,
        annotations: (!annotations.is_empty()).then_some(annotations),
        ..ObjectMeta::default()
    })
}
