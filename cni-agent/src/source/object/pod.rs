use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::{FieldError, Known, address, described, name_of, nullable, resource};
use crate::model::{HostPort, Object, ObjectKey, Pod, Protocol};

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
    #[serde(default, deserialize_with = "nullable")]
    containers: Vec<Container>,
    #[serde(default, deserialize_with = "nullable")]
    init_containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Container {
    #[serde(default, deserialize_with = "nullable")]
    ports: Vec<ContainerPort>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    #[serde(default, deserialize_with = "nullable")]
    container_port: u16,
    #[serde(default, deserialize_with = "nullable")]
    host_port: u16,
    #[serde(default, rename = "hostIP", deserialize_with = "nullable")]
    host_ip: String,
    #[serde(default, deserialize_with = "nullable")]
    protocol: String,
}

impl ContainerPort {
    fn read(&self) -> Result<HostPort, FieldError> {
        let field = |name: &str| format!("spec.containers[].ports[].{name}");
        let address = match self.host_ip.as_str() {
            "" => None,
            text => Some(address(&field("hostIP"), text)?),
        };
        let protocol = Protocol::from_name(&self.protocol).ok_or_else(|| {
            let reason = format!("`{}` is not TCP, UDP or SCTP", self.protocol);
            FieldError::new(field("protocol"), reason)
        })?;
        Ok(HostPort {
            address: address.filter(|ip| !ip.is_unspecified()),
            protocol,
            port: self.host_port,
            container_port: self.container_port,
        })
    }
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

    fn host_ports(&self) -> Result<Vec<HostPort>, FieldError> {
        if self.spec.host_network {
            return Ok(Vec::new());
        }
        let containers = self.spec.containers.iter().chain(&self.spec.init_containers);
        let ports = containers.flat_map(|container| &container.ports);
        let asked = ports.filter(|port| port.host_port != 0 && port.container_port != 0);
        asked.map(ContainerPort::read).collect()
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
            host_ports: self.host_ports()?,
            uid: self.metadata.uid.unwrap_or_default(),
            node: self.spec.node_name.into(),
            labels: self.metadata.labels.unwrap_or_default().into(),
            host_network: self.spec.host_network,
            finished: matches!(self.status.phase.as_str(), "Succeeded" | "Failed"),
        }))
    }
}
