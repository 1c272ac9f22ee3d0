//! The numbered statements of the Service specification, as far as they are decided without the kernel.

mod endpoints;
mod external;
mod intake;
mod policy;

use std::{collections::BTreeSet, net::IpAddr};

use cni_ebpf::abi::{service_flags, service_scope};
use serde_json::{Value, json};

use super::{Compiled, Frontend, Health, HintsUsed, Place, SlotSet, compile};
use crate::{
    config::Algorithm,
    model::{EndpointSlice, Event, NamespacedName, Object, Service},
    source::file::Folder,
    state::Services,
};

const VIP: &str = "10.96.0.10";
const VIP6: &str = "fd00:96::10";

pub(super) fn place() -> Place {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    Place {
        node: "one".into(),
        zone: Some("a".into()),
        node_ports: BTreeSet::from([ip("192.0.2.1"), ip("2001:db8::1")]),
        own: BTreeSet::from([ip("192.0.2.1"), ip("2001:db8::1")]),
        nodes: BTreeSet::from([ip("192.0.2.1"), ip("2001:db8::1"), ip("192.0.2.2")]),
        service_ranges: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
        external_ips: true,
        ..Place::default()
    }
}

/// What a folder of these manifests says.
pub(super) fn objects(manifests: &[Value]) -> (Vec<Service>, Vec<EndpointSlice>) {
    let folder = tempfile::tempdir().unwrap();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": manifests });
    std::fs::write(folder.path().join("all.json"), list.to_string()).unwrap();
    let (mut services, mut slices) = (Vec::new(), Vec::new());
    for event in Folder::new(folder.path().to_owned()).scan() {
        match event {
            Event::Set(Object::Service(service)) => services.push(*service),
            Event::Set(Object::EndpointSlice(slice)) => slices.push(slice),
            other => panic!("{other:?}"),
        }
    }
    (services, slices)
}

pub(super) fn compiled_at(place: &Place, manifests: &[Value]) -> Compiled {
    let (services, slices) = objects(manifests);
    compile(place, &services[0], &slices.iter().collect::<Vec<_>>())
}

pub(super) fn compiled(manifests: &[Value]) -> Compiled {
    compiled_at(&place(), manifests)
}

pub(super) fn service(spec: Value) -> Value {
    let mut whole = json!({
        "clusterIP": VIP, "clusterIPs": [VIP, VIP6],
        "ports": [{ "name": "web", "port": 80, "protocol": "TCP" }],
    });
    whole
        .as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s", "namespace": "n" }, "spec": whole })
}

pub(super) fn slice(name: &str, endpoints: Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": name, "namespace": "n", "labels": { "kubernetes.io/service-name": "s" } },
        "ports": [{ "name": "web", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints,
    })
}

/// `ADDRESS[@NODE] [not-ready] [terminating] [not-serving] [zone=Z] [for=NODE]`
pub(super) fn endpoints(lines: &[&str]) -> Value {
    lines.iter().map(|line| endpoint(line)).collect()
}

pub(super) fn endpoint(line: &str) -> Value {
    let mut words = line.split(' ');
    let (address, node) = words
        .next()
        .unwrap()
        .split_once('@')
        .unwrap_or((line.split(' ').next().unwrap(), "two"));
    let mut endpoint = json!({ "addresses": [address], "nodeName": node, "conditions": {}, "hints": {} });
    for word in words {
        match word {
            "not-ready" => endpoint["conditions"]["ready"] = json!(false),
            "not-serving" => endpoint["conditions"]["serving"] = json!(false),
            "terminating" => endpoint["conditions"]["terminating"] = json!(true),
            word => {
                let (kind, name) = word.split_once('=').unwrap();
                let field = if kind == "zone" { "forZones" } else { "forNodes" };
                endpoint["hints"][field] = json!([{ "name": name }]);
            }
        }
    }
    endpoint
}

/// What a new connection to this frontend may reach; in words if nothing.
pub(super) fn behind(compiled: &Compiled, addr: &str, port: u16, scope: u8) -> Vec<String> {
    behind_proto(compiled, addr, port, 6, scope)
}

pub(super) fn behind_proto(compiled: &Compiled, addr: &str, port: u16, proto: u8, scope: u8) -> Vec<String> {
    reached(compiled, frontend(compiled, addr, port, proto, scope))
}

pub(super) fn reached(compiled: &Compiled, frontend: Option<Frontend>) -> Vec<String> {
    let Some(frontend) = frontend else {
        return vec!["unknown".into()];
    };
    if frontend.flags & service_flags::REJECT != 0 {
        return vec!["reject".into()];
    }
    if frontend.flags & service_flags::DROP != 0 {
        return vec!["drop".into()];
    }
    let set = set(compiled, &frontend);
    set.targets
        .iter()
        .map(|target| format!("{}:{}", target.addr, target.port))
        .collect()
}

pub(super) fn frontend(compiled: &Compiled, addr: &str, port: u16, proto: u8, scope: u8) -> Option<Frontend> {
    let addr = addr.parse::<IpAddr>().unwrap().into();
    let mut all = compiled.frontends.iter();
    all.find(|frontend| {
        let key = frontend.key;
        (key.addr, key.port.get(), key.proto, key.scope) == (addr, port, proto, scope)
    })
    .copied()
}

pub(super) fn set<'a>(compiled: &'a Compiled, frontend: &Frontend) -> &'a SlotSet {
    compiled
        .sets
        .iter()
        .find(|set| Some(set.name) == frontend.set)
        .unwrap()
}

pub(super) fn at_vip(compiled: &Compiled) -> Vec<String> {
    behind(compiled, VIP, 80, service_scope::CLUSTER)
}

pub(super) fn node_port(external: &str, lines: &[&str]) -> Compiled {
    node_port_with(&place(), external, lines)
}

pub(super) fn node_port_with(place: &Place, external: &str, lines: &[&str]) -> Compiled {
    let object = service(json!({
        "type": "NodePort", "externalTrafficPolicy": external,
        "ports": [{ "name": "web", "port": 80, "nodePort": 30080 }],
    }));
    compiled_at(place, &[object, slice("s-1", endpoints(lines))])
}

pub(super) fn from_outside(compiled: &Compiled) -> Vec<String> {
    behind(compiled, "192.0.2.1", 30080, service_scope::EXTERNAL)
}

pub(super) fn from_inside(compiled: &Compiled) -> Vec<String> {
    behind(compiled, "192.0.2.1", 30080, service_scope::CLUSTER)
}
