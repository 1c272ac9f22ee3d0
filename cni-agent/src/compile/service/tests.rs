//! The numbered statements of the Service specification, as far as they are decided without the kernel.

use std::{collections::BTreeSet, net::IpAddr};

use cni_ebpf::abi::{service_flags, service_scope};
use serde_json::{Value, json};

use super::{Compiled, Frontend, HintsUsed, Place, SlotSet, compile};
use crate::{
    model::{EndpointSlice, Event, NamespacedName, Object, Service},
    source::file::Folder,
    state::Services,
};

const VIP: &str = "10.96.0.10";
const VIP6: &str = "fd00:96::10";

fn place() -> Place {
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
fn objects(manifests: &[Value]) -> (Vec<Service>, Vec<EndpointSlice>) {
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

fn compiled_at(place: &Place, manifests: &[Value]) -> Compiled {
    let (services, slices) = objects(manifests);
    compile(place, &services[0], &slices.iter().collect::<Vec<_>>())
}

fn compiled(manifests: &[Value]) -> Compiled {
    compiled_at(&place(), manifests)
}

fn service(spec: Value) -> Value {
    let mut whole = json!({
        "clusterIP": VIP, "clusterIPs": [VIP, VIP6],
        "ports": [{ "name": "web", "port": 80, "protocol": "TCP" }],
    });
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s", "namespace": "n" }, "spec": whole })
}

fn slice(name: &str, endpoints: Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": name, "namespace": "n", "labels": { "kubernetes.io/service-name": "s" } },
        "ports": [{ "name": "web", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints,
    })
}

/// `ADDRESS[@NODE] [not-ready] [terminating] [not-serving] [zone=Z] [for=NODE]`
fn endpoints(lines: &[&str]) -> Value {
    lines.iter().map(|line| endpoint(line)).collect()
}

fn endpoint(line: &str) -> Value {
    let mut words = line.split(' ');
    let (address, node) = words.next().unwrap().split_once('@').unwrap_or((line.split(' ').next().unwrap(), "two"));
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
fn behind(compiled: &Compiled, addr: &str, port: u16, scope: u8) -> Vec<String> {
    behind_proto(compiled, addr, port, 6, scope)
}

fn behind_proto(compiled: &Compiled, addr: &str, port: u16, proto: u8, scope: u8) -> Vec<String> {
    let Some(frontend) = frontend(compiled, addr, port, proto, scope) else {
        return vec!["unknown".into()];
    };
    if frontend.flags & service_flags::REJECT != 0 {
        return vec!["reject".into()];
    }
    if frontend.flags & service_flags::DROP != 0 {
        return vec!["drop".into()];
    }
    let set = set(compiled, &frontend);
    set.targets.iter().map(|target| format!("{}:{}", target.addr, target.port)).collect()
}

fn frontend(compiled: &Compiled, addr: &str, port: u16, proto: u8, scope: u8) -> Option<Frontend> {
    let addr = addr.parse::<IpAddr>().unwrap().into();
    let mut all = compiled.frontends.iter();
    all.find(|frontend| {
        let key = frontend.key;
        (key.addr, key.port.get(), key.proto, key.scope) == (addr, port, proto, scope)
    })
    .copied()
}

fn set<'a>(compiled: &'a Compiled, frontend: &Frontend) -> &'a SlotSet {
    compiled.sets.iter().find(|set| Some(set.name) == frontend.set).unwrap()
}

fn at_vip(compiled: &Compiled) -> Vec<String> {
    behind(compiled, VIP, 80, service_scope::CLUSTER)
}

fn name() -> NamespacedName {
    NamespacedName {
        namespace: "n".into(),
        name: "s".into(),
    }
}

#[test]
fn svc_01_headless_and_external_names_are_not_proxied() {
    for spec in [
        json!({ "clusterIP": "None", "clusterIPs": ["None"] }),
        json!({ "clusterIP": "", "clusterIPs": [] }),
        json!({ "type": "ExternalName", "externalName": "example.org" }),
    ] {
        let compiled = compiled(&[service(spec), slice("s-1", endpoints(&["10.1.0.1"]))]);
        assert_eq!(compiled, Compiled::default());
    }
}

#[test]
fn svc_02_what_is_labelled_headless_is_ignored() {
    let mut object = service(json!({}));
    object["metadata"]["labels"] = json!({ "service.kubernetes.io/headless": "" });
    assert_eq!(compiled(&[object]), Compiled::default());
}

#[test]
fn svc_03_another_proxys_service_is_ignored_as_long_as_it_is_labelled() {
    let mut object = service(json!({}));
    object["metadata"]["labels"] = json!({ "service.kubernetes.io/service-proxy-name": "other" });
    assert_eq!(compiled(&[object.clone()]), Compiled::default());
    let mut services = Services::default();
    // Our own name is as good as none, and the change acts at once.
    for (label, proxied) in [(json!("other"), false), (json!("millrace"), true), (Value::Null, true)] {
        object["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = label.clone();
        if label.is_null() {
            object["metadata"]["labels"] = Value::Null;
        }
        let service = objects(&[object.clone()]).0.remove(0);
        assert_eq!(compile(&place(), &service, &[]).frontends.is_empty(), !proxied);
        let mut known = Services::default();
        known.touch([name()]);
        let _ = services.take_changed();
        services_set(&mut services, service);
        assert!(services.has_changed() || label.is_null());
    }
}

/// As an event does it.
fn services_set(services: &mut Services, service: Service) {
    let mut state = crate::state::State::new([]);
    std::mem::swap(&mut state.services, services);
    state.handle(Event::Set(Object::Service(Box::new(service))));
    std::mem::swap(&mut state.services, services);
}

#[test]
fn svc_04_endpoints_match_by_port_name_and_protocol_and_ports_without_number_are_skipped() {
    let object = service(json!({ "ports": [
        { "name": "web", "port": 80 }, { "name": "dns", "port": 53, "protocol": "UDP" },
    ] }));
    let mut with_ports = slice("s-1", endpoints(&["10.1.0.1"]));
    with_ports["ports"] = json!([
        { "name": "web", "port": 8080, "protocol": "UDP" }, { "name": "other", "port": 1, "protocol": "TCP" },
        { "name": "web", "port": null, "protocol": "TCP" }, { "name": "web", "port": 0, "protocol": "TCP" },
        { "name": "dns", "port": 5353, "protocol": "UDP" },
    ]);
    let compiled = compiled(&[object, with_ports]);
    assert_eq!(at_vip(&compiled), ["reject"]);
    assert_eq!(behind_proto(&compiled, VIP, 53, 17, 0), ["10.1.0.1:5353"]);
}

#[test]
fn svc_04_ports_without_a_name_match_each_other() {
    let object = service(json!({ "ports": [{ "port": 80 }] }));
    let mut nameless = slice("s-1", endpoints(&["10.1.0.1"]));
    nameless["ports"] = json!([{ "name": null, "port": 8080 }]);
    assert_eq!(at_vip(&compiled(&[object, nameless])), ["10.1.0.1:8080"]);
}

#[test]
fn svc_05_addresses_of_the_wrong_family_are_ignored_and_said() {
    let compiled = compiled(&[service(json!({})), slice("s-1", endpoints(&["10.1.0.1", "fd00::1"]))]);
    assert_eq!(at_vip(&compiled), ["10.1.0.1:8080"]);
    assert_eq!(behind(&compiled, VIP6, 80, 0), ["reject"]);
    assert!(compiled.problems[0].contains("addressType"), "{:?}", compiled.problems);
}

#[test]
fn svc_06_an_endpoint_in_two_slices_counts_once_and_does_not_vanish_while_it_moves() {
    let both = [slice("s-1", endpoints(&["10.1.0.1"])), slice("s-2", endpoints(&["10.1.0.1 not-ready"]))];
    let [first, second] = both.clone();
    let once = ["10.1.0.1:8080"];
    assert_eq!(at_vip(&compiled(&[service(json!({})), first.clone(), second.clone()])), once);
    let moved = slice("s-2", endpoints(&["10.1.0.1"]));
    assert_eq!(at_vip(&compiled(&[service(json!({})), first, moved.clone()])), once);
    assert_eq!(at_vip(&compiled(&[service(json!({})), moved])), once);
}

#[test]
fn svc_07_missing_conditions_mean_ready_serving_and_not_terminating() {
    let mut object = slice("s-1", endpoints(&["10.1.0.1", "10.1.0.2 not-ready terminating"]));
    object["endpoints"][0]["conditions"] = Value::Null;
    assert_eq!(at_vip(&compiled(&[service(json!({})), object.clone()])), ["10.1.0.1:8080"]);
    // Serving is missing, so it does; and without a ready one it is used.
    object["endpoints"][0]["conditions"] = json!({ "ready": false });
    assert_eq!(at_vip(&compiled(&[service(json!({})), object])), ["10.1.0.2:8080"]);
}

#[test]
fn svc_09_protocols_on_one_port_are_independent() {
    let object = service(json!({ "ports": [
        { "name": "t", "port": 53, "protocol": "TCP" }, { "name": "u", "port": 53, "protocol": "UDP" },
        { "name": "s", "port": 53, "protocol": "SCTP" },
    ] }));
    let mut ports = slice("s-1", endpoints(&["10.1.0.1"]));
    ports["ports"] = json!([
        { "name": "t", "port": 1, "protocol": "TCP" }, { "name": "s", "port": 3, "protocol": "SCTP" },
    ]);
    let compiled = compiled(&[object, ports]);
    let at = |proto| behind_proto(&compiled, VIP, 53, proto, 0);
    assert_eq!([at(6), at(17), at(132)], [["10.1.0.1:1"], ["reject"], ["10.1.0.1:3"]]);
}

#[test]
fn svc_10_each_family_has_its_own_addresses_and_ranges() {
    let mut object = service(json!({
        "type": "LoadBalancer", "externalIPs": ["203.0.113.7", "2001:db8:7::7"],
        "loadBalancerSourceRanges": ["198.51.100.0/24", "2001:db8:9::/48"],
    }));
    object["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.1" }, { "ip": "2001:db8:7::1" }] } });
    let slices = [slice("s-1", endpoints(&["10.1.0.1"]))];
    let manifests = [object, slices[0].clone()];
    let compiled = compiled(&manifests);
    for ip in [VIP, "203.0.113.7", "203.0.113.1"] {
        assert_eq!(behind(&compiled, ip, 80, 0), ["10.1.0.1:8080"], "{ip}");
    }
    for ip in [VIP6, "2001:db8:7::7", "2001:db8:7::1"] {
        assert_eq!(behind(&compiled, ip, 80, 0), ["reject"], "{ip}");
    }
    let only_v4 = Place { families: crate::config::Families::V4, ..place() };
    let compiled = compiled_at(&only_v4, &manifests);
    assert!(compiled.frontends.iter().all(|frontend| frontend.key.addr.is_v4()));
    assert!(compiled.ranges.iter().all(|range| range.is_ipv4()), "{:?}", compiled.ranges);
}

