//! What is in the world.

use std::net::IpAddr;

use cni_ebpf::abi::*;
use cni_ebpf::datapath::Fib;

use super::{NODE_MAC, ifindex, ip, mac, pod};

pub(super) fn prefix(text: &str) -> Prefix {
    let (ip, len) = text.split_once('/').unwrap();
    Prefix::new(ip.parse().unwrap(), len.parse().unwrap()).unwrap()
}

pub(super) fn endpoints() -> Vec<(Addr, Endpoint)> {
    let all = [
        (2, ifindex::POD_A, 0, 0, 0),
        (3, ifindex::POD_B, 0, 0, 0),
        (4, ifindex::POD_STACK, endpoint_flags::VIA_STACK, 0, 0),
        (5, ifindex::POD_RULES, 0, 1, 2),
        (6, ifindex::POD_LIMIT, endpoint_flags::LIMIT_EGRESS, 0, 0),
        (
            7,
            ifindex::POD_PACED,
            endpoint_flags::LIMIT_EGRESS | endpoint_flags::PACE,
            0,
            0,
        ),
    ];
    all.iter()
        .flat_map(|&(number, ifindex, flags, egress_rules, ingress_rules)| {
            [false, true].map(|v6| {
                let endpoint = Endpoint {
                    id: ifindex,
                    ifindex,
                    mac: mac(ifindex),
                    host_mac: NODE_MAC,
                    flags,
                    egress_rules,
                    ingress_rules,
                    mtu: 1500,
                    egress_rate: if number == 7 { 1_000_000 } else { 1 },
                    egress_burst: 1000,
                    ..Endpoint::default()
                };
                (Addr::from(pod(number, v6)), endpoint)
            })
        })
        .collect()
}

pub(super) fn routes() -> Vec<(Prefix, Route)> {
    let route = |action, flags, gateway: &str, ifindex| Route {
        action,
        flags,
        gateway: Addr::from(ip(gateway)),
        ifindex,
        ..Route::default()
    };
    // Another address of the node behind the tunnel.
    let second_of_the_tunnels = Route {
        mtu: 1450,
        ..route(route_action::TUNNEL, route_flags::NODE, "192.0.2.3", 0)
    };
    vec![
        (prefix("10.1.0.0/16"), route(route_action::ENDPOINTS, 0, "::", 0)),
        (prefix("fd00:1::/64"), route(route_action::ENDPOINTS, 0, "::", 0)),
        (
            prefix("192.0.2.1/32"),
            route(route_action::HOST, route_flags::NODE, "::", 0),
        ),
        (
            prefix("2001:db8::1/128"),
            route(route_action::HOST, route_flags::NODE, "::", 0),
        ),
        (
            prefix("10.2.0.0/16"),
            route(route_action::DIRECT, 0, "192.0.2.2", ifindex::NETDEV),
        ),
        (
            prefix("fd00:2::/64"),
            route(route_action::DIRECT, 0, "2001:db8::2", ifindex::NETDEV),
        ),
        (
            prefix("10.3.0.0/16"),
            Route {
                mtu: 1450,
                ..route(route_action::TUNNEL, route_flags::DSR, "192.0.2.3", 0)
            },
        ),
        (
            prefix("fd00:3::/64"),
            route(route_action::TUNNEL, route_flags::DSR, "192.0.2.3", 0),
        ),
        (prefix("192.0.2.33/32"), second_of_the_tunnels),
        (prefix("2001:db8::33/128"), second_of_the_tunnels),
        (prefix("10.4.0.0/16"), route(route_action::FIB, 0, "::", 0)),
        (
            prefix("10.9.0.0/16"),
            route(route_action::UNREACHABLE, 0, "::", 0),
        ),
        (prefix("10.96.0.0/16"), route(route_action::SERVICE, 0, "::", 0)),
        (prefix("fd00:96::/112"), route(route_action::SERVICE, 0, "::", 0)),
        (
            prefix("0.0.0.0/0"),
            route(route_action::FIB, route_flags::MASQUERADE, "::", 0),
        ),
        (
            prefix("::/0"),
            route(route_action::FIB, route_flags::MASQUERADE, "::", 0),
        ),
    ]
}

pub(super) fn device() -> Device {
    Device {
        masquerade_v4: Addr::from(ip("192.0.2.1")),
        masquerade_v6: Addr::from(ip("2001:db8::1")),
        mac: NODE_MAC,
        mtu: 1500,
        flags: device_flags::PACES,
        ..Device::default()
    }
}

