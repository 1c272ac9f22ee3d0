use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::{FieldError, Known, address, described, name_of, nullable, resource};
use crate::model::{Object, ObjectKey, Pod};

/// Asks for fixed addresses, one of each family, separated by commas.
pub(super) const ADDRESSES_ANNOTATION: &str = "millrace.dev/addresses";

#[derive(Clone, Debug, Deserialize)]
pub(in crate::source) struct PodObject {
    #[serde(deserialize_with = "described")]
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "nullable")]
    spec: PodSpec,
    #[serde(default, deserialize_with = "nullable")]
    status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(default, deserialize_with = "nullable")]
    node_name: String,
    #[serde(default, deserialize_with = "nullable")]
    host_network: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    #[serde(default, deserialize_with = "nullable")]
    phase: String,
    #[serde(default, rename = "podIP", deserialize_with = "nullable")]
    pod_ip: String,
    #[serde(default, rename = "podIPs", deserialize_with = "nullable")]
    pod_ips: Vec<PodIp>,
}

#[derive(Clone, Debug, Deserialize)]
struct PodIp {
    ip: String,
}

resource!(PodObject, NamespaceResourceScope, "", "v1", "Pod", "pods");

impl PodObject {
    fn addresses(&self) -> Result<Box<[IpAddr]>, FieldError> {
        let mut addresses = Vec::new();
        let ips = self.status.pod_ips.iter().enumerate();
        let listed = ips.map(|(i, entry)| (format!("status.podIPs[{i}].ip"), &entry.ip));
        for (field, text) in [("status.podIP".to_owned(), &self.status.pod_ip)]
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .chain(listed)
        {
            let ip = address(&field, text)?;
            if !addresses.contains(&ip) {
                addresses.push(ip);
            }
        }
        Ok(addresses.into())
    }

    fn requested_addresses(&self) -> Result<Box<[IpAddr]>, FieldError> {
        let annotations = self.metadata.annotations.as_ref();
        let asked = annotations.and_then(|all| all.get(ADDRESSES_ANNOTATION));
        let field = format!("metadata.annotations[{ADDRESSES_ANNOTATION}]");
        asked
            .map_or("", String::as_str)
            .split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .map(|text| address(&field, text))
            .collect()
    }
}

impl Known for PodObject {
    fn key(meta: &ObjectMeta) -> ObjectKey {
        ObjectKey::Pod(name_of(meta))
    }

    fn into_object(self) -> Result<Object, FieldError> {
        Ok(Object::Pod(Pod {
            name: name_of(&self.metadata),
            addresses: self.addresses()?,
            requested_addresses: self.requested_addresses()?,
            uid: self.metadata.uid.unwrap_or_default(),
            node: self.spec.node_name.into(),
            labels: self.metadata.labels.unwrap_or_default().into(),
            host_network: self.spec.host_network,
            finished: matches!(self.status.phase.as_str(), "Succeeded" | "Failed"),
        }))
    }
}