#[test]
fn svc_11_the_cluster_policy_uses_ready_endpoints() {
    let lines = ["10.1.0.1@one", "10.1.0.2", "10.1.0.3 not-ready", "10.1.0.4 not-ready terminating"];
    let compiled = compiled(&[service(json!({})), slice("s-1", endpoints(&lines))]);
    assert_eq!(at_vip(&compiled), ["10.1.0.1:8080", "10.1.0.2:8080"]);
}

#[test]
fn svc_12_without_a_ready_one_those_that_leave_and_still_serve_are_used() {
    let lines = ["10.1.0.3 not-ready", "10.1.0.4 not-ready terminating", "10.1.0.5 not-ready terminating not-serving"];
    let compiled = compiled(&[service(json!({})), slice("s-1", endpoints(&lines))]);
    assert_eq!(at_vip(&compiled), ["10.1.0.4:8080"]);
}

fn node_port(external: &str, lines: &[&str]) -> Compiled {
    let object = service(json!({
        "type": "NodePort", "externalTrafficPolicy": external,
        "ports": [{ "name": "web", "port": 80, "nodePort": 30080 }],
    }));
    compiled(&[object, slice("s-1", endpoints(lines))])
}

fn from_outside(compiled: &Compiled) -> Vec<String> {
    behind(compiled, "192.0.2.1", 30080, service_scope::EXTERNAL)
}

