//! Pods come and go in crowds.

use std::{collections::BTreeSet, net::IpAddr, thread};

use cni_tests::{
    lab::{Families, Lab, Plan, Pod, Routing, leftovers},
    traffic,
};

use crate::needs_root;

/// As many as a node has pods by default.
const CROWD: usize = 110;

#[test]
fn rel_43_crowd_of_pods_comes_and_goes_without_a_trace() {
    needs_root!();
    let lab = Lab::start(Plan::new(Routing::Direct, Families::Dual).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let empty = node.intent().unwrap();
    let pods: Vec<Pod> = thread::scope(|scope| {
        let adds: Vec<_> = (0..CROWD)
            .map(|number| scope.spawn(move || node.add_pod(&format!("p{number}"))))
            .collect();
        adds.into_iter().map(|add| add.join().unwrap().unwrap()).collect()
    });
    let addresses: BTreeSet<IpAddr> = pods.iter().flat_map(|pod| pod.addresses.clone()).collect();
    assert_eq!(addresses.len(), 2 * CROWD, "every pod has its own addresses");
    assert_eq!(node.pod_devices().unwrap().len(), CROWD);
    assert_eq!(node.dump("endpoints").unwrap().len(), 2 * CROWD);
    for pair in pods.windows(2) {
        traffic::ping(&pair[0].namespace, pair[1].ip(true), 56).unwrap();
    }
    thread::scope(|scope| {
        let deletes: Vec<_> = pods
            .into_iter()
            .map(|pod| scope.spawn(move || node.delete_pod(pod)))
            .collect();
        deletes
            .into_iter()
            .for_each(|delete| delete.join().unwrap().unwrap());
    });
    assert_eq!(node.pod_devices().unwrap(), Vec::<String>::new());
    assert_eq!(node.ask(["endpoints"]).unwrap(), serde_json::json!([]));
    crate::eventually(|| {
        let now = node.intent().unwrap();
        (now != empty).then(|| format!("left: {now:#?}"))
    });
}

#[test]
fn a_lab_leaves_nothing_behind_even_by_a_panic() {
    needs_root!();
    let lab = Lab::start(Plan::new(Routing::Vxlan, Families::V4).nodes(1)).unwrap();
    let name = lab.name().to_owned();
    assert_ne!(leftovers(&name), Vec::<String>::new());
    let panic = thread::spawn(move || {
        let _pod = lab.nodes[0].add_pod("a").unwrap();
        let _lab = lab;
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert!(panic.join().is_err());
    assert_eq!(leftovers(&name), Vec::<String>::new());
}
