//! Routers that carry less than the ends think: what they say comes to whoever must send less, as if he had sent it there.

use std::net::{IpAddr, SocketAddr};

use cni_tests::{
    lab::{Fabric, Lab, Node, Routing, ServiceManifest, cluster_ip},
    netns::Namespace,
    traffic::tcp,
};
use serde_json::json;

use super::external::{NODE_PORT, clients, node_port};
use super::{plan, publish, serve};
use crate::{needs_root, sizes::learns};

/// What the router between sends on in one piece to pods of this node and to the world outside. No end knows of it.
const FITS: usize = 1300;

fn narrow(lab: &Lab, far: &Node) {
    for v4 in [true, false] {
        let pods = lab.plan.pod_cidr(far.number, v4);
        // In the place of the kernel's own.
        let outside = if v4 {
            "203.0.113.0/24"
        } else {
            "2001:db8:113::/64 metric 256"
        };
        lab.fabric
            .ip(&format!(
                "route replace {pods} via {} mtu lock {FITS}\nroute replace {outside} dev outside mtu lock {FITS}",
                far.address(v4)
            ))
            .unwrap();
    }
}

/// How long a packet to this address may be, by what somebody on the way has said.
fn learnt(from: &Namespace, to: IpAddr) -> Option<u64> {
    let route = from.list(&format!("route get {to}")).unwrap();
    route[0]["metrics"][0]["mtu"].as_u64()
}

#[test]
fn svc_57_rel_47_a_routers_too_big_is_heard_through_node_ports_and_cluster_ips_by_either_side() {
    needs_root!();
    for xdp in ["off", "native"] {
        let mut plan = plan(Routing::Direct).fabric(Fabric::Router);
        plan.config["services"]["xdp"] = json!(xdp);
        // Packets of pods bear the Service's address, and must be told of it.
        plan.config["services"]["socketLb"] = json!("host");
        plan.config["services"]["nodePortAddresses"] = json!(["0.0.0.0/0", "::/0"]);
        let lab = Lab::start(plan).unwrap();
        let [near, far] = lab.pair();
        let [streams, datagrams] = ["streams", "datagrams"].map(|name| near.add_pod(name).unwrap());
        let server = far.add_pod("server").unwrap();
        narrow(&lab, far);
        let _ports = lab.take_frames_back().unwrap();
        for host in [&lab.outside, &server.namespace] {
            host.finish_checksums("eth0").unwrap();
        }
        let echoes = serve(&server, 8080);
        let service = ServiceManifest::new(1).spec(node_port("Cluster"));
        publish(&lab, &service.endpoint_at(&server, 8080, "node1", json!({})));
        for v4 in [true, false] {
            let at = |ip| SocketAddr::new(ip, NODE_PORT);
            let cluster = SocketAddr::new(cluster_ip(1, v4), 80);
            // What is learnt of an address holds for all that is sent there: datagrams have another client, or another address.
            learns(&datagrams.namespace, cluster, 1400, FITS);
            learns(&lab.outside, at(near.second_address(v4)), 1400, FITS);
            for (from, to) in [
                (&streams.namespace, cluster),
                (&lab.outside, at(near.address(v4))),
            ] {
                tcp(from, to, 300_000).unwrap();
                assert_eq!(learnt(from, to.ip()), Some(FITS as u64), "{xdp}: {to}");
            }
            let answers = learnt(&server.namespace, near.address(v4));
            assert_eq!(answers, Some(FITS as u64), "{xdp}: what the endpoint answers");
        }
        let outside = [true, false].map(|v4| lab.outside_address(v4));
        let seen = clients(&echoes);
        assert!(
            seen.iter().all(|ip| !outside.contains(ip)) && seen.contains(&streams.ip(true)),
            "{xdp}: {seen:?} is whom the endpoint sees"
        );
    }
}
