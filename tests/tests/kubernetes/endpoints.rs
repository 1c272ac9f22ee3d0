//! Endpoints and the objects of their pods.

use cni_tests::lab::{Families, Lab, Plan, Routing, Signal, control_plane::pod};
use serde_json::json;

use crate::{eventually, needs_control_plane};

#[test]
fn rel_43_an_endpoint_whose_pod_was_deleted_while_the_agent_was_dead_is_collected() {
    needs_control_plane!();
    let (control, lab) =
        Lab::start_with_control_plane(Plan::new(Routing::Direct, Families::Dual).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let empty = node.intent().unwrap();
    let mut stays = Vec::new();
    for name in ["goes", "stays"] {
        control.run_pod(&pod(name, "node0", &[])).unwrap();
        let uid = control
            .kubectl(&["get", "pod", name, "-o", "jsonpath={.metadata.uid}"])
            .unwrap();
        let args = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID={uid}");
        stays.push(node.add_pod_of(name, &args).unwrap());
    }
    let endpoints = || node.ask(["endpoints"]).unwrap().as_array().unwrap().len();
    let confirmed = || {
        let status = node.ask(["status"]).unwrap();
        let endpoints = status["agent"]["endpoints"].as_array().unwrap().clone();
        endpoints.iter().all(|endpoint| endpoint["confirmed"] == true)
    };
    eventually(|| (!confirmed()).then(|| "the pods are not known".to_owned()));
    node.end_agent(Signal::SIGKILL).unwrap();
    control
        .kubectl(&["delete", "pod", "goes", "--grace-period=0", "--force"])
        .unwrap();
    node.start_agent().unwrap();
    node.wait_until_ready().unwrap();
    assert_eq!(endpoints(), 2, "a second look decides");
    eventually(|| (endpoints() != 1).then(|| "not collected".to_owned()));
    assert_eq!(node.pod_devices().unwrap().len(), 1);
    for pod in stays {
        node.delete_pod(pod).unwrap();
    }
    eventually(|| {
        let now = node.intent().unwrap();
        (now != empty).then(|| format!("{now:?}"))
    });
}

#[test]
fn a_pods_address_is_found_where_the_pod_is() {
    needs_control_plane!();
    let plan = Plan::new(Routing::Direct, Families::V4).nodes(3);
    let (control, lab) = Lab::start_with_control_plane(plan).unwrap();
    let node = &lab.nodes[0];
    let gateway = |number| lab.plan.node_address(number, true).to_string();
    let route = || {
        let mut routes = node.dump("routes").unwrap();
        routes.retain(|route| route.contains("10.77.2.9/32"));
        routes.join("")
    };
    // In its node's range: nothing to be said.
    control.run_pod(&pod("a", "node1", &["10.77.2.9"])).unwrap();
    eventually(|| {
        let peers = node.dump("peers").unwrap().join("\n");
        (!peers.contains("10.77.2.9")).then_some(peers)
    });
    assert_eq!(route(), "");
    // It moves to another node and keeps its address.
    control
        .kubectl(&["delete", "pod", "a", "--grace-period=0", "--force"])
        .unwrap();
    control.run_pod(&pod("a", "node2", &["10.77.2.9"])).unwrap();
    eventually(|| (!route().contains(&gateway(2))).then(route));
}

#[test]
fn a_pod_on_its_hosts_network_gets_no_endpoint() {
    needs_control_plane!();
    let (control, lab) =
        Lab::start_with_control_plane(Plan::new(Routing::Direct, Families::V4).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let mut host = pod("host", "node0", &["192.168.64.11"]);
    host["spec"]["hostNetwork"] = json!(true);
    control.run_pod(&host).unwrap();
    let uid = control
        .kubectl(&["get", "pod", "host", "-o", "jsonpath={.metadata.uid}"])
        .unwrap();
    let args = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME=host;K8S_POD_UID={uid}");
    // The watch may be a moment behind.
    eventually(|| match node.add_pod_of("host", &args) {
        Err(error) => {
            let text = error.to_string();
            (!text.contains("hostNetwork")).then_some(text)
        }
        Ok(pod) => {
            node.delete_pod(pod).unwrap();
            Some("it got a network".to_owned())
        }
    });
    assert!(node.pod_devices().unwrap().is_empty());
}
