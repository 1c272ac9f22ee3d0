//! What a pod that may send any frame cannot do.

mod odd;

use std::net::IpAddr;

use cni_tests::{
    frames::Ends,
    lab::{Drops, Families, Lab, Node, Plan, Pod, Routing},
    traffic,
    wire::{Tap, holds},
};

use crate::needs_root;

/// Stands in every forged frame that has room for it.
const MARK: &[u8] = b"mrlab-forged";
/// Each frame is sent so often.
const TIMES: u64 = 3;

struct Forgery {
    name: &'static str,
    frame: Vec<u8>,
    reason: &'static str,
}

fn forgery(name: &'static str, reason: &'static str, frame: Vec<u8>) -> Forgery {
    Forgery { name, frame, reason }
}

/// A frame with any ethertype.
fn plain(dst: [u8; 6], src: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&dst[..], &src, &ethertype.to_be_bytes(), payload].concat()
}

fn arp(from: &Pod, operation: u8, claims: IpAddr, asks: IpAddr) -> Vec<u8> {
    let (IpAddr::V4(claims), IpAddr::V4(asks)) = (claims, asks) else {
        panic!("IPv4")
    };
    let payload = [
        &[0, 1, 8, 0, 6, 4, 0, operation][..],
        &from.mac,
        &claims.octets(),
        &[0; 6],
        &asks.octets(),
        MARK,
    ];
    plain([0xff; 6], from.mac, 0x0806, &payload.concat())
}

/// What both families have.
fn of_family(from: &Pod, other: &Pod, outside: IpAddr) -> Vec<Forgery> {
    let v4 = outside.is_ipv4();
    let own = from.towards(other.ip(v4));
    let server = if v4 { 67 } else { 547 };
    let group: IpAddr = if v4 {
        [224, 0, 0, 251].into()
    } else {
        "ff02::fb".parse().unwrap()
    };
    vec![
        forgery(
            "another pod's address",
            "source_address",
            Ends {
                src: other.ip(v4),
                dst: outside,
                ..own
            }
            .udp(MARK),
        ),
        forgery(
            "an address of the outside",
            "source_address",
            Ends { src: outside, ..own }.udp(MARK),
        ),
        forgery(
            "a foreign address, TCP",
            "source_address",
            Ends { src: outside, ..own }.tcp(2, MARK),
        ),
        forgery(
            "a foreign address, ping",
            "source_address",
            Ends { src: outside, ..own }.echo(false, MARK),
        ),
        forgery(
            "another pod's MAC",
            "source_mac",
            Ends {
                src_mac: other.mac,
                ..own
            }
            .udp(MARK),
        ),
        forgery(
            "a DHCP server",
            "dhcp_server",
            Ends {
                src_port: server,
                ..own
            }
            .udp(MARK),
        ),
        forgery("multicast", "link_local", Ends { dst: group, ..own }.udp(MARK)),
        forgery("GRE", "unknown_protocol", own.ip(47, MARK)),
    ]
}

fn v4(from: &Pod, other: &Pod) -> Vec<Forgery> {
    let (own, theirs) = (from.ip(true), other.ip(true));
    let own_ends = Ends {
        dst_mac: [0xff; 6],
        ..from.towards([255, 255, 255, 255].into())
    };
    vec![
        forgery("an ARP request", "arp", arp(from, 1, own, theirs)),
        forgery("an ARP reply for another pod", "arp", arp(from, 2, theirs, own)),
        forgery(
            "a gratuitous ARP for the gateway",
            "arp",
            arp(from, 2, [169, 254, 1, 1].into(), [169, 254, 1, 1].into()),
        ),
        forgery("broadcast", "link_local", own_ends.udp(MARK)),
        forgery(
            "LLDP",
            "unknown_ethertype",
            plain([1, 0x80, 0xc2, 0, 0, 0xe], from.mac, 0x88cc, MARK),
        ),
    ]
}

