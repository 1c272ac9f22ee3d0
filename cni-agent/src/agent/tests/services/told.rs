//! Who tells what is wrong, where there are many nodes.

use super::*;
use crate::model::{HostPort, Object, Pod, PodName, Protocol};

const NODES: usize = 60;
const OBJECTS: usize = 20;

fn with_host_port(name: &str) -> Event {
    Event::Set(Object::Pod(Pod {
        name: PodName {
            namespace: "a".into(),
            name: name.into(),
        },
        uid: format!("uid of {name}"),
        addresses: [[10, 1, 0, 9].into()].into(),
        node: "one".into(),
        host_ports: vec![HostPort {
            address: None,
            protocol: Protocol::Tcp,
            port: 8080,
            container_port: 80,
        }],
        ..Pod::default()
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn of_services_a_few_tell_and_of_a_pods_host_ports_its_own_node() {
    let mut machine = serving();
    let nodes: Vec<Value> = (0..NODES)
        .map(|number| {
            let name = json!({ "name": format!("other-{number}") });
            json!({ "apiVersion": "v1", "kind": "Node", "metadata": name })
        })
        .collect();
    write_file(&machine, "others", &list(&nodes));
    write_file(&machine, "services", &list(&asking_for_what_is_not(OBJECTS)));
    let handle = machine.start().await;
    for number in 0..=OBJECTS {
        let pod = with_host_port(&format!("p{number:02}"));
        handle.events.send(pod).await.unwrap();
    }
    // Each but the first has to do without.
    until(&handle, |status| {
        troubles(status).frontend == OBJECTS && troubles(status).object == OBJECTS
    })
    .await;
    until(&handle, |status| {
        let told = troubled(status);
        let of_pods = told.iter().filter(|problem| problem.uid.starts_with("uid of p"));
        let of_services = told
            .iter()
            .filter(|problem| problem.service.name.starts_with('s'));
        of_pods.count() == OBJECTS && of_services.count() < OBJECTS
    })
    .await;
    machine.stop().await;
}
