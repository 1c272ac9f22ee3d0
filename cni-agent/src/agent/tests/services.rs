//! Services, from the manifest to the maps.

mod asked;
mod faults;
mod told;

use cni_ebpf::abi::{Addr, ServiceKey};
use serde_json::{Value, json};

use super::*;
use crate::{
    config::Proxy,
    desired::Tables,
    model::{NamespacedName, ServiceProblem},
    reconcile::Change,
    services::Troubles,
};

fn manifests(endpoints: &[&str]) -> Value {
    service("web", 80, endpoints)
}

/// A Service with this port, which tells its address too.
fn service(name: &str, port: u16, endpoints: &[&str]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|ip| json!({ "addresses": [ip], "nodeName": "two" }))
        .collect();
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "a" },
            "spec": { "clusterIP": format!("10.96.0.{}", port - 79), "ports": [{ "port": port }] },
        },
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": format!("{name}-1"), "namespace": "a", "labels": { "kubernetes.io/service-name": name },
            },
            "ports": [{ "port": 8080 }], "endpoints": endpoints,
        },
    ] })
}

fn write(machine: &Machine, endpoints: &[&str]) {
    write_file(machine, "services", &manifests(endpoints));
}

fn write_file(machine: &Machine, name: &str, objects: &Value) {
    let path = machine.config.paths.manifests.join(format!("{name}.json"));
    std::fs::write(path, objects.to_string()).unwrap();
}

fn list(items: &[Value]) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

/// Services with an annotation that means nothing.
fn asking_for_what_is_not(count: usize) -> Vec<Value> {
    let service = |number| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": format!("s{number}"), "namespace": "a", "annotations": { "millrace.dev/lb-mode": "none" },
            },
            "spec": { "clusterIP": format!("10.96.1.{number}"), "ports": [{ "port": 80 }] },
        })
    };
    (0..count).map(service).collect()
}

/// What is told of a Service that cannot be read.
fn unread(name: &str, text: &str) -> ServiceProblem {
    ServiceProblem {
        service: NamespacedName {
            namespace: "a".into(),
            name: name.into(),
        },
        uid: "u".into(),
        text: text.into(),
    }
}

fn serving() -> Machine {
    let mut machine = Machine::new();
    machine.config.services.proxy = Proxy::Millrace;
    machine
}

/// The addresses behind the one ClusterIP.
fn behind(tables: &Tables) -> Vec<String> {
    let found = tables.services.iter().find(|(key, _)| key.port.get() == 80);
    let Some((_, service)) = found else {
        return Vec::new();
    };
    let places = service.first..service.first + service.slots;
    let slots = places.filter_map(|place| tables.service_slots.get(&place));
    let mut addresses: Vec<String> = slots
        .filter(|slot| slot.service == service.id && tables.backends.contains_key(&slot.backend))
        .map(|slot| slot.addr.to_string())
        .collect();
    addresses.sort();
    addresses
}

async fn becomes(machine: &Machine, wanted: &[&str]) {
    let is = comes_true(|| behind(&machine.kernel.lock().tables) == wanted).await;
    assert!(is, "{:#?}", machine.kernel.lock().tables);
}

/// An agent that serves a Service with these endpoints.
async fn begun(endpoints: &[&str]) -> (Machine, Handle) {
    let mut machine = serving();
    write(&machine, endpoints);
    let handle = machine.start().await;
    becomes(&machine, endpoints).await;
    (machine, handle)
}

/// Once nothing is left that waits for its time.
async fn settles(machine: &Machine, backends: usize) {
    let is = comes_true(|| machine.kernel.lock().tables.backends.len() == backends).await;
    assert!(is, "{:#?}", machine.kernel.lock().tables);
}