fn v6(from: &Pod, other: &Pod) -> Vec<Forgery> {
    let own = Ends {
        src_mac: from.mac,
        dst_mac: [0x33, 0x33, 0, 0, 0, 1],
        src: from.ip(false),
        dst: "ff02::1".parse().unwrap(),
        src_port: 0,
        dst_port: 0,
        ttl: 255,
    };
    let IpAddr::V6(target) = other.ip(false) else {
        panic!("IPv6")
    };
    let discovery = |kind: u8| [&[kind, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets(), MARK].concat();
    let router = Ends {
        src: "fe80::1".parse().unwrap(),
        ..own
    };
    let advertisement = [&[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..], MARK].concat();
    let mapped: IpAddr = "::ffff:10.77.1.3".parse().unwrap();
    vec![
        forgery(
            "a neighbour solicitation",
            "neighbour_discovery",
            own.icmp(&discovery(135)),
        ),
        forgery(
            "a neighbour advertisement for another pod",
            "neighbour_discovery",
            own.icmp(&discovery(136)),
        ),
        forgery(
            "a router advertisement",
            "neighbour_discovery",
            router.icmp(&advertisement),
        ),
        forgery(
            "a mapped address",
            "mapped_address",
            Ends {
                dst: mapped,
                dst_mac: from.host_mac,
                ..own
            }
            .udp(MARK),
        ),
    ]
}

/// The counters that moved.
pub(crate) fn moved(node: &Node, before: &Drops) -> Drops {
    let now = node.all_drops().unwrap().into_iter();
    let change = now.map(|(reason, count)| (reason.clone(), count - before.get(&reason).unwrap_or(&0)));
    change.filter(|(_, count)| *count > 0).collect()
}

/// Sends a forgery, and demands that its counter moves and no other one.
fn refuse(node: &Node, tap: &Tap, forged: &Forgery) {
    let before = node.all_drops().unwrap();
    let wanted = format!("{}/egress", forged.reason);
    for _ in 0..TIMES {
        tap.send(&forged.frame).unwrap();
    }
    crate::eventually(|| {
        let moved = moved(node, &before);
        (moved.get(&wanted) < Some(&TIMES)).then(|| format!("{}: {moved:?} instead of {wanted}", forged.name))
    });
    let mut moved = moved(node, &before);
    if forged.reason != "link_local" {
        assert_eq!(moved.remove(&wanted), Some(TIMES), "{}", forged.name);
    }
    moved.retain(|reason, _| !reason.starts_with("link_local/"));
    assert_eq!(moved, Drops::new(), "{}: other counters", forged.name);
}

fn battery(routing: Routing) {
    needs_root!();
    let lab = Lab::start(Plan::new(routing, Families::Dual)).unwrap();
    let [node, far] = lab.pair();
    let (a, b) = (node.add_pod("a").unwrap(), node.add_pod("b").unwrap());
    let c = far.add_pod("c").unwrap();
    let mut forgeries = Vec::new();
    for family in [true, false] {
        forgeries.extend(of_family(&a, &b, lab.outside_address(family)));
        forgeries.extend(odd::of_family(&a, &b, node.address(family)));
    }
    forgeries.extend(v4(&a, &b));
    forgeries.extend(v6(&a, &b));
    forgeries.extend(odd::v6(&a, &b));
    let tap = Tap::open(&a.namespace, "eth0").unwrap();
    let listeners = [
        ("pod b", Tap::open(&b.namespace, "eth0").unwrap()),
        ("pod c", Tap::open(&c.namespace, "eth0").unwrap()),
        ("the fabric", Tap::open(&far.namespace, "eth0").unwrap()),
        ("outside", Tap::open(&lab.outside, "eth0").unwrap()),
    ];
    let routes = node.namespace.list("-6 route").unwrap();
    for forged in &forgeries {
        refuse(node, &tap, forged);
    }
    assert_eq!(
        node.connections().unwrap(),
        Vec::<serde_json::Value>::new(),
        "connections of forged packets"
    );
    assert_eq!(
        node.namespace.list("-6 route").unwrap(),
        routes,
        "the host's routes"
    );
    // What comes after them arrives, and nothing of them came before.
    for (name, to) in [b.ip(true), c.ip(true), c.ip(true), lab.outside_address(true)]
        .into_iter()
        .enumerate()
    {
        traffic::ping(&a.namespace, to, 56).unwrap();
        let (who, listener) = &listeners[name];
        let echo =
            |frame: &[u8]| frame.len() > 34 && frame[12..14] == [8, 0] && holds(frame, &traffic::pattern(56));
        let (_, earlier) = listener.catch("the control ping", echo).unwrap();
        let forged = earlier.iter().filter(|frame| holds(frame, MARK)).count();
        assert_eq!(forged, 0, "forged frames at {who}");
    }
}

#[test]
fn rel_49_forged_frames_go_nowhere_direct() {
    battery(Routing::Direct);
}

#[test]
fn rel_49_forged_frames_go_nowhere_vxlan() {
    battery(Routing::Vxlan);
}

#[test]
fn rel_49_pod_cannot_pretend_to_be_a_tunnel() {
    needs_root!();
    let lab = Lab::start(Plan::new(Routing::Vxlan, Families::Dual)).unwrap();
    let [node, far] = lab.pair();
    let (a, c) = (node.add_pod("a").unwrap(), far.add_pod("c").unwrap());
    let listener = Tap::open(&c.namespace, "eth0").unwrap();
    for v4 in [true, false] {
        let before = far.all_drops().unwrap();
        let inner = Ends {
            src_mac: [2, b'm', b'r', 0, 0, 2],
            dst_mac: [2, b'm', b'r', 0, 0, 1],
            src: a.ip(v4),
            dst: c.ip(v4),
            src_port: 1,
            dst_port: 2,
            ttl: 64,
        };
        let mut datagram = vec![8, 0, 0, 0, 0, 0x4d, 0x52, 0];
        datagram.extend(inner.udp(MARK));
        let socket = traffic::udp_socket(&a.namespace, (far.address(v4), 4789).into()).unwrap();
        socket.send(&datagram).unwrap();
        crate::eventually(|| {
            let moved = moved(far, &before);
            (moved.get("tunnel_source/ingress") != Some(&1)).then(|| format!("{moved:?}"))
        });
    }
    traffic::ping(&a.namespace, c.ip(true), 56).unwrap();
    let echo = |frame: &[u8]| holds(frame, &traffic::pattern(56));
    let (_, earlier) = listener.catch("the control ping", echo).unwrap();
    assert!(!earlier.iter().any(|frame| holds(frame, MARK)));
}