fn from_inside(compiled: &Compiled) -> Vec<String> {
    behind(compiled, "192.0.2.1", 30080, service_scope::CLUSTER)
}

#[test]
fn svc_13_the_local_policy_decides_about_local_endpoints_alone() {
    let compiled = node_port("Local", &["10.1.0.1", "10.1.0.2@one not-ready terminating"]);
    assert_eq!(from_outside(&compiled), ["10.1.0.2:8080"], "leaving, and the best of this node");
    assert_eq!(from_inside(&compiled), ["10.1.0.1:8080"]);
    let compiled = node_port("Local", &["10.1.0.1", "10.1.0.2@one not-ready terminating", "10.1.0.3@one"]);
    assert_eq!(from_outside(&compiled), ["10.1.0.3:8080"]);
}

#[test]
fn svc_14_endpoints_that_are_not_ready_get_nothing_unless_they_were_made_ready() {
    let compiled = compiled(&[service(json!({})), slice("s-1", endpoints(&["10.1.0.1 not-ready", "10.1.0.2"]))]);
    assert_eq!(at_vip(&compiled), ["10.1.0.2:8080"]);
    // With publishNotReadyAddresses the controller says `ready`, of one that is terminating too.
    let compiled = super::tests::compiled(&[service(json!({})), slice("s-1", endpoints(&["10.1.0.1 not-serving terminating"]))]);
    assert_eq!(at_vip(&compiled), ["10.1.0.1:8080"]);
}

