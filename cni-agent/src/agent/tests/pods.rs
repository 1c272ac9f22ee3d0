//! Pods of other nodes.

use cni_ebpf::abi::Addr;

use super::*;
use crate::model::{Object, ObjectKey, Pod, PodName};

fn pod(address: &str, turn: u32) -> Event {
    Event::Set(Object::Pod(Pod {
        name: name(),
        addresses: [address.parse().unwrap()].into(),
        node: "two".into(),
        labels: [("turn".to_owned(), turn.to_string())].into_iter().collect(),
        ..Pod::default()
    }))
}

fn name() -> PodName {
    PodName {
        namespace: "a".into(),
        name: "web".into(),
    }
}

async fn becomes(machine: &Machine, address: &str, known: bool) {
    let addr = Addr::from(address.parse::<IpAddr>().unwrap());
    for _ in 0..2000 {
        if machine.kernel.lock().tables.peers.contains_key(&addr) == known {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{address} is still not as it should be");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_elsewhere_costs_its_addresses_and_no_round() {
    let mut machine = Machine::new();
    let handle = machine.start().await;
    handle.events.send(pod("10.2.0.7", 0)).await.unwrap();
    becomes(&machine, "10.2.0.7", true).await;
    let looks = machine.kernel.lock().whole_looks;
    machine.kernel.lock().log.clear();
    // Only the label is another.
    handle.events.send(pod("10.2.0.7", 1)).await.unwrap();
    handle.events.send(pod("10.2.0.8", 2)).await.unwrap();
    becomes(&machine, "10.2.0.8", true).await;
    becomes(&machine, "10.2.0.7", false).await;
    handle
        .events
        .send(Event::Gone(ObjectKey::Pod(name())))
        .await
        .unwrap();
    becomes(&machine, "10.2.0.8", false).await;
    let kernel = machine.kernel.lock();
    assert_eq!(kernel.log.len(), 3, "{:?}", kernel.log);
    assert_eq!(kernel.whole_looks, looks);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_for_a_pod_elsewhere_is_made_up_for() {
    let mut machine = Machine::new();
    let handle = machine.start().await;
    machine.kernel.lock().faults.push("write to map peers".into());
    handle.events.send(pod("10.2.0.7", 0)).await.unwrap();
    until(&handle, |status| status.reconcile.failures > 0).await;
    machine.kernel.lock().faults.clear();
    becomes(&machine, "10.2.0.7", true).await;
}
