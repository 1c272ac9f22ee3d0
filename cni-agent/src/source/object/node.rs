use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::{FieldError, Known, described, nullable, range, resource};
use crate::model::{Node, Object, ObjectKey};

/// The autoscaler is going to delete the node.
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

#[derive(Clone, Debug, Deserialize)]
pub(in crate::source) struct NodeObject {
    #[serde(deserialize_with = "described")]
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "nullable")]
    spec: NodeSpec,
    #[serde(default, deserialize_with = "nullable")]
    status: NodeStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct NodeSpec {
    #[serde(default, rename = "podCIDR", deserialize_with = "nullable")]
    pod_cidr: Option<String>,
    #[serde(default, rename = "podCIDRs", deserialize_with = "nullable")]
    pod_cidrs: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    taints: Vec<Taint>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Taint {
    #[serde(default, deserialize_with = "nullable")]
    key: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct NodeStatus {
    #[serde(default, deserialize_with = "nullable")]
    addresses: Vec<NodeAddress>,
}

#[derive(Clone, Debug, Deserialize)]
struct NodeAddress {
    r#type: String,
    address: String,
}

resource!(NodeObject, ClusterResourceScope, "", "v1", "Node", "nodes");

impl NodeObject {
    fn addresses(&self) -> Vec<IpAddr> {
        let of_type = |kind: &'static str| {
            let addresses = self.status.addresses.iter();
            // A host's name may stand where an address is expected.
            addresses
                .filter(move |address| address.r#type == kind)
                .filter_map(|address| address.address.parse().ok())
        };
        of_type("InternalIP").chain(of_type("ExternalIP")).collect()
    }
}

impl Known for NodeObject {
    fn key(meta: &ObjectMeta) -> ObjectKey {
        ObjectKey::Node(meta.name.clone().unwrap_or_default())
    }

    fn into_object(self) -> Result<Object, FieldError> {
        let ranges = self.spec.pod_cidrs.iter().enumerate();
        let mut pod_cidrs = ranges
            .map(|(i, text)| range(&format!("spec.podCIDRs[{i}]"), text))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(text) = &self.spec.pod_cidr {
            let first = range("spec.podCIDR", text)?;
            if !pod_cidrs.contains(&first) {
                pod_cidrs.insert(0, first);
            }
        }
        let addresses = self.addresses();
        let labels = self.metadata.labels.unwrap_or_default();
        Ok(Object::Node(Node {
            name: self.metadata.name.unwrap_or_default(),
            addresses,
            pod_cidrs,
            leaving: self.metadata.deletion_timestamp.is_some()
                || self.spec.taints.iter().any(|taint| taint.key == LEAVING_TAINT),
            zone: labels.get(ZONE_LABEL).cloned(),
            labels: labels.into(),
        }))
    }
}
