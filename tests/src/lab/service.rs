//! A Service and its EndpointSlices, as manifests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Pod;
use serde_json::{Value, json};

/// The ClusterIP of a Service with this number.
pub fn cluster_ip(number: u8, v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::new(10, 96, 0, number).into()
    } else {
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number.into()).into()
    }
}

/// Ports 80 of TCP and UDP, named `t` and `u`. Endpoints have a port `s` of SCTP too, for a `spec` that asks for it.
#[derive(Clone, Debug)]
pub struct ServiceManifest {
    pub number: u8,
    spec: Value,
    status: Value,
    annotations: Value,
    endpoints: Vec<Value>,
    addresses: Vec<IpAddr>,
}

impl ServiceManifest {
    pub fn new(number: u8) -> Self {
        Self {
            number,
            spec: json!({}),
            status: json!({}),
            annotations: json!({}),
            endpoints: Vec::new(),
            addresses: Vec::new(),
        }
    }

    /// More of the Service's `spec`.
    pub fn spec(mut self, more: Value) -> Self {
        self.spec = more;
        self
    }

    /// The Service's `status`.
    pub fn status(mut self, status: Value) -> Self {
        self.status = status;
        self
    }

    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations[key] = json!(value);
        self
    }

    pub fn endpoint(self, pod: &Pod, port: u16) -> Self {
        self.endpoint_at(pod, port, "elsewhere", json!({}))
    }

    /// On this node, with these conditions.
    pub fn endpoint_at(mut self, pod: &Pod, port: u16, node: &str, conditions: Value) -> Self {
        let addresses = [pod.ip(true), pod.ip(false)];
        self.addresses.extend(addresses);
        self.endpoints.push(json!({
            "addresses": addresses, "port": port, "node": node, "conditions": conditions,
        }));
        self
    }

    pub fn file(&self) -> String {
        format!("service-{}.yaml", self.number)
    }

    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().copied()
    }

    pub fn objects(&self) -> Value {
        let name = format!("service-{}", self.number);
        let addresses = [true, false].map(|v4| cluster_ip(self.number, v4));
        let mut spec = json!({
            "clusterIP": addresses[0], "clusterIPs": addresses, "ipFamilyPolicy": "RequireDualStack",
            "ports": [
                { "name": "t", "port": 80, "protocol": "TCP" }, { "name": "u", "port": 80, "protocol": "UDP" },
            ],
        });
        if let (Some(spec), Some(more)) = (spec.as_object_mut(), self.spec.as_object()) {
            spec.extend(more.clone());
        }
        let mut items = vec![json!({
            "apiVersion": "v1", "kind": "Service", "spec": spec, "status": self.status,
            "metadata": { "name": name, "namespace": "lab", "annotations": self.annotations },
        })];
        for (place, family) in ["IPv4", "IPv6"].iter().enumerate() {
            for (number, endpoint) in self.endpoints.iter().enumerate() {
                let port = &endpoint["port"];
                items.push(json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                    "metadata": {
                        "name": format!("{name}-{family}-{number}").to_lowercase(), "namespace": "lab",
                        "labels": { "kubernetes.io/service-name": name },
                    },
                    "ports": [
                        { "name": "t", "port": port, "protocol": "TCP" },
                        { "name": "u", "port": port, "protocol": "UDP" },
                        { "name": "s", "port": port, "protocol": "SCTP" },
                    ],
                    "endpoints": [{
                        "addresses": [endpoint["addresses"][place]], "conditions": endpoint["conditions"],
                        "nodeName": endpoint["node"],
                    }],
                }));
            }
        }
        json!({ "apiVersion": "v1", "kind": "List", "items": items })
    }
}
