//! Links that carry more or less than Ethernet usually does.

use std::net::{SocketAddr, UdpSocket};

use cni_tests::{
    lab::{Fabric, Families, Lab, Node, Plan, Routing},
    netns::Namespace,
    traffic::{self, Echo},
};

use crate::needs_root;

fn mtu_of(namespace: &Namespace, device: &str) -> u64 {
    namespace.list(&format!("link show dev {device}")).unwrap()[0]["mtu"]
        .as_u64()
        .unwrap()
}

fn plan(routing: Routing, families: Families, mtu: u32) -> Plan {
    Plan {
        fabric_mtu: mtu,
        ..Plan::new(routing, families)
    }
}

/// Two pods of two nodes on links of this size: what size they have, and that all of it passes.
fn carries(routing: Routing, families: Families, mtu: u32, expected: u64) {
    needs_root!();
    let lab = Lab::start(plan(routing, families, mtu)).unwrap();
    let [near, far] = lab.pair();
    lab.fabric.ip(&format!("link set outside mtu {mtu}")).unwrap();
    lab.outside.ip(&format!("link set eth0 mtu {mtu}")).unwrap();
    let (a, c) = (near.add_pod("a").unwrap(), far.add_pod("c").unwrap());
    assert_eq!(mtu_of(&a.namespace, "eth0"), expected);
    assert_eq!(mtu_of(&near.namespace, &a.host_device), expected);
    for v4 in families.each() {
        let whole = expected as usize - if v4 { 28 } else { 48 };
        let pairs = [
            (&c.namespace, c.ip(v4)),
            (&far.namespace, far.address(v4)),
            (&lab.outside, lab.outside_address(v4)),
        ];
        for (there, ip) in pairs {
            let tcp = Echo::tcp(there, ip, 0).unwrap();
            traffic::tcp(&a.namespace, tcp.address, 300_000).unwrap();
            let udp = Echo::udp(there, ip, 0).unwrap();
            for bytes in [whole, whole + 1, 3 * whole] {
                traffic::udp(&a.namespace, udp.address, bytes).unwrap();
            }
        }
        // In one piece, exactly as large as the link.
        let udp = Echo::udp(&c.namespace, c.ip(v4), 0).unwrap();
        let socket = undivided(&a.namespace, udp.address);
        socket.send(&vec![1; whole]).unwrap();
        assert_eq!(socket.recv(&mut vec![0; whole]).unwrap(), whole);
        assert_eq!(
            socket.send(&vec![1; whole + 1]).unwrap_err().raw_os_error(),
            Some(libc::EMSGSIZE)
        );
    }
}

#[test]
fn large_links_direct() {
    carries(Routing::Direct, Families::Dual, 9000, 9000);
}

#[test]
fn large_links_vxlan() {
    carries(Routing::Vxlan, Families::Dual, 9000, 8950);
}

#[test]
fn small_links_direct() {
    carries(Routing::Direct, Families::Dual, 1400, 1400);
}

#[test]
fn small_links_vxlan() {
    carries(Routing::Vxlan, Families::Dual, 1400, 1350);
}

#[test]
fn small_links_vxlan_over_ipv6() {
    carries(Routing::Vxlan, Families::V6, 1400, 1330);
}

/// A socket whose datagrams nobody may cut.
pub(crate) fn undivided(from: &Namespace, to: SocketAddr) -> UdpSocket {
    let socket = traffic::udp_socket(from, to).unwrap();
    let (level, option) = if to.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    };
    let always: libc::c_int = libc::IP_PMTUDISC_DO;
    // SAFETY: the option's value is an integer of the length given, and the descriptor is the socket's.
    let set = unsafe {
        libc::setsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            level,
            option,
            (&raw const always).cast(),
            size_of_val(&always) as libc::socklen_t,
        )
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    socket
}

/// Sends `bytes` in one piece until somebody on the way has said that this is too much, then what he said fits.
pub(crate) fn learns(from: &Namespace, to: SocketAddr, bytes: usize, fits: usize) {
    let socket = undivided(from, to);
    socket.send(&vec![1; bytes]).unwrap();
    let error = socket.recv(&mut vec![0; bytes]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{error}, to {}", to);
    let header = if to.is_ipv4() { 28 } else { 48 };
    let fits = fits - header;
    assert_eq!(
        socket.send(&vec![1; fits + 1]).unwrap_err().raw_os_error(),
        Some(libc::EMSGSIZE)
    );
    socket.send(&vec![1; fits]).unwrap();
    let got = socket.recv(&mut vec![0; fits]);
    assert!(matches!(got, Ok(length) if length == fits), "{got:?}, to {}", to);
}

/// A router between the nodes, behind which the links are smaller; outside too.
fn narrow(lab: &Lab, far: &Node) {
    let port = format!("node{}", far.number);
    lab.fabric
        .ip(&format!("link set {port} mtu 1300\nlink set outside mtu 1300"))
        .unwrap();
    far.namespace.ip("link set eth0 mtu 1300").unwrap();
    lab.outside.ip("link set eth0 mtu 1300").unwrap();
}

#[test]
fn rel_47_a_routers_too_big_reaches_the_pod_also_of_a_masqueraded_flow() {
    needs_root!();
    let lab = Lab::start(plan(Routing::Direct, Families::Dual, 1500).fabric(Fabric::Router)).unwrap();
    let [near, far] = lab.pair();
    let (a, c) = (near.add_pod("a").unwrap(), far.add_pod("c").unwrap());
    narrow(&lab, far);
    for v4 in [true, false] {
        for (there, ip) in [(&c.namespace, c.ip(v4)), (&lab.outside, lab.outside_address(v4))] {
            let udp = Echo::udp(there, ip, 0).unwrap();
            learns(&a.namespace, udp.address, 1400, 1300);
            // Bulk finds its way as well, from a pod that knows nothing yet.
            let tcp = Echo::tcp(there, ip, 0).unwrap();
            traffic::tcp(&a.namespace, tcp.address, 300_000).unwrap();
        }
    }
}

#[test]
fn rel_47_too_big_for_the_tunnel_is_said_to_datagrams_too() {
    needs_root!();
    let lab = Lab::start(Plan::new(Routing::Vxlan, Families::Dual)).unwrap();
    let [near, far] = lab.pair();
    let (a, c) = (near.add_pod("a").unwrap(), far.add_pod("c").unwrap());
    for (node, pod) in [(near, &a), (far, &c)] {
        crate::icmp::widen(&node.namespace, pod, 1500);
    }
    for v4 in [true, false] {
        let udp = Echo::udp(&c.namespace, c.ip(v4), 0).unwrap();
        learns(&a.namespace, udp.address, 1440, 1450);
    }
}
