//! Services and EndpointSlices of the API server.

use cni_tests::lab::{ControlPlane, Families, Lab, Node, Plan, Routing, Signal};
use serde_json::{Value, json};

use crate::{eventually, needs_control_plane};

const VIP: &str = "10.96.0.77";

pub(crate) fn start() -> (ControlPlane, Lab) {
    let config = json!({ "services": { "proxy": "millrace" } });
    let plan = Plan::new(Routing::Direct, Families::Dual).nodes(1).config(config);
    Lab::start_with_control_plane(plan).unwrap()
}

pub(crate) fn service(labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "web", "namespace": "default", "labels": labels },
        "spec": { "clusterIP": VIP, "ports": [{ "name": "web", "port": 80 }] },
    })
}

pub(crate) fn slice(name: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|ip| json!({ "addresses": [ip], "conditions": { "ready": true } }))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": "web" },
            "annotations": { "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z" },
        },
        "ports": [{ "name": "web", "port": 8080, "protocol": "TCP" }], "endpoints": endpoints,
    })
}

/// The addresses behind the ClusterIP; `None` if it is not served, or if an agent that begins does not answer yet.
fn behind(node: &Node) -> Option<Vec<String>> {
    let services = node.ask(["services"]).ok()?;
    let web = services
        .as_array()
        .unwrap()
        .iter()
        .find(|service| service["name"]["name"] == "web")?
        .clone();
    let numbers = web["frontends"][0]["backends"].as_array().unwrap().clone();
    let backends = web["backends"].as_array().unwrap().iter();
    let mut found: Vec<String> = backends
        .filter(|backend| numbers.contains(&backend["number"]))
        .map(|backend| backend["address"].as_str().unwrap().to_owned())
        .collect();
    found.sort();
    Some(found)
}

#[track_caller]
pub(crate) fn becomes(node: &Node, wanted: Option<&[&str]>) {
    let wanted = wanted.map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
    eventually(|| {
        let found = behind(node);
        (found != wanted).then(|| format!("{found:?} is not {wanted:?}"))
    });
}

#[test]
fn svc_03_a_label_takes_a_service_away_and_gives_it_back() {
    needs_control_plane!();
    let (control, lab) = start();
    let node = &lab.nodes[0];
    control
        .apply(&[service(json!({})), slice("web-1", &["10.77.1.7"])])
        .unwrap();
    becomes(node, Some(&["10.77.1.7"]));
    let other = json!({ "service.kubernetes.io/service-proxy-name": "other" });
    control.apply(&[service(other)]).unwrap();
    becomes(node, None);
    control.apply(&[service(json!({}))]).unwrap();
    becomes(node, Some(&["10.77.1.7"]));
}

#[test]
fn svc_06_an_endpoint_that_moves_between_slices_stays_and_what_vanished_unseen_goes() {
    needs_control_plane!();
    let (control, lab) = start();
    let node = &lab.nodes[0];
    control
        .apply(&[service(json!({})), slice("web-1", &["10.77.1.7", "10.77.1.8"])])
        .unwrap();
    becomes(node, Some(&["10.77.1.7", "10.77.1.8"]));
    control.apply(&[slice("web-2", &["10.77.1.7"])]).unwrap();
    control.apply(&[slice("web-1", &["10.77.1.8"])]).unwrap();
    becomes(node, Some(&["10.77.1.7", "10.77.1.8"]));
    let before = node.dump("service_slots").unwrap();
    node.end_agent(Signal::SIGKILL).unwrap();
    control.kubectl(&["delete", "endpointslice", "web-2"]).unwrap();
    assert_eq!(
        node.dump("service_slots").unwrap(),
        before,
        "nobody is there to take anything away"
    );
    node.start_agent().unwrap();
    becomes(node, Some(&["10.77.1.8"]));
    // The trigger's time led to a measurement.
    let metrics = node.http("/metrics").unwrap();
    assert!(
        metrics.contains("millrace_service_programming_seconds_count"),
        "{metrics}"
    );
}

/// Where an operator looks: `kubectl describe service` asks for events by kind, name and uid.
fn events(control: &ControlPlane) -> Vec<Value> {
    let text = control.kubectl(&["get", "events", "-o", "json"]).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let events = all["items"].as_array().unwrap().iter();
    // The API server has its own about Services.
    events
        .filter(|event| event["involvedObject"]["kind"] == "Service")
        .filter(|event| event["reportingComponent"] == "millrace.dev/agent")
        .cloned()
        .collect()
}

#[test]
fn what_is_wrong_with_a_service_is_said_on_it_and_the_clusters_settings_cure_it() {
    needs_control_plane!();
    let (control, lab) = start();
    let node = &lab.nodes[0];
    let mut claims = service(json!({}));
    claims["spec"]["externalIPs"] = json!(["198.51.100.7"]);
    control.apply(&[claims, slice("web-1", &["10.77.1.7"])]).unwrap();
    becomes(node, Some(&["10.77.1.7"]));
    eventually(|| events(&control).is_empty().then(|| "no event".to_owned()));
    let uid = control
        .kubectl(&["get", "service", "web", "-o", "jsonpath={.metadata.uid}"])
        .unwrap();
    let said = events(&control);
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(said[0]["involvedObject"]["uid"], uid.as_str());
    assert_eq!(said[0]["reason"], "MillraceNotServed");
    let message = said[0]["message"].as_str().unwrap();
    assert!(
        message.contains("198.51.100.7") && message.contains("services.externalIPs"),
        "{message}"
    );
    let settings = json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": "MillraceConfig", "metadata": { "name": "default" },
        "spec": { "services": { "externalIPs": true } },
    });
    control.apply(&[settings]).unwrap();
    eventually(|| {
        let services = node.ask(["services"]).unwrap();
        let mut fronts = services
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|one| one["frontends"].as_array().unwrap());
        let served = fronts.any(|front| front["address"] == "198.51.100.7");
        (!served).then(|| services.to_string())
    });
}
