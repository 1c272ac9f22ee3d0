//! SCTP between pods, and out of the cluster.

use std::net::{IpAddr, SocketAddr};

use cni_tests::{
    frames::Ends,
    lab::{Drops, Families, Lab, Plan, Pod, Routing},
    require_in_vm,
    traffic::{self, Echo},
    wire::{Tap, holds},
};

use crate::needs_root;

const BYTES: usize = 5000;

fn everywhere(routing: Routing) {
    needs_root!();
    let lab = Lab::start(Plan::new(routing, Families::Dual)).unwrap();
    let probe = Echo::sctp(&lab.outside, lab.outside_address(true), 0);
    require_in_vm!(probe.is_ok(), "the kernel has no SCTP: {:?}", probe.err());
    let [near, far] = &lab.nodes[..] else {
        panic!("two nodes")
    };
    let (a, b) = (near.add_pod("a").unwrap(), near.add_pod("b").unwrap());
    let c = far.add_pod("c").unwrap();
    for v4 in [true, false] {
        let outside = lab.outside_address(v4);
        // Outside knows nodes: the address is the node's, and the port is still the pod's.
        for (there, ip, seen) in [
            (&b.namespace, b.ip(v4), a.ip(v4)),
            (&c.namespace, c.ip(v4), a.ip(v4)),
            (&near.namespace, near.address(v4), a.ip(v4)),
            (&lab.outside, outside, near.address(v4)),
        ] {
            let echo = Echo::sctp(there, ip, 0).unwrap();
            let own = traffic::sctp(&a.namespace, a.ip(v4), echo.address, BYTES).unwrap();
            let peers: Vec<SocketAddr> = echo.peers().into_iter().collect();
            assert_eq!(peers, [SocketAddr::new(seen, own.port())], "{ip}");
        }
        let echo = Echo::sctp(&a.namespace, a.ip(v4), 0).unwrap();
        traffic::sctp(&near.namespace, near.address(v4), echo.address, BYTES).unwrap();
    }
    let dropped = [near, far].map(|node| node.drops().unwrap());
    assert_eq!(dropped, [Drops::new(), Drops::new()]);
}

#[test]
fn sctp_direct() {
    everywhere(Routing::Direct);
}

#[test]
fn sctp_vxlan() {
    everywhere(Routing::Vxlan);
}

/// The second pod that uses a port towards one peer is given another one, and not mixed with the first.
#[test]
fn sctp_two_pods_from_one_port_do_not_mix() {
    needs_root!();
    let lab = Lab::start(Plan::new(Routing::Direct, Families::V4).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let outside = Tap::open(&lab.outside, "eth0").unwrap();
    let begin = |pod: &Pod, mark: &[u8]| {
        let ends = Ends {
            src_mac: pod.mac,
            dst_mac: pod.host_mac,
            src: pod.ip(true),
            dst: lab.outside_address(true),
            src_port: 4000,
            dst_port: 4001,
            ttl: 64,
        };
        // Ports, tag and checksum of the header, then what would be its first chunk.
        let packet = [&[0x0f, 0xa0, 0x0f, 0xa1, 0, 0, 0, 0, 0, 0, 0, 0][..], mark].concat();
        let tap = Tap::open(&pod.namespace, "eth0").unwrap();
        tap.send(&ends.ip(132, &packet)).unwrap();
    };
    let (a, b) = (node.add_pod("a").unwrap(), node.add_pod("b").unwrap());
    begin(&a, b"first pod");
    let arrived = |frame: &[u8]| holds(frame, b"first pod");
    let (frame, _) = outside.catch("the first pod's", arrived).unwrap();
    let IpAddr::V4(seen) = node.address(true) else {
        panic!("IPv4")
    };
    assert_eq!(
        (&frame[26..30], &frame[34..36]),
        (&seen.octets()[..], &[0x0f, 0xa0][..])
    );
    begin(&b, b"second pod");
    let arrived = |frame: &[u8]| holds(frame, b"second pod");
    let (frame, _) = outside.catch("the second pod's", arrived).unwrap();
    assert_eq!(&frame[26..30], &seen.octets()[..]);
    assert_ne!(&frame[34..36], &[0x0f, 0xa0][..]);
}
