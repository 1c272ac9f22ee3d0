//! Addresses that clients outside of the cluster use.

use super::*;
use crate::config::Mode;

#[test]
fn svc_39_an_address_is_captured_unless_the_load_balancer_is_a_proxy() {
    let mut object = service(json!({ "type": "LoadBalancer" }));
    object["status"] = json!({ "loadBalancer": { "ingress": [
        { "ip": "203.0.113.1" }, { "ip": "203.0.113.2", "ipMode": "VIP" }, { "ip": "203.0.113.3", "ipMode": "Proxy" },
        { "hostname": "example.org" }, { "ip": "203.0.113.4", "ipMode": "vip" },
    ] } });
    let compiled = compiled(&[object, slice("s-1", endpoints(&["10.1.0.1"]))]);
    let at = |ip| behind(&compiled, ip, 80, service_scope::EXTERNAL);
    assert_eq!(
        ["203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4"].map(at),
        [["10.1.0.1:8080"], ["10.1.0.1:8080"], ["unknown"], ["unknown"]]
    );
    assert!(compiled.problems.concat().contains("ingress[4].ipMode is `vip`"));
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
fn svc_40_ranges_of_the_other_family_alone_let_nobody_in_and_that_is_said() {
    let families = |families| Place { families, ..place() };
    let (dual, v4) = (place(), families(crate::config::Families::V4));
    for (place, ranges, said) in [
        (
            &v4,
            "2001:db8:9::/48",
            "no range of IPv4, so that nobody reaches its address 203.0.113.1",
        ),
        (&dual, "2001:db8:9::/48", "Add one, 0.0.0.0/0 for everybody"),
        (
            &dual,
            "198.51.100.0/24",
            "no range of IPv6, so that nobody reaches its address 2001:db8:7::1",
        ),
    ] {
        let mut object = service(json!({ "type": "LoadBalancer", "loadBalancerSourceRanges": [ranges] }));
        object["status"] =
            json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.1" }, { "ip": "2001:db8:7::1" }] } });
        let compiled = compiled_at(place, &[object, slice("s-1", endpoints(&["10.1.0.1"]))]);
        let shut = frontend(&compiled, "203.0.113.1", 80, 6, service_scope::EXTERNAL).unwrap();
        assert!(shut.restricted);
        let problems = compiled.problems.concat();
        assert!(
            problems.contains(said)
                && problems.contains("n/s")
                && problems.contains("spec.loadBalancerSourceRanges"),
            "{problems}"
        );
        assert_eq!(compiled.problems.len(), 1, "{problems}");
    }
    // Both, none, and none that anything depends on.
    for ranges in [&["198.51.100.0/24", "2001:db8:9::/48"][..], &[]] {
        assert_eq!(restricted(ranges).problems, Vec::<String>::new());
    }
    let unbalanced = service(json!({ "loadBalancerSourceRanges": ["2001:db8:9::/48"] }));
    assert_eq!(compiled(&[unbalanced]).problems, Vec::<String>::new());
}

#[test]
fn svc_41_a_node_in_one_of_the_ranges_reaches_its_own_load_balancer() {
    let has = |ranges: &[&str], ip: &str| {
        let ip: IpAddr = ip.parse().unwrap();
        restricted(ranges).ranges.iter().any(|range| range.contains(ip))
    };
    assert!(has(&["192.0.2.0/24"], "192.0.2.1"));
    assert!(!has(&["198.51.100.0/24"], "192.0.2.1"));
    assert!(
        has(&["192.0.2.0/24"], "2001:db8::1"),
        "by whichever of its addresses"
    );
}

#[test]
fn svc_42_rel_24_external_ips_are_served_if_they_are_nobodys_and_somebody_wants_it() {
    let object = |ip: &str| service(json!({ "externalIPs": [ip] }));
    let at = |place: &Place, ip: &str| {
        let compiled = compiled_at(place, &[object(ip), slice("s-1", endpoints(&["10.1.0.1"]))]);
        (
            behind(&compiled, ip, 80, service_scope::EXTERNAL).remove(0),
            compiled.problems,
        )
    };
    assert_eq!(
        at(&place(), "203.0.113.7"),
        ("10.1.0.1:8080".to_owned(), Vec::new())
    );
    let off = Place {
        external_ips: false,
        ..place()
    };
    let place = || Place {
        pod_ranges: vec!["10.1.0.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
        resolvers: ["198.51.100.53".parse().unwrap()].into(),
        ..place()
    };
    for (place, ip, word) in [
        (&off, "203.0.113.7", "services.externalIPs"),
        (&place(), "192.0.2.2", "node's own"),
        (&place(), "10.96.0.53", "range of Service addresses"),
        (&place(), "169.254.20.10", "every machine"),
        // Where CoreDNS may run, and the resolver behind it.
        (&place(), "10.1.0.53", "range of pods"),
        (&place(), "198.51.100.53", "paths.resolvConf"),
    ] {
        let (found, problems) = at(place, ip);
        assert_eq!(found, "unknown", "{ip}");
        assert!(
            problems[0].contains(word) && problems[0].contains("n/s"),
            "{problems:?}"
        );
    }
}

#[test]
fn the_algorithm_is_that_of_the_settings_unless_the_service_says_otherwise() {
    let at = |algorithm, annotations: Value| {
        let ports = json!([{ "name": "web", "port": 80, "nodePort": 30080 }]);
        let mut object = service(json!({ "type": "NodePort", "ports": ports }));
        object["metadata"]["annotations"] = annotations;
        let place = Place { algorithm, ..place() };
        let compiled = compiled_at(&place, &[object, slice("s-1", endpoints(&["10.1.0.1"]))]);
        let sizes: BTreeSet<Option<u32>> = compiled.sets.iter().map(|set| set.maglev).collect();
        (sizes.into_iter().collect::<Vec<_>>(), compiled.problems)
    };
    let (random, maglev) = (Algorithm::Random, Algorithm::Maglev);
    let asks = |algorithm: &str| json!({ "millrace.dev/lb-algorithm": algorithm });
    assert_eq!(at(random, json!({})).0, [None]);
    assert_eq!(at(maglev, json!({})).0, [Some(1021)]);
    assert_eq!(at(maglev, asks("random")).0, [None]);
    assert_eq!(at(random, asks("maglev")), (vec![Some(1021)], Vec::new()));
    let sized = |size: &str| at(maglev, json!({ "millrace.dev/maglev-table-size": size }));
    assert_eq!(sized("16381").0, [Some(16_381)]);
    assert_eq!(sized("0").0, [Some(1021)]);
    for (found, word) in [
        (at(maglev, asks("ring")), "random or maglev"),
        (sized("16380"), "prime"),
    ] {
        assert_eq!(found.0, [Some(1021)], "served as all others are");
        assert!(
            found.1[0].contains("n/s") && found.1[0].contains(word),
            "{:?}",
            found.1
        );
    }
}

#[test]
fn who_answers_clients_from_outside_is_the_clusters_choice_or_the_services() {
    let at = |mode, tunnelled, annotations: Value, policy: &str| {
        let mut object = service(json!({ "type": "NodePort", "externalTrafficPolicy": policy }));
        object["spec"]["ports"][0]["nodePort"] = json!(30080);
        object["metadata"]["annotations"] = annotations;
        let place = Place {
            mode,
            tunnelled,
            ..place()
        };
        let compiled = compiled_at(&place, &[object, slice("s-1", endpoints(&["10.1.0.1"]))]);
        let direct = |scope| {
            let found = frontend(&compiled, "192.0.2.1", 30080, 6, scope).unwrap();
            found.flags & service_flags::DSR != 0
        };
        let scopes = [service_scope::CLUSTER, service_scope::EXTERNAL].map(direct);
        assert!(!scopes[0], "inside of the cluster nobody hides");
        (scopes[1], compiled.problems.concat())
    };
    let (snat, dsr) = (Mode::Snat, Mode::Dsr);
    let asks = |mode: &str| json!({ "millrace.dev/lb-mode": mode });
    assert!(!at(snat, true, json!({}), "Cluster").0);
    assert_eq!(at(dsr, true, json!({}), "Cluster"), (true, String::new()));
    assert!(!at(dsr, true, json!({}), "Local").0);
    let any_node = json!({ "millrace.dev/lb-algorithm": "maglev" });
    assert_eq!(at(dsr, true, any_node, "Cluster"), (true, String::new()));
    assert!(!at(dsr, true, asks("snat"), "Cluster").0);
    assert_eq!(at(snat, true, asks("dsr"), "Cluster"), (true, String::new()));
    for (found, word, direct) in [
        (at(snat, false, asks("dsr"), "Cluster"), "routing", false),
        (at(dsr, true, asks("ipip"), "Cluster"), "snat or dsr", true),
    ] {
        assert_eq!(found.0, direct);
        assert!(found.1.contains("n/s") && found.1.contains(word), "{}", found.1);
    }
}

#[test]
fn inside_of_the_cluster_no_table_is_needed() {
    let place = Place {
        algorithm: Algorithm::Maglev,
        ..place()
    };
    let compiled = compiled_at(
        &place,
        &[service(json!({})), slice("s-1", endpoints(&["10.1.0.1"]))],
    );
    assert_eq!(compiled.sets[0].maglev, None);
}

#[test]
fn svc_43_a_load_balancer_without_node_ports_works() {
    let mut object = service(json!({ "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false }));
    object["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.1" }] } });
    let compiled = compiled(&[object, slice("s-1", endpoints(&["10.1.0.1"]))]);
    assert_eq!(
        behind(&compiled, "203.0.113.1", 80, service_scope::EXTERNAL),
        ["10.1.0.1:8080"]
    );
    assert!(
        compiled
            .frontends
            .iter()
            .all(|frontend| frontend.key.port.get() != 30080)
    );
}

#[test]
fn svc_44_only_a_load_balancer_with_the_local_policy_has_a_health_check_node_port() {
    let health = |policy: &str, kind: &str| {
        let object =
            service(json!({ "type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": 31000 }));
        let lines = ["10.1.0.1@one", "10.1.0.2@one not-ready terminating", "10.1.0.3"];
        compiled(&[object, slice("s-1", endpoints(&lines))]).health
    };
    let local = Health {
        port: 31000,
        local_ready: [Some(1), Some(0)],
    };
    assert_eq!(health("Local", "LoadBalancer"), Some(local));
    assert_eq!(health("Cluster", "LoadBalancer"), None);
    assert_eq!(health("Local", "NodePort"), None);
}

#[test]
fn an_address_answers_pings_unless_it_is_a_nodes_or_names_its_clients() {
    let place = Place {
        external_ips: true,
        ..place()
    };
    let pinged = |ranges: &[&str]| {
        let mut object = service(json!({
            "type": "LoadBalancer", "loadBalancerSourceRanges": ranges, "externalIPs": ["203.0.113.7"],
        }));
        object["status"] = json!({ "loadBalancer": { "ingress": [
            { "ip": "203.0.113.1" }, { "ip": "203.0.113.3", "ipMode": "Proxy" }, { "ip": "192.0.2.1" },
        ] } });
        let compiled = compiled_at(&place, &[object, slice("s-1", endpoints(&["10.1.0.1"]))]);
        [VIP, "203.0.113.1", "203.0.113.3", "203.0.113.7", "192.0.2.1"]
            .map(|ip| frontend(&compiled, ip, 0, 0, service_scope::CLUSTER).is_some())
    };
    assert_eq!(pinged(&[]), [true, true, false, true, false]);
    assert_eq!(pinged(&["198.51.100.0/24"]), [true, false, false, true, false]);
}

#[test]
fn an_address_of_its_own_is_no_endpoint_unless_it_is_a_nodes() {
    let mut object = service(json!({ "type": "LoadBalancer" }));
    object["status"] =
        json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.1" }, { "ip": "192.0.2.1" }] } });
    let around = endpoints(&["10.1.0.1", "203.0.113.1", "192.0.2.1"]);
    let compiled = compiled(&[object, slice("s-1", around)]);
    assert_eq!(
        behind(&compiled, VIP, 80, service_scope::CLUSTER),
        ["10.1.0.1:8080", "192.0.2.1:8080"]
    );
    let problems = compiled.problems.concat();
    assert!(problems.contains("its own address 203.0.113.1"), "{problems}");
}

#[test]
fn what_other_nodes_alone_change_is_known() {
    let before = place();
    let joined: IpAddr = [192, 0, 2, 77].into();
    let mut after = place();
    after.nodes.insert(joined);
    assert_eq!(after.nodes_alone(&before), Some([joined].into()));
    assert_eq!(before.nodes_alone(&after), Some([joined].into()));
    after.zone = Some("elsewhere".into());
    assert_eq!(after.nodes_alone(&before), None);
}