fn hinted(place: &Place, lines: &[&str]) -> (Vec<String>, HintsUsed) {
    let compiled = compiled_at(place, &[service(json!({})), slice("s-1", endpoints(lines))]);
    let frontend = frontend(&compiled, VIP, 80, 6, 0).unwrap();
    (at_vip(&compiled), set(&compiled, &frontend).hints)
}

#[test]
fn svc_15_same_node_counts_only_if_all_have_node_hints_and_one_is_for_here() {
    let one = ["10.1.0.1:8080"];
    let (found, used) = hinted(&place(), &["10.1.0.1 for=one", "10.1.0.2 for=two"]);
    assert_eq!((found.as_slice(), used), (one.map(String::from).as_slice(), HintsUsed::SameNode));
    for lines in [["10.1.0.1 for=one", "10.1.0.2"], ["10.1.0.1 for=three", "10.1.0.2 for=two"]] {
        let (found, used) = hinted(&place(), &lines);
        assert_eq!((found.len(), used), (2, HintsUsed::Anywhere), "{lines:?}");
    }
    // Those that are not ready have no say.
    let lines = ["10.1.0.1 for=one", "10.1.0.2 for=two", "10.1.0.3 not-ready"];
    assert_eq!(hinted(&place(), &lines).1, HintsUsed::SameNode);
}

#[test]
fn svc_16_same_zone_follows_the_same_rule() {
    let (found, used) = hinted(&place(), &["10.1.0.1 zone=a", "10.1.0.2 zone=b"]);
    assert_eq!((found, used), (vec!["10.1.0.1:8080".to_owned()], HintsUsed::SameZone));
    for lines in [["10.1.0.1 zone=a", "10.1.0.2"], ["10.1.0.1 zone=c", "10.1.0.2 zone=b"]] {
        assert_eq!(hinted(&place(), &lines).1, HintsUsed::Anywhere, "{lines:?}");
    }
    // Node hints come first, and zones where no node hint is for here.
    let lines = ["10.1.0.1 zone=a for=two", "10.1.0.2 zone=b for=two"];
    assert_eq!(hinted(&place(), &lines).1, HintsUsed::SameZone);
}

#[test]
fn svc_17_a_node_without_a_zone_ignores_zone_hints() {
    let nowhere = Place { zone: None, ..place() };
    let (found, used) = hinted(&nowhere, &["10.1.0.1 zone=a", "10.1.0.2 zone=b"]);
    assert_eq!((found.len(), used), (2, HintsUsed::Anywhere));
}

#[test]
fn svc_18_the_local_policy_ignores_hints() {
    let compiled = node_port("Local", &["10.1.0.1@one zone=b", "10.1.0.2@one zone=a"]);
    assert_eq!(from_outside(&compiled).len(), 2);
    assert_eq!(from_inside(&compiled), ["10.1.0.2:8080"]);
}

#[test]
fn svc_19_hints_are_obeyed_and_the_distribution_is_the_controllers() {
    for distribution in ["PreferClose", "PreferSameZone", "PreferSameNode"] {
        let object = service(json!({ "trafficDistribution": distribution }));
        let without = compiled(&[object.clone(), slice("s-1", endpoints(&["10.1.0.1@one", "10.1.0.2"]))]);
        assert_eq!(at_vip(&without).len(), 2, "{distribution}");
    }
    // Another zone of this node, and the same hints mean something else.
    let lines = ["10.1.0.1 zone=a", "10.1.0.2 zone=b"];
    let elsewhere = Place { zone: Some("b".into()), ..place() };
    assert_eq!(hinted(&elsewhere, &lines).0, ["10.1.0.2:8080"]);
}

