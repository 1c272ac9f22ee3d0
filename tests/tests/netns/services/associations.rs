//! SCTP through Services, by associations of real sockets: to endpoints of this node and of another one.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use cni_tests::{
    lab::{Drops, Lab, Routing, ServiceManifest, cluster_ip},
    require_in_vm,
    traffic::{Echo, sctp},
};
use serde_json::json;

use super::{external::NODE_PORT, plan, publish};
use crate::needs_root;

/// More than one packet takes.
const BYTES: usize = 5000;

#[test]
fn svc_56_sctp_direct_from_a_pod_and_from_outside() {
    needs_root!();
    let lab = Lab::start(plan(Routing::Direct)).unwrap();
    let probe = Echo::sctp(&lab.outside, lab.outside_address(true), 0);
    require_in_vm!(probe.is_ok(), "the kernel has no SCTP: {:?}", probe.err());
    let [near, far] = lab.pair();
    let client = near.add_pod("client").unwrap();
    for (number, node) in [(1, near), (2, far)] {
        let pod = node.add_pod(&format!("pod{number}")).unwrap();
        let echoes = [true, false].map(|v4| Echo::sctp(&pod.namespace, pod.ip(v4), 8080).unwrap());
        let port = NODE_PORT + u16::from(number);
        let service = ServiceManifest::new(number).endpoint(&pod, 8080).spec(json!({
            "type": "NodePort",
            "ports": [{ "name": "s", "port": 80, "nodePort": port, "protocol": "SCTP" }],
        }));
        publish(&lab, &service);
        for (v4, echo) in [true, false].into_iter().zip(&echoes) {
            let (own, outside) = (client.ip(v4), lab.outside_address(v4));
            let dialled = SocketAddr::new(cluster_ip(number, v4), 80);
            sctp(&client.namespace, own, dialled, BYTES).unwrap();
            sctp(
                &lab.outside,
                outside,
                SocketAddr::new(near.address(v4), port),
                BYTES,
            )
            .unwrap();
            let clients: BTreeSet<IpAddr> = echo.peers().iter().map(SocketAddr::ip).collect();
            assert_eq!(clients, [own, near.address(v4)].into());
        }
    }
    assert_eq!(
        [near, far].map(|node| node.drops().unwrap()),
        [Drops::new(), Drops::new()]
    );
}
