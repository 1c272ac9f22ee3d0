//! Services and EndpointSlices of the API server.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use cni_tests::{
    lab::{ControlPlane, Families, Lab, Node, Plan, Pod, Routing, Signal},
    traffic::{Echo, Steady, udp},
};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{control_plane::complains, eventually, needs_control_plane, rbac};

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
    let numbers = web["frontends"][0]["backends"].as_array()?.clone();
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
}

#[test]
fn svc_62_a_slice_whose_trigger_is_noted_is_measured_and_the_last_sync_is_not_long_ago() {
    needs_control_plane!();
    let (control, lab) = start();
    let node = &lab.nodes[0];
    let begun = Instant::now();
    let age = || node.metric("millrace_service_sync_age_seconds").unwrap();
    let measured = || {
        let series = ["count", "sum"].map(|what| format!("millrace_service_programming_seconds_{what}"));
        series.map(|series| node.metric(&series).unwrap())
    };
    let noted = |addresses: &[&str], seconds: Option<i64>| {
        let mut slice = slice("web-1", addresses);
        let annotations = &mut slice["metadata"]["annotations"];
        match seconds {
            Some(seconds) => {
                let then = Timestamp::now() - SignedDuration::from_secs(seconds);
                annotations["endpoints.kubernetes.io/last-change-trigger-time"] = json!(then.to_string());
            }
            None => *annotations = json!({}),
        }
        control.apply(&[slice]).unwrap();
        becomes(node, Some(addresses));
    };
    control.apply(&[service(json!({}))]).unwrap();
    becomes(node, Some(&[]));
    assert_eq!(measured(), [0.0, 0.0], "a Service alone has no trigger");
    // Whoever notes no time is not measured.
    noted(&["10.77.1.7"], None);
    assert_eq!(measured()[0], 0.0);
    let mut before = [0.0, 0.0];
    for (addresses, seconds) in [(&["10.77.1.8"][..], 0), (&["10.77.1.8", "10.77.1.9"], 1000)] {
        let asked = Instant::now();
        noted(addresses, Some(seconds));
        // What is in the kernel is counted a moment later.
        eventually(|| (measured()[0] <= before[0]).then(|| format!("{:?}", measured())));
        let now = measured();
        assert_eq!(now[0], before[0] + 1.0, "one slice, one measurement");
        let (took, most) = (now[1] - before[1], asked.elapsed().as_secs_f64());
        let noted = seconds as f64;
        assert!(
            (noted..=noted + most).contains(&took),
            "{took} s of {seconds} and {most}"
        );
        before = now;
        // Of whole seconds, and of a status that was told a moment ago.
        assert!(age() <= most + 1.0, "{} s, though it changed {most} s ago", age());
    }
    // A slice that says the same is no change, whatever its time.
    noted(&["10.77.1.8", "10.77.1.9"], Some(0));
    control.apply(&[service(json!({ "a": "b" }))]).unwrap();
    assert_eq!(measured(), before);
    assert!(age() <= begun.elapsed().as_secs_f64() + 1.0);
}

/// The role without a resource.
fn without(role: &Value, resource: &str) -> Value {
    let mut role = role.clone();
    for rule in role["rules"].as_array_mut().unwrap() {
        let resources = rule["resources"].as_array_mut().unwrap();
        resources.retain(|name| name != resource);
    }
    let rules = role["rules"].as_array_mut().unwrap();
    rules.retain(|rule| rule["resources"] != json!([]));
    role
}

