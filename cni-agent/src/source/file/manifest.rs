//! From text to objects. Kubernetes' types stop here, and only the fields that are used have one.

use std::{collections::BTreeMap, net::IpAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::model::{Labels, Namespace, Node, Object, Pod, PodName};

/// Asks for fixed addresses, one of each family, separated by commas.
pub(super) const ADDRESSES_ANNOTATION: &str = "millrace.dev/addresses";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// What is wrong with a file. It names the document (from 1), the object and the field where they are known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("{0}; correct the YAML or JSON there")]
    Syntax(String),
    #[error("document {document}, {object}, field {field}: {reason}; correct the field")]
    Field {
        document: usize,
        object: String,
        field: String,
        reason: String,
    },
    #[error("document {document}: {field} is missing; every Kubernetes object has one")]
    Missing { document: usize, field: &'static str },
}

/// One object of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    Object(Object),
    /// A kind that nothing is made of yet.
    Foreign {
        document: usize,
        kind: String,
    },
}

/// All documents of a file. JSON is YAML.
pub(super) fn parse(text: &str) -> Result<Vec<Document>, ManifestError> {
    let options = serde_saphyr::options! {
        // A namespace may be called `n`, and a label may be `on`.
        strict_booleans: true,
        // The size of the file is limited already; a dump of a large cluster must pass.
        budget: serde_saphyr::budget! { max_nodes: 8_000_000, max_events: 32_000_000, max_documents: 1_000_000 },
    };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| ManifestError::Syntax(error.to_string()))?;
    let mut objects = Vec::new();
    for (i, document) in documents.into_iter().enumerate() {
        parse_value(document, i + 1, &mut objects)?;
    }
    Ok(objects)
}

fn parse_value(value: Value, document: usize, objects: &mut Vec<Document>) -> Result<(), ManifestError> {
    if value.is_null() {
        return Ok(());
    }
    let text = |field: &'static str| {
        value
            .get(field)
            .and_then(Value::as_str)
            .map(str::to_owned)
            .ok_or(ManifestError::Missing { document, field })
    };
    let (version, kind) = (text("apiVersion")?, text("kind")?);
    if kind == "List" || (version == "v1" && kind.ends_with("List")) {
        let items = value
            .get("items")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        return items
            .into_iter()
            .try_for_each(|item| parse_value(item, document, objects));
    }
    let object = match (version.as_str(), kind.as_str()) {
        ("v1", "Node") => Object::Node(typed::<RawNode>(value, document, &kind)?.into()),
        ("v1", "Namespace") => Object::Namespace(typed::<RawNamespace>(value, document, &kind)?.into()),
        ("v1", "Pod") => {
            let name = describe(&value, &kind);
            let pod = typed::<RawPod>(value, document, &kind)?;
            Object::Pod(pod.into_pod().map_err(|reason| ManifestError::Field {
                document,
                object: name,
                field: format!("metadata.annotations[{ADDRESSES_ANNOTATION}]"),
                reason,
            })?)
        }
        _ => {
            objects.push(Document::Foreign {
                document,
                kind: format!("{version} {kind}"),
            });
            return Ok(());
        }
    };
    objects.push(Document::Object(object));
    Ok(())
}

fn typed<T: DeserializeOwned>(value: Value, document: usize, kind: &str) -> Result<T, ManifestError> {
    let object = describe(&value, kind);
    serde_path_to_error::deserialize(value).map_err(|error| ManifestError::Field {
        document,
        object,
        field: error.path().to_string(),
        reason: error.inner().to_string(),
    })
}

fn describe(value: &Value, kind: &str) -> String {
    let field = |name: &str| {
        value
            .pointer(&format!("/metadata/{name}"))
            .and_then(Value::as_str)
    };
    match (field("namespace"), field("name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        _ => kind.to_owned(),
    }
}

/// Absent and `null` are the same in Kubernetes.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    name: String,
    #[serde(default, deserialize_with = "nullable")]
    namespace: String,
    #[serde(default, deserialize_with = "nullable")]
    uid: String,
    #[serde(default, deserialize_with = "nullable")]
    labels: Labels,
    #[serde(default, deserialize_with = "nullable")]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawNamespace {
    metadata: Meta,
}

