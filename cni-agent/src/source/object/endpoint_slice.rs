use std::{net::IpAddr, sync::Arc, time::SystemTime};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Deserialize;

use super::{FieldError, Known, described, lenient, name_of, nullable, resource, service::is_headless};
use crate::model::{
    EndpointSlice, Hints, Locality, NamespacedName, Object, ObjectKey, Protocol, SliceEndpoint, SlicePort,
};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// When what led to the last change happened.
pub(super) const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::source) struct EndpointSliceObject {
    #[serde(deserialize_with = "described")]
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "nullable")]
    address_type: String,
    #[serde(default, deserialize_with = "nullable")]
    endpoints: Vec<Endpoint>,
    #[serde(default, deserialize_with = "nullable")]
    ports: Vec<Port>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    #[serde(default, deserialize_with = "nullable")]
    addresses: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    conditions: Conditions,
    #[serde(default, deserialize_with = "nullable")]
    node_name: String,
    #[serde(default, deserialize_with = "nullable")]
    hints: HintsObject,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HintsObject {
    #[serde(default, deserialize_with = "nullable")]
    for_zones: Vec<Named>,
    #[serde(default, deserialize_with = "nullable")]
    for_nodes: Vec<Named>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Named {
    #[serde(default, deserialize_with = "nullable")]
    name: Box<str>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Port {
    #[serde(default, deserialize_with = "nullable")]
    name: Box<str>,
    #[serde(default, deserialize_with = "nullable")]
    protocol: String,
    port: Option<i32>,
}

resource!(
    EndpointSliceObject,
    NamespaceResourceScope,
    "discovery.k8s.io",
    "v1",
    "EndpointSlice",
    "endpointslices"
);

impl Known for EndpointSliceObject {
    fn key(meta: &ObjectMeta) -> ObjectKey {
        ObjectKey::EndpointSlice(name_of(meta))
    }

    fn into_object(self) -> Result<Object, FieldError> {
        let labels = self.metadata.labels.as_ref();
        // Whose Service it is says that alone: labels of its slices follow a moment later.
        if labels.is_some_and(is_headless) {
            return Ok(Object::EndpointSlice(unused(name_of(&self.metadata))));
        }
        let v4 = match self.address_type.as_str() {
            "IPv4" => true,
            "IPv6" => false,
            // Names of hosts elsewhere: nothing that packets could be sent to.
            "FQDN" => return Ok(Object::EndpointSlice(unused(name_of(&self.metadata)))),
            other => {
                return Err(FieldError::new(
                    "addressType",
                    format!("`{other}` is not IPv4 or IPv6"),
                ));
            }
        };
        let mut refused: Option<Box<(usize, String)>> = None;
        let mut endpoints = Vec::with_capacity(self.endpoints.len());
        for (i, endpoint) in self.endpoints.into_iter().enumerate() {
            match endpoint.read(i, v4) {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(reason) => match &mut refused {
                    Some(refused) => refused.0 += 1,
                    None => refused = Some(Box::new((1, reason))),
                },
            }
        }
        let annotations = self.metadata.annotations.as_ref();
        let service = labels.and_then(|labels| labels.get(SERVICE_LABEL));
        let name = name_of(&self.metadata);
        Ok(Object::EndpointSlice(EndpointSlice {
            service: Arc::new(NamespacedName {
                namespace: name.namespace.clone(),
                name: service.cloned().unwrap_or_default(),
            }),
            triggered: annotations.and_then(|all| time(all.get(TRIGGER_ANNOTATION)?)),
            name,
            v4,
            ports: self.ports.into_iter().filter_map(Port::read).collect(),
            endpoints: endpoints.into(),
            refused,
        }))
    }
}

fn unused(name: NamespacedName) -> EndpointSlice {
    EndpointSlice {
        name,
        ..EndpointSlice::default()
    }
}

fn time(text: &str) -> Option<SystemTime> {
    let time: Time = serde_json::from_value(text.into()).ok()?;
    Some(SystemTime::from(time.0))
}

impl Port {
    /// A port without a number is any port, which nobody can be sent to.
    fn read(self) -> Option<SlicePort> {
        let port = self.port.and_then(|port| u16::try_from(port).ok());
        Some(SlicePort {
            protocol: Protocol::from_name(&self.protocol)?,
            port: port.filter(|port| *port != 0)?,
            name: self.name.into(),
        })
    }
}

impl Endpoint {
    fn read(self, i: usize, v4: bool) -> Result<SliceEndpoint, String> {
        // All of an endpoint's addresses lead to the same; consumers take the first.
        let text = self.addresses.first().map_or("", String::as_str);
        let address = usable(text, v4).map_err(|reason| format!("endpoints[{i}].addresses[0]: {reason}"))?;
        let conditions = self.conditions;
        let names = |all: Vec<Named>| all.into_iter().map(|named| named.name).collect();
        let locality = Locality {
            node: (!self.node_name.is_empty()).then(|| self.node_name.into()),
            hints: Hints {
                zones: names(self.hints.for_zones),
                nodes: names(self.hints.for_nodes),
            },
        };
        Ok(SliceEndpoint {
            address,
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
            locality: Arc::new(locality),
        })
    }
}

/// What may stand behind a Service: no address that means something else on every machine.
fn usable(text: &str, v4: bool) -> Result<IpAddr, String> {
    let address = lenient(text).ok_or_else(|| format!("`{text}` is not an address"))?;
    if address.is_ipv4() != v4 {
        return Err(format!("{text} is not of the slice's addressType"));
    }
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    if link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        return Err(format!("{text} is no address of a machine"));
    }
    Ok(address)
}
