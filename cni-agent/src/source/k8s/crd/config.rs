//! `MillraceConfig`: settings of the whole cluster, which its nodes follow.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Review, services::ServicesSpec};
use crate::{
    config::Routing,
    model::{ClusterSettings, NodeSettings, Object, ObjectKey, Settings},
    source::object::{FieldError, Known, described, nullable, range, resource},
};

pub(in crate::source::k8s) const PLURAL: &str = "millraceconfigs";

/// Settings of the whole cluster. Only the object with the name `default` has an effect. What stands here wins over the
/// agents' own configuration; what does not is theirs.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "millrace.dev",
    version = "v1alpha1",
    kind = "MillraceConfig",
    plural = "millraceconfigs",
    singular = "millraceconfig",
    shortname = "mrc",
    category = "millrace",
    status = "MillraceConfigStatus",
    doc = "Settings of the whole cluster, which its nodes follow",
    validation = Rule::new("self.metadata.name == 'default'").message("the only MillraceConfig is called default"),
    printcolumn(name = "Routing", type_ = "string", json_path = ".spec.routing"),
    printcolumn(name = "MTU", type_ = "integer", json_path = ".spec.mtu"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub(in crate::source) struct MillraceConfigSpec {
    #[serde(flatten)]
    settings: SettingsSpec,
    /// Other settings for some nodes. The first entry whose labels a node has counts for it.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    nodes: Vec<NodesSpec>,
}

#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SettingsSpec {
    /// How pods of other nodes are reached: by a tunnel (vxlan), or by the network between the nodes (direct).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    routing: Option<RoutingSpec>,
    /// The MTU of pods; 0: worked out from the node's device and the tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == 0 || (self >= 576 && self <= 65535)").message("use 576 to 65535, at least 1280 with IPv6, or 0"))]
    mtu: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    masquerade: Option<MasqueradeSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    services: Option<ServicesSpec>,
}

#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RoutingSpec {
    Direct,
    Vxlan,
}

/// Whether what pods send to the outside of the cluster gets the node's address.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MasqueradeSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    enabled: Option<bool>,
    /// Destinations that see the pod's own address nevertheless.
    #[serde(
        default,
        rename = "nonMasqueradeCIDRs",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(length(max = 256), inner(length(max = 49)))]
    #[x_kube(validation = Rule::new("self.all(range, isCIDR(range) && cidr(range) == cidr(range).masked())").message("write ranges like 10.0.0.0/8, without bits behind the prefix"))]
    non_masquerade_cidrs: Option<Vec<String>>,
}

#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodesSpec {
    /// Labels that a node must have, all of them.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 64))]
    node_selector: BTreeMap<String, String>,
    #[serde(flatten)]
    settings: SettingsSpec,
}

/// What became of it.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::source) struct MillraceConfigStatus {
    /// The version of the object that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    observed_generation: Option<i64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    conditions: Vec<Condition>,
}

/// As it is read: whatever stands in it must not keep the list from being read.
#[derive(Clone, Debug, Deserialize)]
pub(in crate::source) struct MillraceConfigObject {
    #[serde(deserialize_with = "described")]
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "nullable")]
    spec: Value,
    #[serde(default, deserialize_with = "nullable")]
    status: Value,
}

resource!(
    MillraceConfigObject,
    ClusterResourceScope,
    "millrace.dev",
    "v1alpha1",
    "MillraceConfig",
    "millraceconfigs"
);

impl Known for MillraceConfigObject {
    fn key(meta: &ObjectMeta) -> ObjectKey {
        ObjectKey::Settings(meta.name.clone().unwrap_or_default())
    }

    fn into_object(self) -> Result<Object, FieldError> {
        let nodes: Vec<Value> = read(&self.spec["nodes"], "spec.nodes")?;
        let nodes = nodes.iter().enumerate().map(|(i, nodes)| {
            let at = format!("spec.nodes[{i}]");
            Ok(NodeSettings {
                selector: read(&nodes["nodeSelector"], &format!("{at}.nodeSelector"))?,
                settings: settings(nodes, &at)?,
            })
        });
        Ok(Object::Settings(ClusterSettings {
            name: self.metadata.name.unwrap_or_default(),
            nodes: nodes.collect::<Result<_, _>>()?,
            settings: settings(&self.spec, "spec")?,
        }))
    }

    fn review(&self) -> Option<Review> {
        let status: MillraceConfigStatus = serde_json::from_value(self.status.clone()).unwrap_or_default();
        let accepted = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == Review::CONDITION);
        Some(Review {
            name: self.metadata.name.clone()?,
            generation: self.metadata.generation.unwrap_or_default(),
            said: accepted.map(|condition| (condition.observed_generation, condition.message.clone())),
            verdict: self
                .clone()
                .into_object()
                .map(drop)
                .map_err(|error| error.to_string()),
        })
    }
}

