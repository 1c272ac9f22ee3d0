//! Kubernetes' objects, reduced to what is used of them, and what that means in the agent's vocabulary.
//!
//! Both the folder of manifests and the API server speak of them. Everything else that an object has is skipped while it
//! is read: managed fields and the rest of the status are most of a cluster's bytes.

mod endpoint_slice;
mod meta;
mod namespace;
mod node;
mod pod;
mod service;
mod service_cidr;

use std::{fmt::Debug, net::IpAddr};

use ipnetwork::IpNetwork;
use kube::{Resource, api::ObjectMeta};
use serde::{Deserialize, de::DeserializeOwned};

use super::k8s::Review;
use crate::model::{NamespacedName, Object, ObjectKey};
pub(super) use endpoint_slice::EndpointSliceObject;
pub(super) use meta::described;
pub(super) use namespace::NamespaceObject;
pub(super) use node::NodeObject;
pub(super) use pod::PodObject;
pub(super) use service::ServiceObject;
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

/// A manifest may leave the namespace out.
fn name_of(meta: &ObjectMeta) -> NamespacedName {
    let namespace = meta.namespace.clone().filter(|namespace| !namespace.is_empty());
    NamespacedName {
        namespace: namespace.as_deref().unwrap_or("default").into(),
        name: meta.name.clone().unwrap_or_default(),
    }
}

fn address(field: &str, text: &str) -> Result<IpAddr, FieldError> {
    let parsed = lenient(text);
    parsed.ok_or_else(|| FieldError::new(field, format!("`{text}` is not an address")))
}

fn lenient(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| padded(text))
}

/// Objects from before Kubernetes was strict may have zeros before their numbers, which are decimal all the same.
fn padded(text: &str) -> Option<IpAddr> {
    let short = |part: &str| {
        let number = part.trim_start_matches('0');
        let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| if number.is_empty() { "0" } else { number }.to_owned())
    };
    let parts: Option<Vec<String>> = text.split('.').map(short).collect();
    parts?.join(".").parse().ok()
}

fn padded_range(text: &str) -> Option<IpNetwork> {
    let (ip, prefix) = text.split_once('/')?;
    IpNetwork::new(padded(ip)?, prefix.parse().ok()?).ok()
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

#[cfg(test)]
mod tests {
    use kube::core::WatchEvent;
    use serde_json::json;

    use super::*;
    use crate::model::Pod;

    fn pod(event: &serde_json::Value) -> PodObject {
        match serde_json::from_str(&event.to_string()).unwrap() {
            WatchEvent::Modified(pod) => pod,
            other => panic!("{other:?}"),
        }
    }

    fn event(status: &serde_json::Value) -> serde_json::Value {
        json!({ "type": "MODIFIED", "object": {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "a", "namespace": "b", "uid": "u", "resourceVersion": "7", "labels": { "app": "x" },
                "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}", "millrace.dev/addresses": "10.0.0.9" },
                "managedFields": [{ "manager": "kubelet", "fieldsV1": { "f:status": {} } }],
            },
            "spec": { "nodeName": "n", "containers": [{ "name": "c" }] },
            "status": status,
        } })
    }

    #[test]
    fn a_watch_event_is_read_without_what_nobody_uses() {
        let pod = pod(&event(&json!({
            "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }],
            "conditions": [{ "type": "Ready" }], "containerStatuses": [{ "name": "c" }],
        })));
        assert_eq!(pod.meta().managed_fields, None);
        assert_eq!(pod.meta().annotations.as_ref().unwrap().len(), 1);
        assert_eq!(pod.meta().resource_version.as_deref(), Some("7"));
        let Object::Pod(Pod {
            addresses,
            requested_addresses,
            node,
            ..
        }) = pod.into_object().unwrap()
        else {
            panic!("not a pod")
        };
        assert_eq!((addresses.len(), requested_addresses.len(), &*node), (2, 1, "n"));
    }

    #[test]
    fn an_old_address_with_zeros_before_its_numbers_is_the_decimal_one() {
        for (text, wanted) in [
            ("010.0.000.1", Some("10.0.0.1")),
            ("10.0.0.1", Some("10.0.0.1")),
            ("fd00::1", Some("fd00::1")),
            ("10.0.0.0256", None),
            ("10.0..1", None),
            ("0x10.0.0.1", None),
            ("10.0.0", None),
            ("", None),
        ] {
            let wanted = wanted.map(|text| text.parse::<IpAddr>().unwrap());
            assert_eq!(address("f", text).ok(), wanted, "{text}");
        }
        assert_eq!(padded_range("010.01.0.0/16"), "10.1.0.0/16".parse().ok());
        assert_eq!(padded_range("010.01.0.0/33"), None);
    }

    #[test]
    fn rel_52_a_bad_value_spoils_its_object_and_no_other() {
        // It is read, so that the list that it stands in is read too.
        let bad = pod(&event(&json!({ "podIP": "10.0.0.1.2" })));
        assert_eq!(bad.into_object().unwrap_err().field, "status.podIP");
        for status in [json!(null), json!({ "phase": null, "podIPs": null })] {
            assert!(pod(&event(&status)).into_object().is_ok());
        }
    }
}
