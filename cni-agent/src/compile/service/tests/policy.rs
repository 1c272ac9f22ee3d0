//! What the policies make of it.

use super::*;

#[test]
fn svc_24_masquerade_all_translates_what_goes_to_a_cluster_ip() {
    let everything = Place {
        masquerade_all: true,
        ..place()
    };
    for (place, flag) in [(place(), 0), (everything, service_flags::MASQUERADE)] {
        let compiled = compiled_at(
            &place,
            &[service(json!({})), slice("s-1", endpoints(&["10.1.0.1"]))],
        );
        let frontend = frontend(&compiled, VIP, 80, 6, 0).unwrap();
        assert_eq!(frontend.flags & service_flags::MASQUERADE, flag);
    }
}

#[test]
fn svc_25_without_any_usable_endpoint_everybody_is_refused() {
    for lines in [
        &[][..],
        &["10.1.0.1 not-ready"],
        &["10.1.0.1 not-ready terminating not-serving"],
    ] {
        assert_eq!(
            at_vip(&compiled(&[service(json!({})), slice("s-1", endpoints(lines))])),
            ["reject"]
        );
        let object = service(json!({ "internalTrafficPolicy": "Local" }));
        assert_eq!(
            at_vip(&compiled(&[object, slice("s-1", endpoints(lines))])),
            ["reject"]
        );
    }
    assert_eq!(
        at_vip(&compiled(&[service(json!({}))])),
        ["reject"],
        "without slices"
    );
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
        assert_eq!(
            behind_proto(&compiled, vip, 0, 0, service_scope::CLUSTER),
            ["reject"],
            "{vip}"
        );
    }
    // Elsewhere such a row has the address answer pings, and nothing is refused.
    let row = frontend(&compiled, "203.0.113.7", 0, 0, service_scope::CLUSTER).unwrap();
    assert!(row.only_answers_pings());
    assert_eq!(behind_proto(&compiled, "203.0.113.7", 9, 6, 0), ["unknown"]);
}

#[test]
fn svc_30_node_ports_answer_on_the_chosen_addresses_only() {
    let compiled = node_port("Cluster", &["10.1.0.1"]);
    assert_eq!(from_outside(&compiled), ["10.1.0.1:8080"]);
    assert_eq!(
        behind(&compiled, "192.0.2.2", 30080, service_scope::EXTERNAL),
        ["unknown"]
    );
    assert_eq!(
        behind(&compiled, "2001:db8::1", 30080, service_scope::EXTERNAL),
        ["reject"]
    );
}

#[test]
fn svc_32_a_localhost_node_port_is_no_frontend_for_what_comes_from_outside() {
    let object =
        service(json!({ "type": "NodePort", "ports": [{ "name": "web", "port": 80, "nodePort": 30080 }] }));
    let manifests = [object, slice("s-1", endpoints(&["10.1.0.1"]))];
    let at = |compiled: &Compiled, scope| behind(compiled, "127.0.0.1", 30080, scope);
    assert_eq!(
        at(&compiled(&manifests), service_scope::CLUSTER),
        ["unknown"],
        "opt-in"
    );
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
    assert_eq!(
        flags(&compiled, service_scope::CLUSTER) & service_flags::MASQUERADE,
        0
    );
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
