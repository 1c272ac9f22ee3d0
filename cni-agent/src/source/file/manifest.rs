//! From text to objects.

use serde_json::Value;

use crate::{
    model::{NamespacedName, Object},
    source::object::{
        EndpointSliceObject, Known, NamespaceObject, NodeObject, PodObject, ServiceCidrObject, ServiceObject,
    },
};

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

impl ManifestError {
    /// The Service that cannot be read, if it is one.
    pub(super) fn service(&self) -> Option<NamespacedName> {
        let Self::Field { object, .. } = self else {
            return None;
        };
        let name = object.strip_prefix("Service ")?;
        let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
        Some(NamespacedName {
            namespace: namespace.into(),
            name: name.into(),
        })
    }
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
    let read = match (version.as_str(), kind.as_str()) {
        ("v1", "Node") => typed::<NodeObject>,
        ("v1", "Namespace") => typed::<NamespaceObject>,
        ("v1", "Pod") => typed::<PodObject>,
        ("networking.k8s.io/v1", "ServiceCIDR") => typed::<ServiceCidrObject>,
        ("v1", "Service") => typed::<ServiceObject>,
        ("discovery.k8s.io/v1", "EndpointSlice") => typed::<EndpointSliceObject>,
        _ => {
            objects.push(Document::Foreign {
                document,
                kind: format!("{version} {kind}"),
            });
            return Ok(());
        }
    };
    objects.push(Document::Object(read(value, document, &kind)?));
    Ok(())
}

fn typed<T: Known>(value: Value, document: usize, kind: &str) -> Result<Object, ManifestError> {
    let object = describe(&value, kind);
    let field = |object, field, reason| ManifestError::Field {
        document,
        object,
        field,
        reason,
    };
    let read: T = serde_path_to_error::deserialize(value).map_err(|error| {
        field(
            object.clone(),
            error.path().to_string(),
            error.inner().to_string(),
        )
    })?;
    read.into_object()
        .map_err(|error| field(object, error.field, error.reason))
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
