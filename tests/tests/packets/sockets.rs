//! Services as sockets use them: real ones, in a cgroup of the test's own.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use cni_ebpf::abi::{Config, Service, service_scope, socket_lb};
use cni_tests::world::{self, THIS_NETNS, backend, ip, port, service_id};

use crate::services::{key, node, vip};
use crate::{Pair, privileged, with_pair};

const HOST: Config = Config {
    socket_lb: socket_lb::HOST,
    host_netns: THIS_NETNS,
    ..world::CONFIG
};

/// The world is a pod's: the host is another namespace.
const POD: Config = Config {
    socket_lb: socket_lb::ALL,
    host_netns: 1,
    ..world::CONFIG
};

fn sockets(config: Config, test: impl Fn(&mut Pair, bool) + Send + 'static) {
    cni_tests::require!(privileged(), "running programs needs root");
    with_pair(config, move |pair| {
        let _cgroup = pair.kernel.balance_sockets().unwrap();
        for v6 in [false, true] {
            test(pair, v6);
        }
    });
}

/// Where the backend of the node itself listens.
fn local(v6: bool) -> SocketAddr {
    (node(v6), 6443).into()
}

fn frontend(v6: bool, port: u16) -> SocketAddr {
    (vip(v6), port).into()
}

fn any(v6: bool) -> SocketAddr {
    let any: IpAddr = ip(if v6 { "::" } else { "0.0.0.0" });
    (any, 0).into()
}

/// Sends one datagram from `client` and back; gives whom the client sees as the sender.
fn there_and_back(server: &UdpSocket, client: &UdpSocket, to: Option<SocketAddr>) -> SocketAddr {
    match to {
        Some(to) => client.send_to(b"q", to).unwrap(),
        None => client.send(b"q").unwrap(),
    };
    let mut bytes = [0; 8];
    let (length, from) = server.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"q");
    server.send_to(b"a", from).unwrap();
    let (length, from) = client.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"a");
    from
}

#[test]
fn svc_21_host_processes_reach_a_cluster_ip_by_streams() {
    sockets(HOST, |_, v6| {
        let server = TcpListener::bind(local(v6)).unwrap();
        let mut client = TcpStream::connect(frontend(v6, port::TO_HOST)).unwrap();
        let (mut served, _) = server.accept().unwrap();
        client.write_all(b"hello").unwrap();
        let mut bytes = [0; 5];
        served.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
    });
}

#[test]
fn svc_61_the_peer_of_a_socket_is_what_it_dialled() {
    for config in [HOST, POD] {
        sockets(config, |_, v6| {
            let _server = TcpListener::bind(local(v6)).unwrap();
            let client = TcpStream::connect(frontend(v6, port::TO_HOST)).unwrap();
            assert_eq!(client.peer_addr().unwrap(), frontend(v6, port::TO_HOST));
            // Who dialled no Service sees who is there.
            let direct = TcpStream::connect(local(v6)).unwrap();
            assert_eq!(direct.peer_addr().unwrap(), local(v6));
        });
    }
}

#[test]
fn svc_21_svc_61_datagrams_of_the_host_come_back_from_what_was_dialled() {
    sockets(HOST, |_, v6| {
        let server = UdpSocket::bind(local(v6)).unwrap();
        let to = frontend(v6, port::TO_HOST);
        let client = UdpSocket::bind(any(v6)).unwrap();
        assert_eq!(there_and_back(&server, &client, Some(to)), to);
        let connected = UdpSocket::bind(any(v6)).unwrap();
        connected.connect(to).unwrap();
        assert_eq!(connected.peer_addr().unwrap(), to);
        assert_eq!(there_and_back(&server, &connected, None), to);
    });
}

#[test]
fn an_ipv6_socket_reaches_an_ipv4_service_by_its_mapped_address() {
    sockets(HOST, |_, v6| {
        if v6 {
            return;
        }
        let server = UdpSocket::bind(local(false)).unwrap();
        let client = UdpSocket::bind(any(true)).unwrap();
        let IpAddr::V4(vip) = vip(false) else {
            unreachable!()
        };
        let to: SocketAddr = (vip.to_ipv6_mapped(), port::TO_HOST).into();
        assert_eq!(there_and_back(&server, &client, Some(to)), to);
    });
}

#[test]
fn svc_25_svc_28_svc_29_a_socket_of_the_host_is_refused_at_once() {
    sockets(HOST, |_, v6| {
        let nobody = ip(if v6 { "fd00:96::77" } else { "10.96.0.77" });
        for (to, error) in [
            (frontend(v6, port::REFUSED), ErrorKind::ConnectionRefused),
            (frontend(v6, 1), ErrorKind::ConnectionRefused),
            ((nobody, 80).into(), ErrorKind::HostUnreachable),
            (frontend(v6, port::ELSEWHERE), ErrorKind::HostUnreachable),
        ] {
            assert_eq!(TcpStream::connect(to).unwrap_err().kind(), error, "{to}");
            let socket = UdpSocket::bind(any(v6)).unwrap();
            assert_eq!(socket.send_to(b"x", to).unwrap_err().kind(), error, "{to}");
            assert_eq!(socket.connect(to).unwrap_err().kind(), error, "{to}");
        }
    });
}