#[test]
fn svc_08_an_agent_that_hears_of_services_or_of_slices_alone_changes_nothing_until_it_hears_both() {
    needs_control_plane!();
    let (control, lab) = start();
    let node = &lab.nodes[0];
    let whole = rbac::role(&control);
    let client = node.add_pod("client").unwrap();
    let pods = ["a", "b"].map(|name| node.add_pod(name).unwrap());
    let serve = |pod: &Pod| {
        [
            Echo::tcp(&pod.namespace, pod.ip(true), 8080).unwrap(),
            Echo::udp(&pod.namespace, pod.ip(true), 8080).unwrap(),
        ]
    };
    let _echoes = [serve(&pods[0]), serve(&pods[1])];
    let [a, b] = pods.each_ref().map(|pod| pod.ip(true).to_string());
    let mut web = service(json!({}));
    web["spec"]["ports"] =
        json!([{ "name": "web", "port": 80 }, { "name": "dns", "port": 80, "protocol": "UDP" }]);
    let slice = |name: &str, ip: &str| {
        let mut slice = slice(name, &[ip]);
        slice["ports"] = json!([
            { "name": "web", "port": 8080, "protocol": "TCP" }, { "name": "dns", "port": 8080, "protocol": "UDP" },
        ]);
        slice
    };
    control.apply(&[web, slice("web-1", &a)]).unwrap();
    becomes(node, Some(&[&a]));
    let vip: SocketAddr = format!("{VIP}:80").parse().unwrap();
    eventually(|| {
        udp(&client.namespace, vip, 10)
            .err()
            .map(|error| format!("{error:#}"))
    });
    let flows = [
        Steady::tcp(&client.namespace, vip).unwrap(),
        Steady::connections(&client.namespace, vip).unwrap(),
        Steady::udp(&client.namespace, vip).unwrap(),
    ];
    let go_on = || flows.iter().for_each(|flow| flow.wait_for(50));
    let rows = || {
        let maps = ["services", "service_slots", "service_members", "backends"];
        maps.map(|map| node.dump(map).unwrap())
    };
    let mut sorted = vec![a.as_str(), &b];
    sorted.sort_unstable();
    for (denied, number) in [("endpointslices", 1), ("services", 2)] {
        go_on();
        let before = rows();
        assert!(before.iter().any(|rows| !rows.is_empty()));
        node.end_agent(Signal::SIGKILL).unwrap();
        control.apply(&[without(&whole, denied)]).unwrap();
        // What it would do if it knew: another endpoint comes or goes, and so does a Service.
        let mut late = service(json!({}));
        late["metadata"]["name"] = json!(format!("late-{number}"));
        late["spec"]["clusterIP"] = json!(format!("10.96.0.{}", 80 + number));
        control.apply(&[late]).unwrap();
        if number == 1 {
            control.apply(&[slice("web-2", &b)]).unwrap();
        } else {
            control.kubectl(&["delete", "endpointslice", "web-2"]).unwrap();
        }
        node.start_agent().unwrap();
        complains(node, &["403", denied, "ClusterRole millrace"]);
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            assert_eq!(rows(), before, "without {denied}");
            go_on();
        }
        let status = node.ask(["status"]).unwrap();
        assert_eq!(
            status["agent"]["sources"]["kubernetes"]["synced"], false,
            "{status}"
        );
        assert!(status["agent"]["services"].is_null(), "{status}");
        control.apply(std::slice::from_ref(&whole)).unwrap();
        let wanted: &[&str] = if number == 1 { &sorted } else { &[&a] };
        becomes(node, Some(wanted));
        assert_ne!(rows(), before);
        go_on();
    }
    for flow in flows {
        assert_eq!(flow.stop().failures, Vec::<String>::new());
    }
}

#[test]
fn rel_52_what_the_server_keeps_and_nobody_can_read_leaves_the_last_good_version_and_is_counted() {
    needs_control_plane!();
    let (control, lab) = start();
    let node = &lab.nodes[0];
    let unread = |count: f64| {
        let now = || node.metric("millrace_service_problems{kind=\"unread\"}").unwrap();
        eventually(|| (now() != count).then(|| format!("{} unread, not {count}", now())));
    };
    control
        .apply(&[service(json!({})), slice("web-1", &["10.77.1.7"])])
        .unwrap();
    becomes(node, Some(&["10.77.1.7"]));
    let before = node.dump("services").unwrap();
    // What was taken before there was a check for it stays as it is.
    let kept = "/registry/services/specs/default/web";
    let text = control.kubectl(&["get", "service", "web", "-o", "json"]).unwrap();
    let mut spoilt: Value = serde_json::from_str(&text).unwrap();
    spoilt["spec"]["externalIPs"] = json!(["198.51.100.300"]);
    spoilt["spec"]["ports"][0]["port"] = json!(81);
    control.store(kept, &spoilt).unwrap();
    complains(node, &["default/web", "spec.externalIPs[0]", "last good version"]);
    unread(1.0);
    // Its endpoints are another object, and so are other Services.
    let mut other = service(json!({}));
    other["metadata"]["name"] = json!("other");
    other["spec"]["clusterIP"] = json!("10.96.0.78");
    control.apply(&[slice("web-1", &["10.77.1.8"]), other]).unwrap();
    becomes(node, Some(&["10.77.1.8"]));
    let after = || node.dump("services").unwrap();
    eventually(|| {
        let (served, now) = (after().join("").contains("10.96.0.78"), after());
        (!served).then(|| format!("{now:?}"))
    });
    assert!(before.iter().all(|row| after().contains(row)), "{:?}", after());
    eventually(|| {
        let said = events(&control);
        let message = said
            .first()
            .map_or("", |event| event["message"].as_str().unwrap());
        (!message.contains("spec.externalIPs[0]")).then(|| format!("{said:?}"))
    });
    spoilt["spec"].as_object_mut().unwrap().remove("externalIPs");
    control.store(kept, &spoilt).unwrap();
    unread(0.0);
    eventually(|| (!after().join("").contains("\"port\":81")).then(|| format!("{:?}", after())));
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