#[derive(Deserialize)]
struct RawNode {
    metadata: Meta,
    #[serde(default, deserialize_with = "nullable")]
    spec: NodeSpec,
    #[serde(default, deserialize_with = "nullable")]
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
struct NodeSpec {
    #[serde(default, rename = "podCIDR", deserialize_with = "nullable")]
    pod_cidr: Option<Cidr>,
    #[serde(default, rename = "podCIDRs", deserialize_with = "nullable")]
    pod_cidrs: Vec<Cidr>,
}

#[derive(Default, Deserialize)]
struct NodeStatus {
    #[serde(default, deserialize_with = "nullable")]
    addresses: Vec<NodeAddress>,
}

#[derive(Deserialize)]
struct NodeAddress {
    r#type: String,
    address: String,
}

#[derive(Deserialize)]
struct RawPod {
    metadata: Meta,
    #[serde(default, deserialize_with = "nullable")]
    spec: PodSpec,
    #[serde(default, deserialize_with = "nullable")]
    status: PodStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(default, deserialize_with = "nullable")]
    node_name: String,
    #[serde(default, deserialize_with = "nullable")]
    host_network: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    #[serde(default, deserialize_with = "nullable")]
    phase: String,
    #[serde(default, rename = "podIP", deserialize_with = "nullable")]
    pod_ip: Option<IpAddr>,
    #[serde(default, rename = "podIPs", deserialize_with = "nullable")]
    pod_ips: Vec<PodIp>,
}

#[derive(Deserialize)]
struct PodIp {
    ip: IpAddr,
}

/// A range whose address is that of its network.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Cidr(IpNetwork);

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let text = String::deserialize(deserializer)?;
        let range: IpNetwork = text
            .parse()
            .ok()
            .filter(|_| text.contains('/'))
            .ok_or_else(|| D::Error::custom(format!("`{text}` is not a range like 10.1.0.0/24")))?;
        if range.ip() != range.network() {
            return Err(D::Error::custom(format!(
                "`{text}` has bits set behind its prefix, write {}/{}",
                range.network(),
                range.prefix()
            )));
        }
        Ok(Self(range))
    }
}

impl From<RawNamespace> for Namespace {
    fn from(raw: RawNamespace) -> Self {
        Self {
            name: raw.metadata.name,
            labels: raw.metadata.labels,
        }
    }
}

impl From<RawNode> for Node {
    fn from(raw: RawNode) -> Self {
        let of_type = |kind: &'static str| {
            let addresses = raw
                .status
                .addresses
                .iter()
                .filter(move |address| address.r#type == kind);
            // A host's name may stand where an address is expected.
            addresses.filter_map(|address| address.address.parse::<IpAddr>().ok())
        };
        let addresses = of_type("InternalIP").chain(of_type("ExternalIP")).collect();
        let mut pod_cidrs: Vec<IpNetwork> = raw.spec.pod_cidrs.iter().map(|cidr| cidr.0).collect();
        if let Some(Cidr(first)) = raw.spec.pod_cidr
            && !pod_cidrs.contains(&first)
        {
            pod_cidrs.insert(0, first);
        }
        Self {
            addresses,
            pod_cidrs,
            zone: raw.metadata.labels.get(ZONE_LABEL).cloned(),
            name: raw.metadata.name,
            labels: raw.metadata.labels,
        }
    }
}

impl RawPod {
    fn into_pod(self) -> Result<Pod, String> {
        let Self {
            metadata,
            spec,
            status,
        } = self;
        let mut addresses: Vec<IpAddr> = status.pod_ips.iter().map(|entry| entry.ip).collect();
        if let Some(first) = status.pod_ip
            && !addresses.contains(&first)
        {
            addresses.insert(0, first);
        }
        let asked = metadata
            .annotations
            .get(ADDRESSES_ANNOTATION)
            .map_or("", String::as_str);
        let requested_addresses = asked
            .split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .map(|text| text.parse().map_err(|_| format!("`{text}` is not an address")))
            .collect::<Result<Vec<IpAddr>, String>>()?;
        let namespace = if metadata.namespace.is_empty() {
            "default".to_owned()
        } else {
            metadata.namespace
        };
        Ok(Pod {
            name: PodName {
                namespace,
                name: metadata.name,
            },
            uid: metadata.uid,
            addresses,
            node: spec.node_name,
            labels: metadata.labels,
            host_network: spec.host_network,
            requested_addresses,
            finished: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
        })
    }
}
