//! The capability `bandwidth`: bytes against the limit.

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use cni_tests::{
    lab::{Drops, Families, Lab, Plan, Pod, Routing, Signal},
    netns::Namespace,
    require_in_vm,
    traffic::{self, Echo},
};
use serde_json::json;

use crate::{eventually, needs_root};

/// Bytes a second.
const RATE: u64 = 1_000_000;
/// The same where pacing is tested: an emulated processor must be able to offer more.
const PACED: u64 = 100_000;
const DATAGRAM: usize = 1200;
const LENGTH: Duration = Duration::from_secs(2);

/// Datagrams to an address for some time, at most three times [`RATE`].
struct Offer {
    datagrams: u64,
    elapsed: Duration,
}

fn offer(from: &Namespace, to: SocketAddr) -> Offer {
    let socket = traffic::udp_socket(from, to).unwrap();
    let started = Instant::now();
    let mut datagrams = 0;
    while started.elapsed() < LENGTH {
        for _ in 0..8 {
            socket.send(&[0; DATAGRAM]).unwrap();
            datagrams += 1;
        }
        thread::sleep(Duration::from_millis(3));
    }
    Offer {
        datagrams,
        elapsed: started.elapsed(),
    }
}

/// What a pod's interface has received: packets and bytes, before any socket's buffer can lose some.
fn received(pod: &Pod) -> (u64, u64) {
    let links = pod.namespace.list("-s link show dev eth0").unwrap();
    let rx = &links[0]["stats64"]["rx"];
    (rx["packets"].as_u64().unwrap(), rx["bytes"].as_u64().unwrap())
}

/// A socket that nobody reads, so that nothing is answered.
fn sink(pod: &Pod) -> UdpSocket {
    pod.namespace.run(|| UdpSocket::bind((pod.ip(true), 0))).unwrap()
}

/// Offers more than the limit from one pod to another one, and compares what arrives.
#[track_caller]
fn limited(from: &Pod, to: &Pod) {
    limited_to(RATE, from, to);
}

#[track_caller]
fn limited_to(rate: u64, from: &Pod, to: &Pod) {
    let sink = sink(to);
    let (_, before) = received(to);
    let offer = offer(&from.namespace, sink.local_addr().unwrap());
    let arrived = received(to).1 - before;
    let seconds = offer.elapsed.as_secs_f64();
    let allowed = rate as f64 * seconds;
    let wanted = allowed.min((offer.datagrams * DATAGRAM as u64) as f64);
    let arrived = arrived as f64;
    assert!(
        arrived < 2.0 * allowed && arrived > wanted / 3.0,
        "{arrived} bytes arrived in {seconds} s of {} datagrams; {allowed} are allowed",
        offer.datagrams
    );
}

/// The same to a pod without a limit: all arrive.
#[track_caller]
fn unlimited(from: &Pod, to: &Pod) {
    let sink = sink(to);
    let (before, _) = received(to);
    let offer = offer(&from.namespace, sink.local_addr().unwrap());
    eventually(|| {
        let arrived = received(to).0 - before;
        (arrived < offer.datagrams).then(|| format!("{arrived} of {} datagrams arrived", offer.datagrams))
    });
}

fn bandwidth(routing: Routing) {
    let lab = Lab::start(Plan::new(routing, Families::Dual)).unwrap();
    let [near, far] = lab.pair();
    let rates =
        json!({ "ingressRate": RATE * 8, "ingressBurst": 0, "egressRate": RATE * 8, "egressBurst": 0 });
    let config = json!({ "runtimeConfig": { "bandwidth": rates } });
    let slow = near.add_pod_with("slow", &config).unwrap();
    let fast = near.add_pod("fast").unwrap();
    let peer = far.add_pod("peer").unwrap();
    // What the limit cuts is less than a connection needs to live: it gets slower.
    for v4 in [true, false] {
        let echo = Echo::tcp(&slow.namespace, slow.ip(v4), 0).unwrap();
        traffic::tcp(&peer.namespace, echo.address, 300_000).unwrap();
    }
    for (from, to) in [(&peer, &slow), (&slow, &peer), (&fast, &slow), (&slow, &fast)] {
        limited(from, to);
    }
    let drops = near.drops().unwrap();
    for direction in ["ingress", "egress"] {
        assert!(
            drops.contains_key(&format!("rate_limit/{direction}")),
            "{drops:?}"
        );
    }
    thread::scope(|scope| {
        scope.spawn(|| limited(&peer, &slow));
        scope.spawn(|| unlimited(&peer, &fast));
    });
    assert_eq!(near.dump("buckets").unwrap().len(), 2);
    near.delete_pod(slow).unwrap();
    eventually(|| {
        let left = near.dump("buckets").unwrap();
        (!left.is_empty()).then(|| format!("{left:?}"))
    });
}

