//! What the load balancer reads of a Service.

use std::net::IpAddr;

use serde::Deserialize;

use crate::cluster::plan::Layout;

/// By which a Service stays until its load balancer is gone: Kubernetes' own name.
pub(super) const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

#[derive(Debug, Deserialize)]
pub(super) struct Event {
    #[serde(rename = "type")]
    kind: String,
    pub(super) object: Service,
}

#[derive(Debug, Deserialize)]
pub(super) struct Service {
    pub(super) metadata: Metadata,
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) namespace: String,
    deletion_timestamp: Option<String>,
    #[serde(default)]
    finalizers: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    ip_families: Vec<String>,
    session_affinity: Option<String>,
    health_check_node_port: Option<u16>,
    load_balancer_class: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    load_balancer: Ingresses,
}

#[derive(Debug, Default, Deserialize)]
struct Ingresses {
    #[serde(default)]
    ingress: Vec<Ingress>,
}

#[derive(Debug, Deserialize)]
struct Ingress {
    ip: Option<IpAddr>,
}

impl Event {
    pub(super) fn is_last(&self) -> bool {
        self.kind == "DELETED"
    }
}

impl Service {
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// Services of a class are somebody else's.
    pub(super) fn wants_balancer(&self) -> bool {
        let Spec {
            kind,
            load_balancer_class,
            ..
        } = &self.spec;
        kind == "LoadBalancer" && load_balancer_class.is_none() && self.metadata.deletion_timestamp.is_none()
    }

    pub(super) fn finalizers(&self) -> impl Iterator<Item = &str> {
        self.metadata.finalizers.iter().map(String::as_str)
    }

    pub(super) fn is_marked(&self) -> bool {
        self.finalizers().any(|mark| mark == FINALIZER)
    }

    pub(super) fn has(&self, layout: &Layout) -> bool {
        let family = if layout.api.is_ipv4() { "IPv4" } else { "IPv6" };
        self.spec.ip_families.iter().any(|one| one == family)
    }

    /// With the external policy `Local` a node serves only if it says so there.
    pub(super) fn health_port(&self) -> Option<u16> {
        self.spec.health_check_node_port.filter(|port| *port != 0)
    }

    pub(super) fn is_sticky(&self) -> bool {
        self.spec.session_affinity.as_deref() == Some("ClientIP")
    }

    /// Whether these very addresses stand in its status.
    pub(super) fn is_told(&self, addresses: &[IpAddr]) -> bool {
        let told = self.status.load_balancer.ingress.iter();
        told.filter_map(|ingress| ingress.ip.as_ref()).eq(addresses)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(more: Value) -> Service {
        let mut spec = json!({"type": "LoadBalancer", "ipFamilies": ["IPv6"], "sessionAffinity": "None"});
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let metadata = json!({"name": "s", "namespace": "n"});
        let status = json!({"loadBalancer": {"ingress": [{"ip": "::1"}]}});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap()
    }

    #[test]
    fn services_of_this_type_and_no_class_are_balanced() {
        assert!(service(json!({})).wants_balancer());
        assert!(!service(json!({"type": "NodePort"})).wants_balancer());
        assert!(!service(json!({"loadBalancerClass": "another.example/one"})).wants_balancer());
    }

    #[test]
    fn a_status_is_compared_whole() {
        let service = service(json!({}));
        let [one, two] = ["::1", "::2"].map(|text| text.parse().unwrap());
        assert!(service.is_told(&[one]));
        assert!(!service.is_told(&[]));
        assert!(!service.is_told(&[one, two]));
    }
}
