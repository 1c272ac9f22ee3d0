//! Segments of a pod that fit into no connection, on their way to a client behind a node port.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
};

use cni_tests::{
    lab::{Lab, Node, Pod, Routing, ServiceManifest},
    traffic::{Echo, connect},
    wire::{Tap, holds},
};
use serde_json::json;

use super::{
    external::{NODE_PORT, node_port},
    plan, publish,
    reach::{balanced, lab_before},
    serve,
};
use crate::{eventually, needs_root};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}

fn exchange(stream: &mut TcpStream) {
    stream.write_all(b"good").unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"good");
}

fn forget_connections(node: &Node) {
    let output = node.millrace(["conntrack", "flush", "--all"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Has the pod send segments that are out of every window, and looks at everything that comes to the client until an echo
/// request does that the pod sends behind them. How many of those with data came.
fn nothing_bears_the_pods_address(lab: &Lab, pod: &Pod, client: &Tap, to: SocketAddr, what: &str) -> usize {
    let tap = Tap::open(&pod.namespace, "eth0").unwrap();
    let mut ends = pod.towards(to.ip());
    (ends.src_port, ends.dst_port) = (8080, to.port());
    for (flags, payload) in [
        (ACK, &b"stray data"[..]),
        (FIN | ACK, b""),
        (SYN | ACK, b""),
        (RST | ACK, b""),
        (RST, b""),
    ] {
        tap.send(&ends.tcp(flags, payload)).unwrap();
    }
    let last = format!("the last: {what}");
    let mark = pod.towards(lab.outside_address(to.is_ipv4()));
    tap.send(&mark.echo(false, last.as_bytes())).unwrap();
    let (frame, before) = client
        .catch(&last, |frame| holds(frame, last.as_bytes()))
        .unwrap();
    for frame in before.iter().chain([&frame]) {
        assert!(
            !holds(frame, &octets(pod.ip(to.is_ipv4()))),
            "{what}: {frame:02x?}"
        );
    }
    before.iter().filter(|frame| holds(frame, b"stray data")).count()
}

/// A client that is sent a segment from an address that it has never dialled answers with a reset to the pod, and the pod's
/// connection ends.
#[test]
fn svc_60_segments_that_fit_nowhere_never_bear_the_pods_address() {
    needs_root!();
    for (routing, policy) in [
        (Routing::Direct, "Local"),
        (Routing::Direct, "Cluster"),
        (Routing::Vxlan, "Local"),
        (Routing::Vxlan, "Cluster"),
    ] {
        let lab = Lab::start(plan(routing)).unwrap();
        let node = &lab.nodes[0];
        let pod = node.add_pod("pod").unwrap();
        let service = ServiceManifest::new(1).spec(node_port(policy));
        publish(&lab, &service.endpoint_at(&pod, 8080, "node0", json!({})));
        let echoes = serve(&pod, 8080);
        for v4 in [true, false] {
            let client = Tap::open(&lab.outside, "eth0").unwrap();
            let mut stream = connect(&lab.outside, SocketAddr::new(node.address(v4), NODE_PORT)).unwrap();
            exchange(&mut stream);
            let peers = echoes.iter().flat_map(Echo::peers);
            let seen = Vec::from_iter(peers.filter(|peer| peer.is_ipv4() == v4));
            assert_eq!(seen.len(), 1, "{seen:?}");
            let what = format!("{routing:?} {policy} v4={v4}");
            let came = nothing_bears_the_pods_address(&lab, &pod, &client, seen[0], &what);
            assert_eq!(came, 1, "{what}: windows are the client's business");
            exchange(&mut stream);
            forget_connections(node);
            let what = format!("{what}, forgotten");
            nothing_bears_the_pods_address(&lab, &pod, &client, seen[0], &what);
        }
    }
}

/// As it is when the address moves here from a node that is gone. The stack would send each segment back to the router, and get it
/// again, until it has been round so often that it is dropped; the client would wait for its own time to be over.
#[test]
fn svc_60_a_stream_to_a_load_balancer_that_nobody_knows_is_reset() {
    needs_root!();
    let vip: IpAddr = [198, 51, 100, 40].into();
    let lab = lab_before(vip);
    let node = &lab.nodes[0];
    let server = node.add_pod("server").unwrap();
    let _echoes = serve(&server, 8080);
    let service = balanced(&server, vip, &[]);
    node.write_manifest(&service.file(), &service.objects()).unwrap();
    eventually(|| {
        connect(&lab.outside, SocketAddr::new(vip, 80))
            .err()
            .map(|error| error.to_string())
    });
    let mut stream = connect(&lab.outside, SocketAddr::new(vip, 80)).unwrap();
    exchange(&mut stream);
    forget_connections(node);
    stream.write_all(b"good").unwrap();
    let error = stream.read_exact(&mut [0; 4]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    exchange(&mut connect(&lab.outside, SocketAddr::new(vip, 80)).unwrap());
}