/// Whose link addresses the kernel knows.
pub(super) const NEIGHBOURS: [&str; 4] = ["192.0.2.2", "192.0.2.254", "2001:db8::2", "2001:db8::fe"];

/// The MTU of the routes to 198.51.100.77 and 2001:db8:5::/48.
pub(super) const NARROW: u32 = 1400;

/// What [`Kernel::new`]'s routing table says.
pub(super) fn fib(dst: &Addr, length: u32) -> Fib {
    match route(dst, length) {
        Fib::Device { .. } if length > device().mtu => Fib::TooBig { mtu: device().mtu },
        found => found,
    }
}

fn route(dst: &Addr, length: u32) -> Fib {
    let far = |gateway: &str| Fib::Device {
        ifindex: ifindex::NETDEV,
        gateway: Addr::from(ip(gateway)),
    };
    match IpAddr::from(*dst) {
        IpAddr::V4(v4) if v4.is_loopback() => Fib::Stack,
        IpAddr::V4(v4) => match v4.octets() {
            [192, 0, 2, 1 | 255] | [203, 0, 113, _] => Fib::Stack,
            [192, 0, 2, _] => Fib::Device {
                ifindex: ifindex::NETDEV,
                gateway: *dst,
            },
            [198, 51, 100, 77] if length > NARROW => Fib::TooBig { mtu: NARROW },
            _ => far("192.0.2.254"),
        },
        IpAddr::V6(v6) => match v6.segments() {
            [0, 0, 0, 0, 0, 0, 0, 1] => Fib::Stack,
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, 0 | 1] | [0x2001, 0xdb8, 0xdead, ..] => Fib::Stack,
            [0x2001, 0xdb8, 0, 0, ..] => Fib::Device {
                ifindex: ifindex::NETDEV,
                gateway: *dst,
            },
            [0x2001, 0xdb8, 5, ..] if length > NARROW => Fib::TooBig { mtu: NARROW },
            _ => far("2001:db8::fe"),
        },
    }
}

#[derive(Default)]
pub(super) struct Services {
    pub(super) frontends: Vec<(ServiceKey, Service)>,
    pub(super) slots: Vec<(u32, Slot)>,
    pub(super) members: Vec<(MemberKey, u32)>,
    pub(super) backends: Vec<(u32, Backend)>,
}

/// Who may use frontends with ranges: somebody outside, and as number [`NODES_RANGES`] this node.
pub(super) fn ranges() -> Vec<(SourceRange, u32)> {
    let allowed = [
        (1, "198.51.100.0/24"),
        (1, "2620:fe::/32"),
        (NODES_RANGES, "192.0.2.1/32"),
        (NODES_RANGES, "2001:db8::1/128"),
    ];
    allowed
        .map(|(ranges, text)| {
            let prefix = prefix(text);
            let source = SourceRange {
                len: 32 + prefix.len,
                ranges,
                words: prefix.words,
            };
            (source, 1)
        })
        .to_vec()
}

pub const NODES_RANGES: u32 = 2;

pub(super) fn settings() -> Settings {
    Settings {
        node_v4: Addr::from(ip("192.0.2.1")),
        node_v6: Addr::from(ip("2001:db8::1")),
        pods_v6: Addr::from(pod(0, true)).hi,
        ..Settings::default()
    }
}

/// Ports of the frontends, which are the ClusterIP's (10.96.0.1, fd00:96::1) if below 30000 and else the node's.
pub mod port {
    /// Pod B's 8080.
    pub const TO_B: u16 = 80;
    /// Nobody, and nobody says so.
    pub const EMPTY: u16 = 81;
    /// The node's own 6443.
    pub const TO_HOST: u16 = 82;
    /// Pod A's 8080.
    pub const TO_A: u16 = 83;
    /// Refused: no endpoint anywhere.
    pub const REFUSED: u16 = 84;
    /// Dropped: endpoints elsewhere only.
    pub const ELSEWHERE: u16 = 85;
    /// Pods A and B, with affinity.
    pub const AFFINE: u16 = 86;
    /// Pod B's 8080, with the source of every client translated.
    pub const HIDDEN: u16 = 87;
    /// A pod of another node, behind the tunnel.
    pub const TUNNELLED: u16 = 88;

