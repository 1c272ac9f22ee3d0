use std::{fs, path::Path};

use super::*;
use crate::model::{ClusterSettings, Labels, ServiceSettings, Settings};

fn keys(text: &str) -> Vec<String> {
    let mut config = Config::parse(text).unwrap();
    if config.node_name.is_empty() {
        config.node_name = "n".into();
    }
    config.check().into_iter().map(|problem| problem.key).collect()
}

#[test]
fn the_documented_file_is_the_default() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config.yaml")).unwrap();
    assert_eq!(Config::parse(&text).unwrap(), Config::default());
    // Every key that there is stands in it.
    let all = serde_json::to_value(Config::default()).unwrap();
    let written: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(written, all);
    assert_eq!(Config::parse("").unwrap(), Config::default());
    assert_eq!(Config::parse("# nothing\n---\n").unwrap(), Config::default());
    assert_eq!(keys(&text), Vec::<String>::new());
}

#[test]
fn unknown_keys_and_wrong_values_are_refused_by_name_and_line() {
    let error = |text: &str| Config::parse(text).unwrap_err();
    let message = error("nodeName: a\nmasquerade:\n  enable: true\n");
    assert!(
        message.contains("enable") && message.contains("enabled") && message.contains('3'),
        "{message}"
    );
    assert!(error("routing: bgp\n").contains("vxlan"));
    assert!(error("podCIDRs: [10.0.0]\n").contains("1"));
    assert!(error("mtu: big\n").contains("1"));
}

#[test]
fn every_problem_is_found_at_once_with_its_key() {
    let text = "
families: v4
podCIDRs: [10.1.0.1/24, 'fd00::/64', 10.1.0.0/16]
devices: ['eth0/1']
mtu: 100
vxlan: {port: 0, vni: 16777216, device: a-name-that-is-too-long}
snatPorts: {first: 60000, last: 50000}
maps: {events: 5000}
http: 127.0.0.1:1
paths: {state: relative, rcuExpedited: relative, adminSocket: /run/millrace/agent.sock}
";
    let found = keys(text);
    for key in [
        "podCIDRs",
        "devices",
        "mtu",
        "vxlan.port",
        "vxlan.vni",
        "vxlan.device",
        "snatPorts",
        "maps.events",
        "paths.state",
        "paths.rcuExpedited",
        "paths.adminSocket",
    ] {
        assert!(
            found.iter().any(|other| other == key),
            "{key} is not in {found:?}"
        );
    }
    assert!(keys("paths: {rcuExpedited: ''}\n").is_empty());
    assert_eq!(found.iter().filter(|key| *key == "podCIDRs").count(), 3);
    assert_eq!(
        keys("podCIDRs: [10.1.0.0/24]\n"),
        ["podCIDRs"],
        "dual, and one family only"
    );
    assert!(keys("podCIDRs: [10.1.0.0/24, 'fd00::/64', 10.2.0.0/24]\n").is_empty());
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    fs::write(&path, "routing: direct\nmtu: 1400\nnodeName: file\n").unwrap();
    let overrides = Overrides {
        mtu: Some(1300),
        masquerade: Some(false),
        ..Overrides::default()
    };
    let config = Config::load_checked(&path, true, overrides).unwrap();
    assert_eq!(
        (config.routing, config.mtu, config.node_name.as_str()),
        (Routing::Direct, 1300, "file")
    );
    assert!(!config.masquerade.enabled);
}

#[test]
fn a_missing_file_matters_only_if_it_was_named_and_a_bad_one_is_named_in_the_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    let config = Config::load(&path, false, Overrides::default()).unwrap();
    assert!(!config.node_name.is_empty(), "the host's name");
    let error = Config::load(&path, true, Overrides::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("config.yaml") && error.contains("--config"),
        "{error}"
    );
    fs::write(&path, "nodename: a\n").unwrap();
    let error = Config::load(&path, false, Overrides::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("config.yaml") && error.contains("nodename"),
        "{error}"
    );
    fs::write(&path, "mtu: 5\n").unwrap();
    let error = Config::load_checked(&path, false, Overrides::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("mtu") && error.contains("1280"), "{error}");
}

#[test]
fn what_the_cluster_says_of_services_wins_and_must_make_sense_here() {
    let wish = |proxy| {
        let settings = Settings {
            services: ServiceSettings {
                node_port_addresses: Some(NodePortAddresses::Ranges(vec!["192.0.2.0/24".parse().unwrap()])),
                external_ips: Some(true),
                ..ServiceSettings::default()
            },
            ..Settings::default()
        };
        let cluster = ClusterSettings {
            settings,
            ..ClusterSettings::default()
        };
        let mut config =
            Config::parse("{nodeName: a, services: {masqueradeAll: true, proxy: millrace}}").unwrap();
        config.services.proxy = proxy;
        config.following(&cluster, &Labels::default())
    };
    let services = wish(Proxy::Millrace).unwrap().services;
    assert!(services.external_ips && services.masquerade_all && !services.localhost_node_ports);
    assert_eq!(services.node_port_addresses.to_string(), "192.0.2.0/24");
    let problems = wish(Proxy::Stack).unwrap_err();
    assert_eq!(problems[0].key, "services.proxy");
}

#[test]
fn clients_are_answered_past_the_node_only_through_a_tunnel() {
    let keys = |text: &str| -> Vec<String> {
        let problems = Config::parse(text).unwrap().check();
        problems.into_iter().map(|problem| problem.key).collect()
    };
    let with = |routing: &str, proxy: &str| {
        let text = format!("{{nodeName: a, routing: {routing}, services: {{proxy: {proxy}, mode: dsr}}}}");
        keys(&text)
    };
    assert!(
        !with("vxlan", "millrace")
            .iter()
            .any(|key| key.starts_with("services"))
    );
    assert!(with("direct", "millrace").contains(&"services.mode".to_owned()));
    assert!(with("vxlan", "stack").contains(&"services.proxy".to_owned()));
}

#[test]
fn packets_are_turned_round_only_where_services_are_served() {
    let problems = |text: &str| Config::parse(text).unwrap().check();
    let off = "{nodeName: a, services: {proxy: stack, xdp: off}}";
    assert!(
        problems(off)
            .iter()
            .all(|problem| problem.key != "services.proxy")
    );
    let on = problems("{nodeName: a, services: {proxy: stack, xdp: auto}}");
    assert!(
        on.iter()
            .any(|problem| problem.key == "services.proxy" && problem.to_string().contains("xdp")),
        "{on:?}"
    );
    let error = Config::parse("{nodeName: a, services: {xdp: fast}}")
        .unwrap_err()
        .to_string();
    assert!(error.contains("xdp") || error.contains("fast"), "{error}");
}
