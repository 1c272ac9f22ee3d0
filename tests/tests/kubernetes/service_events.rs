//! What keeps Services from being served as they ask, as events on them: in the words of `kubectl describe service`.

use std::collections::BTreeMap;

use cni_tests::lab::{ControlPlane, Families, Lab, Plan, Routing, control_plane};
use serde_json::{Value, json};

use crate::{eventually, needs_control_plane};

/// More endpoints than the map of the test has room for.
const MANY: u8 = 9;
const ROOM: u8 = 8;
/// It asks for a port that a load balancer has, and comes before all others by its name.
const POD: &str = "a-pod";
const HOST_PORT: u16 = 8081;

fn service(name: &str, spec: Value) -> Value {
    let mut whole = json!({ "ports": [{ "name": "web", "port": 80 }] });
    let more = spec.as_object().unwrap().clone();
    whole.as_object_mut().unwrap().extend(more);
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" }, "spec": whole,
    })
}

fn slice(service: &str, addresses: &[String]) -> Value {
    let endpoints = addresses.iter().map(|ip| json!({ "addresses": [ip] }));
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("{service}-1"), "namespace": "default",
            "labels": { "kubernetes.io/service-name": service },
        },
        "ports": [{ "name": "web", "port": 8080 }], "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

/// What is said of each Service, and of each pod with ports of the node, by its name.
fn said(control: &ControlPlane) -> BTreeMap<String, String> {
    let listed = |what: &str| -> Vec<Value> {
        let text = control.kubectl(&["get", what, "-o", "json"]).unwrap();
        let list: Value = serde_json::from_str(&text).unwrap();
        list["items"].as_array().unwrap().clone()
    };
    let objects = [listed("services"), listed("pods")].concat();
    let mut said: BTreeMap<String, String> = BTreeMap::new();
    for event in listed("events") {
        let about = &event["involvedObject"];
        if event["reason"] != "MillraceNotServed" {
            continue;
        }
        assert_eq!(event["type"], "Warning", "{event}");
        let kind = if about["name"] == POD { "Pod" } else { "Service" };
        assert_eq!(about["kind"], kind, "{event}");
        let mut same = objects.iter().map(|object| &object["metadata"]);
        let it = same.find(|object| object["name"] == about["name"]).unwrap();
        assert_eq!(about["uid"], it["uid"], "{event}");
        let text = said
            .entry(about["name"].as_str().unwrap().to_owned())
            .or_default();
        *text += event["message"].as_str().unwrap();
    }
    said
}

#[test]
fn whatever_keeps_a_service_from_being_served_is_an_event_on_it_with_its_remedy() {
    needs_control_plane!();
    let config = json!({
        "services": { "proxy": "millrace", "externalIPs": true }, "maps": { "backends": ROOM },
    });
    let plan = Plan::new(Routing::Direct, Families::V4).nodes(1).config(config);
    let (control, lab) = Lab::start_with_control_plane(plan).unwrap();
    let claims = json!({ "externalIPs": ["198.51.100.7"] });
    // The API server refuses to give a node port away twice, and has no such care for addresses that are claimed.
    let first = service("first", claims.clone());
    let mut own = service("own", json!({ "clusterIP": "10.96.0.78" }));
    own["spec"]["ports"][0]["port"] = json!(8080);
    let balanced = json!({ "type": "LoadBalancer", "loadBalancerSourceRanges": ["2001:db8:9::/48"] });
    let mut balanced = service("balanced", balanced);
    let strange = ["239.1.1.1", "255.255.255.255", "10.77.1.9"].map(str::to_owned);
    let many: Vec<String> = (1..=MANY).map(|last| format!("10.77.1.{last}")).collect();
    control
        .apply(&[
            first,
            service("good", json!({})),
            slice("good", &["10.77.1.20".to_owned()]),
            own,
            slice("own", &["10.96.0.78".to_owned()]),
            service("strange", json!({})),
            slice("strange", &strange),
            balanced.clone(),
        ])
        .unwrap();
    balanced["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.40" }] } });
    control.set_status(&balanced).unwrap();
    let node = &lab.nodes[0];
    let mut taken = service("taken", json!({ "type": "LoadBalancer" }));
    taken["spec"]["ports"][0]["port"] = json!(HOST_PORT);
    let mut pod = control_plane::pod(POD, &node.name(), &["10.77.0.99"]);
    pod["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 80, "hostPort": HOST_PORT }]);
    control.apply(&[taken.clone(), pod.clone()]).unwrap();
    taken["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": node.address(true) }] } });
    for object in [&taken, &pod] {
        control.set_status(object).unwrap();
    }
    // A second younger than the first.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    control
        .apply(&[
            service("second", claims),
            service("many", json!({})),
            slice("many", &many),
        ])
        .unwrap();
    let expected: [(&str, &[&str]); 6] = [
        (POD, &["8081", "default/taken's"]),
        (
            "second",
            &["198.51.100.7 port 80", "default/first's", "change one of them"],
        ),
        (
            "many",
            &["`maps.backends` is 8", "this one 9", "raise `maps.backends`"],
        ),
        ("own", &["10.96.0.78", "left out", "correct its EndpointSlices"]),
        (
            "strange",
            &[
                "239.1.1.1",
                "no address of a machine",
                "2 endpoints are left out",
                "Correct them",
            ],
        ),
        (
            "balanced",
            &["spec.loadBalancerSourceRanges", "203.0.113.40", "0.0.0.0/0"],
        ),
    ];
    eventually(|| {
        let said = said(&control);
        let complete = expected.iter().all(|(name, words)| {
            let text = said.get(*name).map_or("", String::as_str);
            words.iter().all(|word| text.contains(word))
        });
        (!complete).then(|| format!("{said:#?}"))
    });
    let said = said(&control);
    let troubled: Vec<&str> = said.keys().map(String::as_str).collect();
    assert_eq!(
        troubled,
        [POD, "balanced", "many", "own", "second", "strange"],
        "{said:#?}"
    );
}
