//! What is taken in.

use std::sync::Arc;

use super::*;

fn name() -> Arc<NamespacedName> {
    Arc::new(NamespacedName {
        namespace: "n".into(),
        name: "s".into(),
    })
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
    // A slice with the label has no endpoints for proxies.
    let mut ignored = slice("s-1", endpoints(&["10.1.0.1"]));
    let served = compiled(&[service(json!({})), ignored.clone()]);
    assert_eq!(served.serving.len(), 1);
    ignored["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    assert_eq!(compiled(&[service(json!({})), ignored]).serving, []);
}

#[test]
fn svc_03_another_proxys_service_is_ignored_as_long_as_it_is_labelled() {
    let mut object = service(json!({}));
    object["metadata"]["labels"] = json!({ "service.kubernetes.io/service-proxy-name": "other" });
    assert_eq!(compiled(&[object.clone()]), Compiled::default());
    let mut services = Services::default();
    // Our own name is as good as none, and the change acts at once.
    for (label, proxied) in [
        (json!("other"), false),
        (json!("millrace"), true),
        (Value::Null, true),
    ] {
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
    let compiled = compiled(&[
        service(json!({})),
        slice("s-1", endpoints(&["10.1.0.1", "fd00::1"])),
    ]);
    assert_eq!(at_vip(&compiled), ["10.1.0.1:8080"]);
    assert_eq!(behind(&compiled, VIP6, 80, 0), ["reject"]);
    assert!(
        compiled.problems[0].contains("addressType"),
        "{:?}",
        compiled.problems
    );
}

#[test]
fn svc_06_an_endpoint_in_two_slices_counts_once_and_does_not_vanish_while_it_moves() {
    let both = [
        slice("s-1", endpoints(&["10.1.0.1"])),
        slice("s-2", endpoints(&["10.1.0.1 not-ready"])),
    ];
    let [first, second] = both.clone();
    let once = ["10.1.0.1:8080"];
    assert_eq!(
        at_vip(&compiled(&[service(json!({})), first.clone(), second.clone()])),
        once
    );
    let moved = slice("s-2", endpoints(&["10.1.0.1"]));
    assert_eq!(
        at_vip(&compiled(&[service(json!({})), first, moved.clone()])),
        once
    );
    assert_eq!(at_vip(&compiled(&[service(json!({})), moved])), once);
}

#[test]
fn an_old_slice_with_zeros_before_its_numbers_is_read_as_an_old_service_is() {
    let object = slice("s-1", endpoints(&["010.001.0.1"]));
    assert_eq!(
        at_vip(&compiled(&[service(json!({})), object])),
        ["10.1.0.1:8080"]
    );
}

#[test]
fn svc_07_missing_conditions_mean_ready_serving_and_not_terminating() {
    let mut object = slice("s-1", endpoints(&["10.1.0.1", "10.1.0.2 not-ready terminating"]));
    object["endpoints"][0]["conditions"] = Value::Null;
    assert_eq!(
        at_vip(&compiled(&[service(json!({})), object.clone()])),
        ["10.1.0.1:8080"]
    );
    // Serving is missing, so it does; and without a ready one it is used.
    object["endpoints"][0]["conditions"] = json!({ "ready": false });
    assert_eq!(
        at_vip(&compiled(&[service(json!({})), object])),
        ["10.1.0.2:8080"]
    );
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
    assert_eq!(
        [at(6), at(17), at(132)],
        [["10.1.0.1:1"], ["reject"], ["10.1.0.1:3"]]
    );
}

#[test]
fn svc_10_each_family_has_its_own_addresses_and_ranges() {
    let mut object = service(json!({
        "type": "LoadBalancer", "externalIPs": ["203.0.113.7", "2001:db8:7::7"],
        "loadBalancerSourceRanges": ["198.51.100.0/24", "2001:db8:9::/48"],
    }));
    object["status"] =
        json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.1" }, { "ip": "2001:db8:7::1" }] } });
    let slices = [slice("s-1", endpoints(&["10.1.0.1"]))];
    let manifests = [object, slices[0].clone()];
    let compiled = compiled(&manifests);
    for ip in [VIP, "203.0.113.7", "203.0.113.1"] {
        assert_eq!(behind(&compiled, ip, 80, 0), ["10.1.0.1:8080"], "{ip}");
    }
    for ip in [VIP6, "2001:db8:7::7", "2001:db8:7::1"] {
        assert_eq!(behind(&compiled, ip, 80, 0), ["reject"], "{ip}");
    }
    let only_v4 = Place {
        families: crate::config::Families::V4,
        ..place()
    };
    let compiled = compiled_at(&only_v4, &manifests);
    assert!(
        compiled
            .frontends
            .iter()
            .all(|frontend| frontend.key.addr.is_v4())
    );
    assert!(
        compiled.ranges.iter().all(|range| range.is_ipv4()),
        "{:?}",
        compiled.ranges
    );
}

#[test]
fn a_service_of_a_family_that_the_node_does_not_serve_is_said() {
    use crate::config::Families::{Dual, V4, V6};
    let at = |families, ips: &[&str]| {
        let object = service(json!({ "clusterIP": ips[0], "clusterIPs": ips }));
        let place = Place { families, ..place() };
        let compiled = compiled_at(&place, &[object, slice("s-1", endpoints(&["10.1.0.1"]))]);
        (compiled.frontends.is_empty(), compiled.problems)
    };
    for (families, ips) in [
        (Dual, &[VIP6][..]),
        (V4, &[VIP]),
        (V4, &[VIP, VIP6]),
        (V6, &[VIP, VIP6]),
    ] {
        assert_eq!(at(families, ips), (false, Vec::new()), "{families} {ips:?}");
    }
    for (families, ip, words) in [
        (V4, VIP6, ["IPv6 alone", "`families` is v4"]),
        (V6, VIP, ["IPv4 alone", "`families` is v6"]),
    ] {
        let (empty, problems) = at(families, &[ip]);
        assert!(empty, "{families} {ip}");
        assert!(
            matches!(&problems[..], [one] if one.contains("Service n/s") && words.iter().all(|word| one.contains(word))),
            "{problems:?}"
        );
    }
}

#[test]
fn svc_10_a_family_without_a_cluster_ip_has_no_node_port_either() {
    let object = service(json!({
        "clusterIPs": [VIP], "type": "NodePort", "ports": [{ "name": "web", "port": 80, "nodePort": 30080 }],
    }));
    let compiled = compiled(&[object]);
    assert!(
        compiled
            .frontends
            .iter()
            .all(|frontend| frontend.key.addr.is_v4())
    );
}

#[test]
fn rel_25_addresses_that_mean_something_else_everywhere_and_the_service_itself_are_left_out() {
    let lines = [
        "127.0.0.1",
        "169.254.1.1",
        "0.0.0.0",
        "224.0.0.1",
        VIP,
        "10.1.0.1",
    ];
    let compiled = compiled(&[service(json!({})), slice("s-1", endpoints(&lines))]);
    assert_eq!(at_vip(&compiled), ["10.1.0.1:8080"]);
    let problems = compiled.problems.join("\n");
    assert!(
        problems.contains("4 endpoints are left out") && problems.contains(VIP),
        "{problems}"
    );
    let lines = [
        "::1",
        "fe80::1",
        "::",
        "ff02::1",
        "::ffff:10.1.2.3",
        VIP6,
        "2001:db8:1::1",
    ];
    let mut of_v6 = slice("s-2", endpoints(&lines));
    of_v6["addressType"] = json!("IPv6");
    let compiled = super::compiled(&[service(json!({})), of_v6]);
    assert_eq!(behind(&compiled, VIP6, 80, 0), ["2001:db8:1::1:8080"]);
    assert_eq!(at_vip(&compiled), ["reject"], "the other family has none");
    let problems = compiled.problems.join("\n");
    assert!(
        problems.contains("5 endpoints are left out") && problems.contains(VIP6),
        "{problems}"
    );
}

/// What is said of a Service that cannot be read.
fn problem_of(spec: Value) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let object = service(spec);
    std::fs::write(folder.path().join("all.json"), object.to_string()).unwrap();
    let mut events = Folder::new(folder.path().to_owned()).scan().into_iter();
    events.find_map(|event| match event {
        Event::Problems(_, problems) => Some(problems.join("\n")),
        _ => None,
    })
}

#[test]
fn a_word_that_a_field_does_not_have_is_refused_by_the_field() {
    for (field, word, instead) in [
        ("sessionAffinity", "clientIP", "None or ClientIP"),
        ("externalTrafficPolicy", "local", "Cluster or Local"),
        ("internalTrafficPolicy", "Node", "Cluster or Local"),
    ] {
        let said = problem_of(json!({ field: word })).unwrap();
        assert!(
            said.contains(&format!("spec.{field}: `{word}` is not {instead}")),
            "{said}"
        );
    }
    assert_eq!(problem_of(json!({ "sessionAffinity": "None" })), None);
}

#[test]
fn a_family_that_is_not_that_of_its_address_is_refused_by_its_field() {
    let problem = |families: Value| problem_of(json!({ "ipFamilies": families }));
    // Objects older than the field have none, and one that has just got its second address may name the first alone.
    for families in [json!(null), json!([]), json!(["IPv4"]), json!(["IPv4", "IPv6"])] {
        assert_eq!(problem(families), None);
    }
    for (families, field) in [
        (json!(["IPv6"]), "spec.ipFamilies[0]: `IPv6`"),
        (json!(["IPv4", "IPv4"]), "spec.ipFamilies[1]: `IPv4`"),
        (json!(["IPv4", "ipv6"]), "spec.ipFamilies[1]: `ipv6`"),
    ] {
        let said = problem(families).unwrap();
        assert!(said.contains(field) && said.contains("n/s"), "{said}");
    }
    let alone = problem_of(json!({ "clusterIPs": null, "ipFamilies": ["IPv6"] }));
    assert!(alone.unwrap().contains(VIP));
}

#[test]
fn who_is_older_is_known_from_the_object() {
    let mut object = service(json!({}));
    assert_eq!(compiled(&[object.clone()]).created, 0, "before all others");
    object["metadata"]["creationTimestamp"] = json!("1970-01-02T00:00:00Z");
    assert_eq!(compiled(&[object]).created, 86_400);
}