fn service_changes(machine: &Machine) -> Vec<String> {
    let log = machine.kernel.lock().log.clone();
    let mut texts = Vec::new();
    for change in log {
        if let Change::PutAll { table, keys, .. } | Change::DeleteAll { table, keys } = &change {
            texts.push(format!("{} {}", table.name(), keys.len()));
        }
    }
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn svc_21_a_service_gets_its_rows_and_only_those_change() {
    let (mut machine, handle) = begun(&["10.2.0.5", "10.2.0.6"]).await;
    // Programs that were loaded are looked at once more.
    until(&handle, |status| status.reconcile.rounds >= 2).await;
    let rounds = machine.kernel.lock().whole_looks;
    write(&machine, &["10.2.0.5", "10.2.0.7"]);
    becomes(&machine, &["10.2.0.5", "10.2.0.7"]).await;
    settles(&machine, 2).await;
    assert_eq!(
        machine.kernel.lock().whole_looks,
        rounds,
        "nothing else was looked at"
    );
    machine.stop().await;
}

/// Whoever has read a row still finds what it names: rows are written from the backends up and go from the frontends down.
#[tokio::test(flavor = "multi_thread")]
async fn svc_52_a_service_comes_from_its_backends_up_and_goes_from_its_frontends_down() {
    let mut machine = serving();
    machine.start().await;
    machine.kernel.lock().log.clear();
    write(&machine, &["10.2.0.5", "10.2.0.6"]);
    becomes(&machine, &["10.2.0.5", "10.2.0.6"]).await;
    let tables = |changes: &[String]| -> Vec<String> {
        let names = changes.iter().filter_map(|change| change.split(' ').next());
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.dedup();
        names
    };
    let up = ["backends", "service_slots", "services"];
    assert_eq!(tables(&service_changes(&machine)), up);
    machine.kernel.lock().log.clear();
    write_file(&machine, "services", &list(&[]));
    settles(&machine, 0).await;
    let down: Vec<&str> = up.into_iter().rev().collect();
    assert_eq!(tables(&service_changes(&machine)), down);
    machine.stop().await;
}

/// Until its row is gone a backend seems to serve, and whoever is connected to it would be left there.
#[tokio::test(flavor = "multi_thread")]
async fn svc_55_sockets_are_looked_through_behind_the_removal_of_a_backend_however_late_that_is() {
    let (mut machine, handle) = begun(&["10.2.0.5", "10.2.0.6"]).await;
    machine.kernel.lock().log.clear();
    write(&machine, &["10.2.0.5"]);
    becomes(&machine, &["10.2.0.5"]).await;
    // What is superfluous is found anew each time, and goes a moment later.
    for _ in 0..8 {
        handle.events.send(Event::Disturbed).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    settles(&machine, 1).await;
    let is_behind = || {
        let log = &machine.kernel.lock().log;
        let last = |wanted: fn(&Change) -> bool| log.iter().rposition(wanted);
        let removal = last(|change| {
            let Change::DeleteAll { table, .. } = change else {
                return false;
            };
            table.name() == "backends"
        });
        assert!(removal.is_some(), "{log:?}");
        last(|change| matches!(change, Change::ReleaseSockets)) > removal
    };
    for _ in 0..200 {
        if is_behind() {
            return machine.stop().await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:#?}", machine.kernel.lock().log);
}

#[tokio::test(flavor = "multi_thread")]
async fn svc_08_old_state_keeps_forwarding_until_everything_has_been_heard() {
    let (mut machine, _) = begun(&["10.2.0.5"]).await;
    let before = machine.kernel.lock().tables.clone();
    machine.kill().await;
    write(&machine, &[]);
    machine.kernel.lock().log.clear();
    let handle = machine.start_deaf().await;
    until(&handle, |status| {
        status
            .sources
            .get(&Source::Files)
            .is_some_and(|source| source.synced)
    })
    .await;
    assert_eq!(
        machine.kernel.lock().tables,
        before,
        "the devices have not been heard of"
    );
    handle
        .events
        .send(Event::Devices(Machine::devices()))
        .await
        .unwrap();
    handle.events.send(Event::Synced(Source::Devices)).await.unwrap();
    settles(&machine, 0).await;
    machine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn svc_48_a_node_that_is_about_to_go_still_is_when_its_object_is_deleted() {
    let mut machine = serving();
    write(&machine, &["10.2.0.5"]);
    let mut handle = machine.start().await;
    let nodes = machine.config.paths.manifests.join("nodes.yaml");
    let taint = "spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}], podCIDRs: [10.1";
    std::fs::write(&nodes, NODES.replace("spec: {podCIDRs: [10.1", taint)).unwrap();
    handle.health.wait_for(|health| health.leaving).await.unwrap();
    let (_, two) = NODES.split_once("---").unwrap();
    std::fs::write(&nodes, two).unwrap();
    let rounds = handle.status.borrow().reconcile.rounds;
    write(&machine, &["10.2.0.6"]);
    becomes(&machine, &["10.2.0.6"]).await;
    until(&handle, |status| status.reconcile.rounds > rounds).await;
    assert!(handle.health.borrow().leaving);
    machine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn svc_52_a_restart_changes_no_row() {
    let (mut machine, _) = begun(&["10.2.0.5", "10.2.0.6", "10.2.0.7"]).await;
    write(&machine, &["10.2.0.7", "10.2.0.8"]);
    becomes(&machine, &["10.2.0.7", "10.2.0.8"]).await;
    settles(&machine, 2).await;
    let before = machine.kernel.lock().tables.clone();
    machine.kill().await;
    machine.kernel.lock().log.clear();
    let handle = machine.start().await;
    until(&handle, |status| status.services.is_some()).await;
    // Something that comes after the first comparison.
    write(&machine, &["10.2.0.7", "10.2.0.8", "10.2.0.9"]);
    becomes(&machine, &["10.2.0.7", "10.2.0.8", "10.2.0.9"]).await;
    assert_eq!(
        service_changes(&machine),
        ["backends 4", "service_slots 4", "services 24"],
        "one row of each, for the new endpoint"
    );
    let now = machine.kernel.lock().tables.clone();
    for (number, backend) in &before.backends {
        assert_eq!(now.backends.get(number), Some(backend));
    }
    machine.stop().await;
}

/// The release before had its slots in a hash.
#[tokio::test(flavor = "multi_thread")]
async fn rel_29_rows_without_places_keep_their_numbers_and_get_places_before_programs_are_exchanged() {
    let (mut machine, _) = begun(&["10.2.0.5", "10.2.0.6"]).await;
    settles(&machine, 2).await;
    machine.kill().await;
    let before = {
        let mut kernel = machine.kernel.lock();
        kernel.log.clear();
        kernel.tables.service_slots.clear();
        let rows = kernel.tables.services.values_mut();
        rows.for_each(|service| service.first = 0);
        kernel.tables.clone()
    };
    machine.start().await;
    becomes(&machine, &["10.2.0.5", "10.2.0.6"]).await;
    let (tables, log) = {
        let kernel = machine.kernel.lock();
        (kernel.tables.clone(), kernel.log.clone())
    };
    let numbers = |tables: &Tables| {
        let services = tables.services.iter();
        services
            .map(|(key, service)| (*key, service.id))
            .collect::<Vec<_>>()
    };
    assert_eq!(numbers(&tables), numbers(&before));
    assert_eq!(tables.backends, before.backends);
    let attached = log
        .iter()
        .position(|change| matches!(change, Change::Attach { .. }));
    let is_row =
        |change: &Change| matches!(change, Change::PutAll { table, .. } if table.name() == "service_slots");
    let written = log.iter().position(is_row);
    assert!(written.is_some() && attached.is_none_or(|attached| written < Some(attached)));
    machine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_another_proxy_serves_nothing_is_left_in_the_maps() {
    let (mut machine, _) = begun(&["10.2.0.5"]).await;
    machine.stop().await;
    machine.config.services.proxy = Proxy::Stack;
    machine.start().await;
    settles(&machine, 0).await;
    assert_eq!(machine.kernel.lock().tables.services.len(), 0);
    assert_eq!(machine.kernel.lock().tables.service_slots.len(), 0);
    machine.stop().await;
}

fn troubles(status: &Status) -> Troubles {
    let services = status.services.as_ref();
    services.map(|services| services.troubles).unwrap_or_default()
}

fn troubled(status: &Status) -> Vec<&ServiceProblem> {
    let services = status.services.iter();
    services.flat_map(|services| &services.troubled).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_service_with_a_problem_gets_its_event_however_many_there_are() {
    let mut machine = serving();
    write_file(&machine, "services", &list(&asking_for_what_is_not(50)));
    let handle = machine.start().await;
    until(&handle, |status| troubled(status).len() == 50).await;
    until(&handle, |status| troubles(status).object == 50).await;
    let more = |status: &Arc<Status>| {
        let problems = status.problems.iter();
        problems
            .filter(|problem| problem.contains("more problems"))
            .count()
            == 1
    };
    until(&handle, more).await;
    machine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_cannot_be_read_gets_an_event_though_its_last_version_is_served() {
    let (mut machine, handle) = begun(&["10.2.0.5"]).await;
    let both = ["new", "web"]
        .map(|name| unread(name, "field spec.clusterIP"))
        .to_vec();
    handle.events.send(Event::Unread(both.clone())).await.unwrap();
    until(&handle, |status| {
        troubled(status) == both.iter().collect::<Vec<_>>()
    })
    .await;
    until(&handle, |status| troubles(status).unread == 2).await;
    assert_eq!(behind(&machine.kernel.lock().tables), ["10.2.0.5"]);
    handle.events.send(Event::Unread(Vec::new())).await.unwrap();
    until(&handle, |status| troubled(status).is_empty()).await;
    machine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn svc_42_rel_24_no_external_ip_takes_over_what_pods_or_the_node_reach_otherwise() {
    let mut machine = serving();
    machine.config.services.external_ips = true;
    let resolvers = machine.folder.path().join("resolv.conf");
    machine.config.paths.resolv_conf = resolvers.clone();
    std::fs::write(&resolvers, "nameserver 198.51.100.53\n").unwrap();
    // In this node's pods, in another node's, two resolvers, and one that is nobody's.
    let ips = [
        "10.1.0.9",
        "10.2.0.9",
        "198.51.100.53",
        "198.51.100.54",
        "203.0.113.7",
    ];
    let object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "a" },
        "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }], "externalIPs": ips },
    });
    std::fs::write(
        machine.config.paths.manifests.join("services.json"),
        object.to_string(),
    )
    .unwrap();
    let handle = machine.start().await;
    let refused = |status: &Status| -> Vec<&str> {
        let is_told = |ip: &&str| {
            let told = format!("spec.externalIPs has {ip},");
            status.problems.iter().any(|problem| problem.contains(&told))
        };
        ips.into_iter().filter(is_told).collect()
    };
    until(&handle, |status| refused(status) == ips[..3]).await;
    // Another network.
    std::fs::write(&resolvers, "nameserver 198.51.100.54\n").unwrap();
    handle.events.send(Event::Disturbed).await.unwrap();
    until(&handle, |status| refused(status) == [ips[0], ips[1], ips[3]]).await;
    let served = |last: [u8; 4]| {
        let tables = &machine.kernel.lock().tables;
        let mut keys = tables.services.keys();
        keys.any(|key| key.addr == Addr::v4(last))
    };
    assert!(served([203, 0, 113, 7]) && served([198, 51, 100, 53]));
    assert!(!served([198, 51, 100, 54]) && !served([10, 2, 0, 9]));
    machine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn svc_55_sockets_that_cannot_be_ended_are_a_problem_until_they_can() {
    let (mut machine, handle) = begun(&["10.2.0.5", "10.2.0.6"]).await;
    let is_said = |status: &Status| {
        let mut problems = status.problems.iter();
        problems.any(|problem| problem.starts_with("release sockets"))
    };
    machine.kernel.lock().faults.push("release sockets".into());
    write(&machine, &["10.2.0.5"]);
    until(&handle, |status| is_said(status)).await;
    assert_eq!(behind(&machine.kernel.lock().tables), ["10.2.0.5"]);
    machine.kernel.lock().faults.clear();
    write(&machine, &["10.2.0.6"]);
    until(&handle, |status| !is_said(status)).await;
    machine.stop().await;
}
