//! Services as sockets use them: real ones, in a cgroup of the test's own.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cni_ebpf::abi::{
    Addr, Affinity, AffinityKey, Config, Dialled, MemberKey, Racy, Service, client_kind, service_flags,
    service_scope, socket_lb,
};
use cni_tests::world::{self, THIS_NETNS, backend, ip, netns_cookie, port, service_id};
use nix::sched::{CloneFlags, unshare};

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
        let _stream = dial(frontend(v6, port::TO_HOST));
        assert!(pair.kernel.dialled().unwrap().is_empty());
    });
}

/// A stream that stays on its way, wherever that leads.
fn dial(to: SocketAddr) -> socket2::Socket {
    let kind = socket2::Type::STREAM;
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), kind, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    let _ = socket.connect(&to.into());
    socket
}

/// Streams of the calling thread's namespace, as many as a choice among two would not all lead to one.
fn dial_often(to: SocketAddr) -> Vec<socket2::Socket> {
    (0..20).map(|_| dial(to)).collect()
}

/// A Service whose clients stay for a second with the backend that they had, and who they are.
struct Affine {
    v6: bool,
    id: u32,
}

impl Affine {
    const PORT: u16 = 5003;
    const BACKENDS: [u32; 2] = [backend::POD_A, backend::POD_B];

    fn new(pair: &mut Pair, v6: bool) -> Self {
        let affine = Self {
            v6,
            id: 6000 + u32::from(v6),
        };
        for (slot, backend) in (0..).zip(Self::BACKENDS) {
            let number = affine.number(backend);
            pair.put_slot(affine.id, slot, number);
            let member = MemberKey {
                service: affine.id,
                backend: number,
            };
            pair.put_member(member, true);
        }
        let service = Service {
            id: affine.id,
            slots: 2,
            flags: service_flags::AFFINITY,
            affinity_seconds: 1,
            ..Service::default()
        };
        pair.put_service(key(vip(v6), Self::PORT, 6), service);
        affine
    }

    fn number(&self, backend: u32) -> u32 {
        backend + if self.v6 { backend::V6 } else { 0 }
    }

    fn frontend(&self) -> SocketAddr {
        frontend(self.v6, Self::PORT)
    }

    /// As if the namespace had dialled a backend as long ago.
    fn pin(&self, pair: &mut Pair, netns: u64, backend: u32, ago: Duration) {
        let client = AffinityKey {
            client: Addr { hi: 0, lo: netns },
            service: self.id,
            kind: client_kind::NETNS,
        };
        let seen = world::monotonic() - u64::try_from(ago.as_nanos()).unwrap();
        let last = Affinity {
            seen: Racy::new(seen),
            backend: self.number(backend),
            pad: 0,
        };
        pair.kernel.affinity(client, &last).unwrap();
    }

    /// How many sockets were connected to each backend.
    fn taken(&self, pair: &mut Pair) -> [usize; 2] {
        let dialled = pair.kernel.dialled().unwrap();
        let of = |backend| {
            let number = self.number(backend);
            let is_of = |one: &&Dialled| one.service == self.id && one.backend == number;
            dialled.iter().filter(is_of).count()
        };
        Self::BACKENDS.map(of)
    }
}

#[test]
fn svc_49_a_client_that_is_connected_is_its_namespace() {
    sockets(POD, |pair, v6| {
        let affine = Affine::new(pair, v6);
        let (say, hear) = mpsc::channel();
        let (go, begin) = mpsc::channel();
        let to = affine.frontend();
        let elsewhere = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            say.send(netns_cookie().unwrap()).unwrap();
            begin.recv().unwrap();
            dial_often(to)
        });
        let [first, second] = Affine::BACKENDS;
        affine.pin(pair, netns_cookie().unwrap(), first, Duration::ZERO);
        affine.pin(pair, hear.recv().unwrap(), second, Duration::ZERO);
        let _ours = dial_often(to);
        assert_eq!(affine.taken(pair), [20, 0]);
        go.send(()).unwrap();
        let _theirs = elsewhere.join().unwrap();
        assert_eq!(affine.taken(pair), [20, 20]);
    });
}

#[test]
fn svc_50_a_namespace_may_change_its_backend_when_its_time_is_over() {
    sockets(POD, |pair, v6| {
        let affine = Affine::new(pair, v6);
        let netns = netns_cookie().unwrap();
        let mut streams = Vec::new();
        for (ago, changes) in [(Duration::ZERO, false), (Duration::from_millis(1_100), true)] {
            for _ in 0..20 {
                affine.pin(pair, netns, Affine::BACKENDS[0], ago);
                streams.push(dial(affine.frontend()));
            }
            let [_, changed] = affine.taken(pair);
            assert_eq!(changed > 0, changes, "{changed} of 20");
        }
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