    /// Local traffic policy: pod B from outside, pod A from inside.
    pub const NODE_LOCAL: u16 = 30080;
    /// Cluster traffic policy: pod B.
    pub const NODE_CLUSTER: u16 = 30081;
    /// A pod of another node, behind a router.
    pub const NODE_REMOTE: u16 = 30082;
    /// A pod of another node, behind the tunnel.
    pub const NODE_TUNNELLED: u16 = 30083;
    pub const NODE_REFUSED: u16 = 30084;
    pub const NODE_ELSEWHERE: u16 = 30085;
    /// The node's own 6443.
    pub const NODE_HOST: u16 = 30086;
    /// Pod B, for some sources only.
    pub const NODE_RANGES: u16 = 30087;
    /// All backends but the node, by a Maglev table.
    pub const NODE_MAGLEV: u16 = 30088;
    /// The same, with affinity.
    pub const NODE_MAGLEV_AFFINE: u16 = 30089;
    /// Pod B, by a table that is not there.
    pub const NODE_MAGLEV_LOST: u16 = 30090;
    /// A pod of another node, behind the tunnel, which answers by itself.
    pub const NODE_DIRECT: u16 = 30091;
    /// Pod B, and whoever is asked answers by itself.
    pub const NODE_DIRECT_HERE: u16 = 30092;
    /// As [`NODE_DIRECT`], and so by every node.
    pub const NODE_DIRECT_ANY: u16 = 30093;
}

/// The backends' numbers.
pub mod backend {
    pub const POD_B: u32 = 1;
    pub const HOST: u32 = 2;
    pub const POD_A: u32 = 3;
    pub const ROUTED: u32 = 4;
    pub const TUNNELLED: u32 = 5;
    /// What is added for IPv6.
    pub const V6: u32 = 10;
}

/// The backends of [`port::NODE_MAGLEV`], who have the places of its table in turn.
pub const MAGLEV: [u32; 4] = [
    backend::POD_A,
    backend::POD_B,
    backend::ROUTED,
    backend::TUNNELLED,
];
pub const MAGLEV_SIZE: u32 = 251;

pub(super) fn tables() -> Vec<(MaglevKey, MaglevChunk)> {
    let mut rows = Vec::new();
    for (port, v6) in [port::NODE_MAGLEV, port::NODE_MAGLEV_AFFINE]
        .into_iter()
        .flat_map(|port| [(port, false), (port, true)])
    {
        let offset = if v6 { backend::V6 } else { 0 };
        for chunk in 0..MAGLEV_SIZE.div_ceil(MaglevChunk::PLACES) {
            let place = |within| {
                let place = chunk as usize * 64 + within;
                let backend = MAGLEV[place % MAGLEV.len()] + offset;
                if place < MAGLEV_SIZE as usize { backend } else { 0 }
            };
            let key = MaglevKey {
                table: service_id(port, v6, service_scope::EXTERNAL),
                chunk,
            };
            let backends = std::array::from_fn(place);
            rows.push((key, MaglevChunk { backends }));
        }
    }
    rows
}

/// A load balancer's address, which no port of the world's is at.
pub fn balancer(v6: bool) -> IpAddr {
    ip(if v6 { "2001:db8:80::1" } else { "203.0.113.80" })
}

/// The number of a frontend's slot set.
pub fn service_id(port: u16, v6: bool, scope: u8) -> u32 {
    u32::from(port) * 4 + u32::from(v6) * 2 + u32::from(scope)
}

/// Where a slot of such a set stands. There is room for two of each.
pub fn place(service: u32, slot: u32) -> u32 {
    service * 2 + slot
}

