//! Kubernetes' objects, reduced to what is used of them, and what that means in the agent's vocabulary.
//!
//! Both the folder of manifests and the API server speak of them. Everything else that an object has is skipped while it
//! is read: managed fields and the rest of the status are most of a cluster's bytes.

mod meta;
mod namespace;
mod node;
mod pod;
mod service_cidr;

use std::fmt::Debug;

use ipnetwork::IpNetwork;
use kube::{Resource, api::ObjectMeta};
use serde::{Deserialize, de::DeserializeOwned};

use super::k8s::Review;
use crate::model::{Object, ObjectKey};
pub(super) use meta::described;
pub(super) use namespace::NamespaceObject;
pub(super) use node::NodeObject;
pub(super) use pod::PodObject;
pub(super) use service_cidr::ServiceCidrObject;

/// A field whose value cannot be used. The rest of the object is not used either: half an object is another object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field {field}: {reason}")]
pub(super) struct FieldError {
    pub(super) field: String,
    pub(super) reason: String,
}

impl FieldError {
    pub(super) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            reason: reason.into(),
        }
    }
}

/// A kind of Kubernetes object that the agent knows.
pub(super) trait Known:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static
{
    fn key(meta: &ObjectMeta) -> ObjectKey;

    fn into_object(self) -> Result<Object, FieldError>;

    /// What is to be written into its status.
    fn review(&self) -> Option<Review> {
        None
    }
}

/// Where the API server has a kind.
macro_rules! resource {
    ($object:ident, $scope:ident, $group:literal, $version:literal, $kind:literal, $plural:literal) => {
        impl kube::Resource for $object {
            type DynamicType = ();
            type Scope = kube::core::$scope;

            fn kind((): &()) -> std::borrow::Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> std::borrow::Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> std::borrow::Cow<'_, str> {
                $version.into()
            }

            fn plural((): &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &kube::api::ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut kube::api::ObjectMeta {
                &mut self.metadata
            }
        }
    };
}
pub(super) use resource;

/// Absent and `null` are the same in Kubernetes.
pub(super) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A range whose address is that of its network.
pub(super) fn range(field: &str, text: &str) -> Result<IpNetwork, FieldError> {
    let range: IpNetwork = text
        .parse()
        .ok()
        .filter(|_| text.contains('/'))
        .ok_or_else(|| FieldError::new(field, format!("`{text}` is not a range like 10.1.0.0/24")))?;
    if range.ip() != range.network() {
        let reason = format!(
            "`{text}` has bits set behind its prefix, write {}/{}",
            range.network(),
            range.prefix()
        );
        return Err(FieldError::new(field, reason));
    }
    Ok(range)
}