#[test]
fn svc_24_masquerade_all_translates_what_goes_to_a_cluster_ip() {
    let everything = Place { masquerade_all: true, ..place() };
    for (place, flag) in [(place(), 0), (everything, service_flags::MASQUERADE)] {
        let compiled = compiled_at(&place, &[service(json!({})), slice("s-1", endpoints(&["10.1.0.1"]))]);
        let frontend = frontend(&compiled, VIP, 80, 6, 0).unwrap();
        assert_eq!(frontend.flags & service_flags::MASQUERADE, flag);
    }
}

#[test]
fn svc_25_without_any_usable_endpoint_everybody_is_refused() {
    for lines in [&[][..], &["10.1.0.1 not-ready"], &["10.1.0.1 not-ready terminating not-serving"]] {
        assert_eq!(at_vip(&compiled(&[service(json!({})), slice("s-1", endpoints(lines))])), ["reject"]);
        let object = service(json!({ "internalTrafficPolicy": "Local" }));
        assert_eq!(at_vip(&compiled(&[object, slice("s-1", endpoints(lines))])), ["reject"]);
    }
    assert_eq!(at_vip(&compiled(&[service(json!({}))])), ["reject"], "without slices");
}

#[test]
fn svc_26_a_local_service_with_endpoints_elsewhere_only_is_dropped() {
    let object = service(json!({ "internalTrafficPolicy": "Local" }));
    let elsewhere = compiled(&[object.clone(), slice("s-1", endpoints(&["10.1.0.1"]))]);
    assert_eq!(at_vip(&elsewhere), ["drop"]);
    let here = compiled(&[object, slice("s-1", endpoints(&["10.1.0.1", "10.1.0.2@one"]))]);
    assert_eq!(at_vip(&here), ["10.1.0.2:8080"]);
}

#[test]
fn svc_27_the_internal_policy_touches_cluster_ips_alone() {
    let object = service(json!({
        "type": "NodePort", "internalTrafficPolicy": "Local", "externalIPs": ["203.0.113.7"],
        "ports": [{ "name": "web", "port": 80, "nodePort": 30080 }],
    }));
    let compiled = compiled(&[object, slice("s-1", endpoints(&["10.1.0.1"]))]);
    assert_eq!(at_vip(&compiled), ["drop"]);
    for scope in [service_scope::CLUSTER, service_scope::EXTERNAL] {
        assert_eq!(behind(&compiled, "192.0.2.1", 30080, scope), ["10.1.0.1:8080"]);
        assert_eq!(behind(&compiled, "203.0.113.7", 80, scope), ["10.1.0.1:8080"]);
    }
}

#[test]
fn svc_28_every_other_port_of_a_live_cluster_ip_is_refused() {
    let compiled = compiled(&[service(json!({ "externalIPs": ["203.0.113.7"] }))]);
    for vip in [VIP, VIP6] {
        assert_eq!(behind_proto(&compiled, vip, 0, 0, service_scope::CLUSTER), ["reject"], "{vip}");
    }
    assert_eq!(behind_proto(&compiled, "203.0.113.7", 0, 0, 0), ["unknown"]);
}

#[test]
fn svc_30_node_ports_answer_on_the_chosen_addresses_only() {
    let compiled = node_port("Cluster", &["10.1.0.1"]);
    assert_eq!(from_outside(&compiled), ["10.1.0.1:8080"]);
    assert_eq!(behind(&compiled, "192.0.2.2", 30080, service_scope::EXTERNAL), ["unknown"]);
    assert_eq!(behind(&compiled, "2001:db8::1", 30080, service_scope::EXTERNAL), ["reject"]);
}

#[test]
fn svc_32_a_localhost_node_port_is_no_frontend_for_what_comes_from_outside() {
    let object = service(json!({ "type": "NodePort", "ports": [{ "name": "web", "port": 80, "nodePort": 30080 }] }));
    let manifests = [object, slice("s-1", endpoints(&["10.1.0.1"]))];
    let at = |compiled: &Compiled, scope| behind(compiled, "127.0.0.1", 30080, scope);
    assert_eq!(at(&compiled(&manifests), service_scope::CLUSTER), ["unknown"], "opt-in");
    let mut with = place();
    with.node_ports.insert([127, 0, 0, 1].into());
    let compiled = compiled_at(&with, &manifests);
    assert_eq!(at(&compiled, service_scope::CLUSTER), ["10.1.0.1:8080"]);
    assert_eq!(at(&compiled, service_scope::EXTERNAL), ["unknown"]);
}

