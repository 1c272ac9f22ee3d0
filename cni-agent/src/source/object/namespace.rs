use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::{FieldError, Known, described, resource};
use crate::model::{Namespace, Object, ObjectKey};

#[derive(Clone, Debug, Deserialize)]
pub(in crate::source) struct NamespaceObject {
    #[serde(deserialize_with = "described")]
    metadata: ObjectMeta,
}

resource!(
    NamespaceObject,
    ClusterResourceScope,
    "",
    "v1",
    "Namespace",
    "namespaces"
);

impl Known for NamespaceObject {
    fn key(meta: &ObjectMeta) -> ObjectKey {
        ObjectKey::Namespace(meta.name.clone().unwrap_or_default())
    }

    fn into_object(self) -> Result<Object, FieldError> {
        Ok(Object::Namespace(Namespace {
            name: self.metadata.name.unwrap_or_default(),
            labels: self.metadata.labels.unwrap_or_default().into(),
        }))
    }
}