#[test]
fn svc_49_a_namespace_stays_with_its_backend() {
    sockets(HOST, |pair, v6| {
        let before = pair.kernel.dialled().unwrap().len();
        let id = service_id(port::AFFINE, v6, 0);
        let sockets: Vec<_> = (0..20)
            .map(|_| {
                let socket = UdpSocket::bind(any(v6)).unwrap();
                socket.connect(frontend(v6, port::AFFINE)).unwrap();
                socket
            })
            .collect();
        let dialled = pair.kernel.dialled().unwrap();
        assert_eq!(dialled.len(), before + sockets.len());
        let mut backends: Vec<_> = dialled
            .iter()
            .filter(|d| d.service == id)
            .map(|d| d.backend)
            .collect();
        backends.dedup();
        assert_eq!(backends.len(), 1, "{backends:?}");
    });
}

#[test]
fn svc_53_datagrams_of_the_host_leave_a_backend_that_serves_no_longer() {
    sockets(HOST, |pair, v6| {
        let second: SocketAddr = (node(v6), 6444).into();
        let first = UdpSocket::bind(local(v6)).unwrap();
        let second_server = UdpSocket::bind(second).unwrap();
        let number = |id: u32| id + if v6 { backend::V6 } else { 0 };
        pair.put_backend(number(50), Some((node(v6), 6443)));
        pair.put_backend(number(51), Some((node(v6), 6444)));
        let id = 5000 + u32::from(v6);
        pair.put_slot(id, 0, number(50));
        let service = Service {
            id,
            slots: 1,
            ..Service::default()
        };
        pair.put_service(key(vip(v6), 5000, 17), service);
        let client = UdpSocket::bind(any(v6)).unwrap();
        let to = frontend(v6, 5000);
        assert_eq!(there_and_back(&first, &client, Some(to)), to);
        // Out of the Service, serving still.
        pair.put_slot(id, 0, number(51));
        assert_eq!(there_and_back(&first, &client, Some(to)), to);
        pair.put_backend(number(50), None);
        assert_eq!(there_and_back(&second_server, &client, Some(to)), to);
    });
}

#[test]
fn svc_40_svc_41_the_host_reaches_a_service_whose_ranges_hold_its_address_and_no_other() {
    sockets(HOST, |pair, v6| {
        let _server = TcpListener::bind(local(v6)).unwrap();
        for (port, ranges, reached) in [(5001, world::NODES_RANGES, true), (5002, 1, false)] {
            let service = Service {
                id: service_id(port::TO_HOST, v6, service_scope::CLUSTER),
                slots: 1,
                ranges,
                ..Service::default()
            };
            pair.put_service(key(vip(v6), port, 6), service);
            let outcome = TcpStream::connect(frontend(v6, port));
            assert_eq!(outcome.is_ok(), reached, "{outcome:?}");
        }
    });
}

#[test]
fn datagrams_of_pods_are_left_to_the_packets_path() {
    sockets(POD, |pair, v6| {
        let server = UdpSocket::bind(local(v6)).unwrap();
        server.set_nonblocking(true).unwrap();
        let client = UdpSocket::bind(any(v6)).unwrap();
        client.connect(frontend(v6, port::TO_HOST)).unwrap();
        client.send(b"x").unwrap();
        let mut bytes = [0; 8];
        assert_eq!(
            server.recv_from(&mut bytes).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
        assert!(pair.kernel.dialled().unwrap().is_empty());
    });
}

#[test]
fn where_only_the_host_is_served_a_pods_sockets_dial_as_they_are_told() {
    let config = Config {
        socket_lb: socket_lb::HOST,
        ..POD
    };
    sockets(config, |pair, v6| {
        let socket = socket2::Socket::new(
            if v6 {
                socket2::Domain::IPV6
            } else {
                socket2::Domain::IPV4
            },
            socket2::Type::STREAM,
            None,
        )
        .unwrap();
        socket.set_nonblocking(true).unwrap();
        // It stays on its way to nowhere.
        let _ = socket.connect(&frontend(v6, port::TO_HOST).into());
        assert!(pair.kernel.dialled().unwrap().is_empty());
    });
}

#[test]
fn svc_32_a_loopback_frontend_is_the_hosts_alone() {
    for (config, serves) in [(HOST, true), (POD, false)] {
        sockets(config, move |pair, v6| {
            let _server = TcpListener::bind(local(v6)).unwrap();
            let loopback = ip(if v6 { "::1" } else { "127.0.0.1" });
            let service = Service {
                id: service_id(port::TO_HOST, v6, service_scope::CLUSTER),
                slots: 1,
                ..Service::default()
            };
            pair.put_service(key(loopback, 30099, 6), service);
            let outcome = TcpStream::connect((loopback, 30099));
            assert_eq!(outcome.is_ok(), serves, "{outcome:?}");
        });
    }
}

#[test]
fn a_socket_that_dials_a_service_is_counted_for_it() {
    sockets(HOST, |pair, v6| {
        let service = service_id(port::TO_HOST, v6, service_scope::CLUSTER);
        let server = TcpListener::bind(local(v6)).unwrap();
        for number in 1..=2 {
            TcpStream::connect(frontend(v6, port::TO_HOST)).unwrap();
            assert_eq!(pair.kernel.opened().unwrap().get(&service), Some(&number));
        }
        drop(server);
        // All that a socket sends to one frontend is one.
        let client = UdpSocket::bind(any(v6)).unwrap();
        for _ in 0..2 {
            client.send_to(b"q", frontend(v6, port::TO_HOST)).unwrap();
            assert_eq!(pair.kernel.opened().unwrap().get(&service), Some(&3));
        }
    });
}