fn flags(compiled: &Compiled, scope: u8) -> u32 {
    frontend(compiled, "192.0.2.1", 30080, 6, scope).unwrap().flags
}

#[test]
fn svc_33_the_external_cluster_policy_always_translates_the_source() {
    let compiled = node_port("Cluster", &["10.1.0.1"]);
    for scope in [service_scope::CLUSTER, service_scope::EXTERNAL] {
        assert_eq!(flags(&compiled, scope), service_flags::MASQUERADE);
    }
}

#[test]
fn svc_34_the_external_local_policy_uses_local_endpoints_and_keeps_the_source() {
    let compiled = node_port("Local", &["10.1.0.1@one", "10.1.0.2"]);
    assert_eq!(from_outside(&compiled), ["10.1.0.1:8080"]);
    assert_eq!(flags(&compiled, service_scope::EXTERNAL), 0);
}

#[test]
fn svc_35_external_packets_are_dropped_where_endpoints_are_only_elsewhere() {
    assert_eq!(from_outside(&node_port("Local", &["10.1.0.2"])), ["drop"]);
}

#[test]
fn svc_36_pods_reach_every_endpoint_of_a_local_service_untranslated() {
    let compiled = node_port("Local", &["10.1.0.2"]);
    assert_eq!(from_inside(&compiled), ["10.1.0.2:8080"]);
    assert_eq!(flags(&compiled, service_scope::CLUSTER) & service_flags::MASQUERADE, 0);
}

#[test]
fn svc_37_the_node_reaches_them_translated() {
    let compiled = node_port("Local", &["10.1.0.2"]);
    assert_eq!(flags(&compiled, service_scope::CLUSTER), service_flags::MASQUERADE_NODE);
}

#[test]
fn svc_38_without_endpoints_external_frontends_refuse() {
    let mut object = service(json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "externalIPs": ["203.0.113.7"],
        "ports": [{ "name": "web", "port": 80, "nodePort": 30080 }],
    }));
    object["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.1" }] } });
    let compiled = compiled(&[object]);
    for (ip, port) in [("192.0.2.1", 30080), ("203.0.113.1", 80), ("203.0.113.7", 80)] {
        for scope in [service_scope::CLUSTER, service_scope::EXTERNAL] {
            assert_eq!(behind(&compiled, ip, port, scope), ["reject"], "{ip}");
        }
    }
}

#[test]
fn svc_39_an_address_is_captured_unless_the_load_balancer_is_a_proxy() {
    let mut object = service(json!({ "type": "LoadBalancer" }));
    object["status"] = json!({ "loadBalancer": { "ingress": [
        { "ip": "203.0.113.1" }, { "ip": "203.0.113.2", "ipMode": "VIP" }, { "ip": "203.0.113.3", "ipMode": "Proxy" },
        { "hostname": "example.org" },
    ] } });
    let compiled = compiled(&[object, slice("s-1", endpoints(&["10.1.0.1"]))]);
    let at = |ip| behind(&compiled, ip, 80, service_scope::EXTERNAL);
    assert_eq!(
        ["203.0.113.1", "203.0.113.2", "203.0.113.3"].map(at),
        [["10.1.0.1:8080"], ["10.1.0.1:8080"], ["unknown"]]
    );
}

fn restricted(ranges: &[&str]) -> Compiled {
    let mut object = service(json!({
        "type": "LoadBalancer", "loadBalancerSourceRanges": ranges, "externalIPs": ["203.0.113.7"],
        "ports": [{ "name": "web", "port": 80, "nodePort": 30080 }],
    }));
    object["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.1" }] } });
    compiled(&[object, slice("s-1", endpoints(&["10.1.0.1"]))])
}

#[test]
fn svc_40_source_ranges_restrict_the_load_balancers_addresses_alone() {
    let compiled = restricted(&[" 198.51.100.0/24 ", "198.51.200.1/32\n"]);
    let texts: Vec<String> = compiled.ranges.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["198.51.100.0/24", "198.51.200.1/32"]);
    let is_restricted = |ip, port, scope| frontend(&compiled, ip, port, 6, scope).unwrap().restricted;
    for scope in [service_scope::CLUSTER, service_scope::EXTERNAL] {
        assert!(is_restricted("203.0.113.1", 80, scope));
        assert!(!is_restricted("203.0.113.7", 80, scope));
        assert!(!is_restricted("192.0.2.1", 30080, scope));
    }
    assert!(!is_restricted(VIP, 80, service_scope::CLUSTER));
}