/// What leaves the node above the limit waits in the device's `fq` instead of being dropped, in either family.
fn paced(routing: Routing) {
    let lab = Lab::start(Plan::new(routing, Families::Dual)).unwrap();
    let [near, far] = &lab.nodes[..] else {
        panic!("two nodes")
    };
    let qdisc = || {
        let output = near
            .namespace
            .command("tc")
            // Where there is no tcx the agent has a clsact beside it.
            .args(["qdisc", "show", "dev", "eth0", "root"])
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let before = qdisc();
    let probe = near
        .namespace
        .command("tc")
        .args(["qdisc", "add", "dev", "other0", "root", "fq"])
        .output();
    require_in_vm!(probe.unwrap().status.success(), "the kernel has no fq");
    let config = json!({ "runtimeConfig": { "bandwidth": { "egressRate": PACED * 8, "egressBurst": 0 } } });
    let slow = near.add_pod_with("slow", &config).unwrap();
    let (neighbour, peer) = (near.add_pod("neighbour").unwrap(), far.add_pod("peer").unwrap());
    eventually(|| {
        let (endpoints, devices) = (near.dump("endpoints").unwrap(), near.dump("devices").unwrap());
        // LIMIT_EGRESS and PACE; PACES.
        let known = endpoints.concat().contains("\"flags\":10,") && devices.concat().contains("\"flags\":1,");
        let ready = known && qdisc().contains("qdisc fq 4d52:");
        (!ready).then(|| format!("{} {endpoints:?} {devices:?}", qdisc()))
    });
    for v4 in [true, false] {
        let echo = Echo::tcp(&peer.namespace, peer.ip(v4), 0).unwrap();
        traffic::tcp(&slow.namespace, echo.address, 2 * PACED as usize).unwrap();
    }
    assert_eq!(
        near.drops().unwrap(),
        Drops::new(),
        "TCP waits, and loses nothing"
    );
    limited_to(PACED, &slow, &peer);
    // On the way into another pod of the node nothing waits: above the limit is dropped.
    limited_to(PACED, &slow, &neighbour);
    assert!(near.drops().unwrap().contains_key("rate_limit/egress"));
    near.delete_pod(slow).unwrap();
    near.delete_pod(neighbour).unwrap();
    near.end_agent(Signal::SIGTERM).unwrap();
    let removed = near.millrace(["uninstall", "--yes"]).output().unwrap();
    assert!(removed.status.success(), "{removed:?}");
    assert_eq!(
        qdisc(),
        before,
        "uninstall gives the device its queueing discipline back"
    );
}

#[test]
fn a_bandwidth_limit_is_paced_where_there_is_fq_direct() {
    needs_root!();
    paced(Routing::Direct);
}

#[test]
fn a_bandwidth_limit_is_paced_where_there_is_fq_vxlan() {
    needs_root!();
    paced(Routing::Vxlan);
}

#[test]
fn a_bandwidth_limit_holds_in_both_directions_and_for_its_pod_alone() {
    needs_root!();
    bandwidth(Routing::Direct);
}

#[test]
fn a_bandwidth_limit_holds_through_the_tunnel() {
    needs_root!();
    bandwidth(Routing::Vxlan);
}
