//! Services and their endpoints, by number.

use std::net::IpAddr;

use serde_json::{Value, json};

/// One object: where it is created, and what it is. A status is put after it.
#[derive(Clone, Debug)]
pub struct Object {
    pub collection: &'static str,
    pub body: Value,
}

impl Object {
    pub fn name(&self) -> &str {
        self.body["metadata"]["name"].as_str().unwrap_or_default()
    }
}

pub const NODES: &str = "/api/v1/nodes";
pub const PODS: &str = "/api/v1/namespaces/default/pods";
pub const SERVICES: &str = "/api/v1/namespaces/default/services";
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// Where the endpoints of Services listen.
pub const TARGET: u16 = 8080;

/// The endpoint of a Service.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub address: IpAddr,
    pub node: String,
    pub zone: String,
    pub pod: String,
}

pub fn service(number: usize) -> Object {
    named_service(&format!("service-{number}"), None)
}

/// One with an address of one's choice.
pub fn named_service(name: &str, address: Option<IpAddr>) -> Object {
    let mut spec = json!({"ports": [{"name": "http", "port": 80, "targetPort": TARGET}]});
    if let Some(address) = address {
        spec["clusterIP"] = json!(address);
    }
    let body = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": spec,
    });
    Object {
        collection: SERVICES,
        body,
    }
}

pub fn slice(service: &str, endpoints: impl IntoIterator<Item = Endpoint>) -> Object {
    let endpoints = endpoints.into_iter().map(|endpoint| {
        json!({
            "addresses": [endpoint.address],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": endpoint.node, "zone": endpoint.zone,
            "targetRef": {"kind": "Pod", "namespace": "default", "name": endpoint.pod},
        })
    });
    let body = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("{service}-a"),
            "labels": {"kubernetes.io/service-name": service},
        },
        "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": TARGET, "protocol": "TCP"}],
    });
    Object {
        collection: SLICES,
        body,
    }
}

/// The endpoints of a Service with this number among others with as many, on machines that are not there.
pub fn remote(service: usize, count: usize) -> impl Iterator<Item = Endpoint> {
    (0..count).map(move |endpoint| {
        let pod = service * count + endpoint;
        let (node, host) = (pod % 5_000, 2 + pod / 5_000);
        Endpoint {
            address: [10, 64 + (node / 256) as u8, (node % 256) as u8, host as u8].into(),
            node: format!("worker-{node}"),
            zone: format!("zone-{}", pod % 3),
            pod: format!("app-{pod}"),
        }
    })
}