#[test]
fn svc_41_a_node_in_one_of_the_ranges_reaches_its_own_load_balancer() {
    let has = |ranges: &[&str], ip: &str| {
        let ip: IpAddr = ip.parse().unwrap();
        restricted(ranges).ranges.iter().any(|range| range.contains(ip))
    };
    assert!(has(&["192.0.2.0/24"], "192.0.2.1"));
    assert!(!has(&["198.51.100.0/24"], "192.0.2.1"));
    assert!(has(&["192.0.2.0/24"], "2001:db8::1"), "by whichever of its addresses");
}

#[test]
fn svc_42_external_ips_are_served_if_they_are_nobodys_and_somebody_wants_it() {
    let object = |ip: &str| service(json!({ "externalIPs": [ip] }));
    let at = |place: &Place, ip: &str| {
        let compiled = compiled_at(place, &[object(ip), slice("s-1", endpoints(&["10.1.0.1"]))]);
        (behind(&compiled, ip, 80, service_scope::EXTERNAL).remove(0), compiled.problems)
    };
    assert_eq!(at(&place(), "203.0.113.7"), ("10.1.0.1:8080".to_owned(), Vec::new()));
    let off = Place { external_ips: false, ..place() };
    for (place, ip, word) in [
        (&off, "203.0.113.7", "services.externalIPs"),
        (&place(), "192.0.2.2", "node's own"),
        (&place(), "10.96.0.53", "range of Service addresses"),
        (&place(), "169.254.20.10", "every machine"),
    ] {
        let (found, problems) = at(place, ip);
        assert_eq!(found, "unknown", "{ip}");
        assert!(problems[0].contains(word) && problems[0].contains("n/s"), "{problems:?}");
    }
}

#[test]
fn svc_43_a_load_balancer_without_node_ports_works() {
    let mut object = service(json!({ "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false }));
    object["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.1" }] } });
    let compiled = compiled(&[object, slice("s-1", endpoints(&["10.1.0.1"]))]);
    assert_eq!(behind(&compiled, "203.0.113.1", 80, service_scope::EXTERNAL), ["10.1.0.1:8080"]);
    assert!(compiled.frontends.iter().all(|frontend| frontend.key.port.get() != 30080));
}

#[test]
fn svc_50_affinity_lasts_three_hours_unless_the_object_says_otherwise() {
    let seconds = |config: Value| {
        let object = service(json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": config }));
        let compiled = compiled(&[object]);
        frontend(&compiled, VIP, 80, 6, 0).unwrap().affinity_seconds
    };
    assert_eq!(seconds(Value::Null), 10_800);
    assert_eq!(seconds(json!({ "clientIP": { "timeoutSeconds": 7 } })), 7);
    let without = compiled(&[service(json!({}))]);
    assert_eq!(frontend(&without, VIP, 80, 6, 0).unwrap().flags & service_flags::AFFINITY, 0);
}

#[test]
fn svc_53_an_endpoint_that_leaves_and_serves_keeps_its_row_and_one_that_does_not_loses_it() {
    let lines = ["10.1.0.1", "10.1.0.2 not-ready terminating", "10.1.0.3 not-ready terminating not-serving"];
    let compiled = compiled(&[service(json!({})), slice("s-1", endpoints(&lines))]);
    let serving: Vec<String> = compiled.serving.iter().map(|(target, _)| target.addr.to_string()).collect();
    assert_eq!(serving, ["10.1.0.1", "10.1.0.2"]);
    assert_eq!(at_vip(&compiled), ["10.1.0.1:8080"]);
}

#[test]
fn addresses_that_mean_something_else_everywhere_and_the_service_itself_are_left_out() {
    let lines = ["127.0.0.1", "169.254.1.1", "0.0.0.0", "224.0.0.1", VIP, "10.1.0.1"];
    let compiled = compiled(&[service(json!({})), slice("s-1", endpoints(&lines))]);
    assert_eq!(at_vip(&compiled), ["10.1.0.1:8080"]);
    let problems = compiled.problems.join("\n");
    assert!(problems.contains("4 endpoints are left out") && problems.contains(VIP), "{problems}");
}