/// Absent, `null` and the default are the same.
fn read<T: DeserializeOwned + Default>(value: &Value, at: &str) -> Result<T, FieldError> {
    let read: Option<T> = serde_path_to_error::deserialize(value).map_err(|error| {
        let field = match error.path().to_string() {
            path if path == "." => at.to_owned(),
            path => format!("{at}.{path}"),
        };
        FieldError::new(field, error.inner().to_string())
    })?;
    Ok(read.unwrap_or_default())
}

/// Not with the fields around them, as the schema has them: what was read so would not know its name in an error.
fn settings(value: &Value, at: &str) -> Result<Settings, FieldError> {
    read::<SettingsSpec>(value, at)?.into_model(at)
}

impl SettingsSpec {
    fn into_model(self, at: &str) -> Result<Settings, FieldError> {
        let masquerade = self.masquerade.unwrap_or_default();
        let ranges = masquerade.non_masquerade_cidrs.map(|ranges| {
            let field = format!("{at}.masquerade.nonMasqueradeCIDRs");
            ranges.iter().map(|text| range(&field, text)).collect()
        });
        let mtu = self.mtu.map(|mtu| {
            let usable = u32::try_from(mtu)
                .ok()
                .filter(|mtu| *mtu == 0 || (576..=65535).contains(mtu));
            usable.ok_or_else(|| FieldError::new(format!("{at}.mtu"), format!("{mtu} is out of range")))
        });
        let services = self.services.unwrap_or_default();
        Ok(Settings {
            services: services.into_model(&format!("{at}.services"))?,
            routing: self.routing.map(|routing| match routing {
                RoutingSpec::Direct => Routing::Direct,
                RoutingSpec::Vxlan => Routing::Vxlan,
            }),
            mtu: mtu.transpose()?,
            masquerade: masquerade.enabled,
            non_masquerade_cidrs: ranges.transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::NodePortAddresses;

    fn object(spec: Value, status: Value) -> MillraceConfigObject {
        let metadata = json!({ "name": "default", "generation": 3 });
        serde_json::from_value(json!({ "metadata": metadata, "spec": spec, "status": status })).unwrap()
    }

    #[test]
    fn settings_and_overrides_are_read() {
        let spec = json!({
            "routing": "direct", "mtu": 9000, "masquerade": { "nonMasqueradeCIDRs": ["10.0.0.0/8"] },
            "services": { "nodePortAddresses": ["192.0.2.0/24"], "externalIPs": true },
            "nodes": [{
                "nodeSelector": { "fabric": "far" }, "routing": "vxlan",
                "services": { "nodePortAddresses": ["primary"] },
            }],
        });
        let Object::Settings(settings) = object(spec, Value::Null).into_object().unwrap() else {
            panic!("not settings")
        };
        assert_eq!(settings.settings.routing, Some(Routing::Direct));
        assert_eq!(settings.settings.masquerade, None);
        assert_eq!(settings.nodes[0].settings.routing, Some(Routing::Vxlan));
        let services = &settings.settings.services;
        let ranges = NodePortAddresses::Ranges(vec!["192.0.2.0/24".parse().unwrap()]);
        assert_eq!(services.node_port_addresses, Some(ranges));
        assert_eq!(
            (services.external_ips, services.masquerade_all),
            (Some(true), None)
        );
        let elsewhere = &settings.nodes[0].settings.services;
        assert_eq!(elsewhere.node_port_addresses, Some(NodePortAddresses::Primary));
    }

    #[test]
    fn a_bad_value_is_named_with_its_field() {
        for (spec, field) in [
            (json!({ "routing": "bgp" }), "spec.routing"),
            (json!({ "mtu": 10 }), "spec.mtu"),
            (
                json!({ "nodes": [{ "nodeSelector": {}, "mtu": -1 }] }),
                "spec.nodes[0].mtu",
            ),
            (
                json!({ "masquerade": { "nonMasqueradeCIDRs": ["10.0.0.1/8"] } }),
                "spec.masquerade.nonMasqueradeCIDRs",
            ),
            (
                json!({ "services": { "nodePortAddresses": ["primary", "192.0.2.0/24"] } }),
                "spec.services.nodePortAddresses",
            ),
            (
                json!({ "services": { "masqueradeAll": "yes" } }),
                "spec.services.masqueradeAll",
            ),
        ] {
            let object = object(spec.clone(), Value::Null);
            let review = object.review().unwrap();
            assert!(review.verdict.unwrap_err().contains(field), "{field}");
            assert!(object.into_object().is_err(), "{spec}");
        }
    }

    #[test]
    fn rel_52_what_an_older_definition_let_through_does_not_keep_the_list_from_being_read() {
        for spec in [json!(7), json!({ "nodes": 3 }), Value::Null] {
            let _ = object(spec, json!("nonsense")).review();
        }
    }
}