/// The frontends of [`port`] for TCP, UDP and SCTP.
pub(super) fn services() -> Services {
    let mut services = Services::default();
    for v6 in [false, true] {
        let offset = if v6 { backend::V6 } else { 0 };
        for (number, addr, port) in [
            (backend::POD_B, pod(3, v6), 8080),
            (
                backend::HOST,
                ip(if v6 { "2001:db8::1" } else { "192.0.2.1" }),
                6443,
            ),
            (backend::POD_A, pod(2, v6), 8080),
            (
                backend::ROUTED,
                ip(if v6 { "fd00:2::9" } else { "10.2.0.9" }),
                8080,
            ),
            (
                backend::TUNNELLED,
                ip(if v6 { "fd00:3::9" } else { "10.3.0.9" }),
                8080,
            ),
        ] {
            let backend = Backend {
                addr: Addr::from(addr),
                port: Port::new(port),
                ..Backend::default()
            };
            services.backends.push((number + offset, backend));
        }
        let cluster_ip = ip(if v6 { "fd00:96::1" } else { "10.96.0.1" });
        let node = ip(if v6 { "2001:db8::1" } else { "192.0.2.1" });
        for addr in [cluster_ip, balancer(v6)] {
            let wildcard = ServiceKey {
                addr: Addr::from(addr),
                port: Port::ZERO,
                proto: 0,
                scope: service_scope::CLUSTER,
                pad: 0,
            };
            let refused = Service {
                flags: service_flags::REJECT,
                ..Service::default()
            };
            services.frontends.push((wildcard, refused));
        }
        let (b, a, host) = (backend::POD_B, backend::POD_A, backend::HOST);
        let (routed, tunnelled) = (backend::ROUTED, backend::TUNNELLED);
        let masquerade = service_flags::MASQUERADE;
        let direct = masquerade | service_flags::DSR;
        let (cluster, external) = (service_scope::CLUSTER, service_scope::EXTERNAL);
        let all: &[(u16, u8, u32, &[u32])] = &[
            (port::TO_B, cluster, 0, &[b]),
            (port::EMPTY, cluster, 0, &[]),
            (port::TO_HOST, cluster, 0, &[host]),
            (port::TO_A, cluster, 0, &[a]),
            (port::REFUSED, cluster, service_flags::REJECT, &[]),
            (port::ELSEWHERE, cluster, service_flags::DROP, &[]),
            (port::AFFINE, cluster, service_flags::AFFINITY, &[a, b]),
            (port::HIDDEN, cluster, masquerade, &[b]),
            (port::TUNNELLED, cluster, 0, &[tunnelled]),
            (port::NODE_LOCAL, cluster, 0, &[a]),
            (port::NODE_LOCAL, external, 0, &[b]),
            (port::NODE_CLUSTER, cluster, masquerade, &[b]),
            (port::NODE_CLUSTER, external, masquerade, &[b]),
            (port::NODE_REMOTE, external, masquerade, &[routed]),
            (port::NODE_TUNNELLED, external, masquerade, &[tunnelled]),
            (port::NODE_REFUSED, external, service_flags::REJECT, &[]),
            (port::NODE_ELSEWHERE, external, service_flags::DROP, &[]),
            (port::NODE_HOST, external, masquerade, &[host]),
            (port::NODE_RANGES, external, 0, &[b]),
            (port::NODE_MAGLEV, external, 0, &MAGLEV),
            (
                port::NODE_MAGLEV_AFFINE,
                external,
                service_flags::AFFINITY,
                &MAGLEV,
            ),
            (port::NODE_MAGLEV_LOST, external, 0, &[b]),
            (port::NODE_DIRECT, external, direct, &[tunnelled]),
            (port::NODE_DIRECT_HERE, external, direct, &[b]),
            (
                port::NODE_DIRECT_ANY,
                external,
                direct | service_flags::ANY_NODE,
                &[tunnelled],
            ),
        ];
        for (port, scope, flags, backends) in all {
            let id = service_id(*port, v6, *scope);
            for proto in [6, 17, 132] {
                let key = ServiceKey {
                    addr: Addr::from(if *port < 30000 { cluster_ip } else { node }),
                    port: Port::new(*port),
                    proto,
                    scope: *scope,
                    pad: 0,
                };
                let service = Service {
                    id,
                    slots: u32::try_from(backends.len()).unwrap(),
                    first: place(id, 0),
                    flags: *flags,
                    affinity_seconds: 100,
                    ranges: u32::from(*port == port::NODE_RANGES),
                    maglev: if *port >= port::NODE_MAGLEV { id } else { 0 },
                    maglev_size: if *port >= port::NODE_MAGLEV {
                        MAGLEV_SIZE
                    } else {
                        0
                    },
                };
                services.frontends.push((key, service));
            }
            for (slot, number) in (0..).zip(*backends) {
                let number = number + offset;
                let found = services.backends.iter().find(|(other, _)| *other == number);
                let (_, backend) = found.expect("a backend that there is");
                let value = Slot::new(id, number, backend.addr, backend.port);
                services.slots.push((place(id, slot), value));
                let member = MemberKey {
                    service: id,
                    backend: number,
                };
                services.members.push((member, 1));
            }
        }
    }
    services
}
