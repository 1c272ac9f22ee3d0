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
                ..route(route_action::TUNNEL, 0, "192.0.2.3", 0)
            },
        ),
        (
            prefix("fd00:3::/64"),
            route(route_action::TUNNEL, 0, "192.0.2.3", 0),
        ),
        (prefix("192.0.2.33/32"), second_of_the_tunnels),
        (prefix("2001:db8::33/128"), second_of_the_tunnels),
        (prefix("10.4.0.0/16"), route(route_action::FIB, 0, "::", 0)),
        (
            prefix("10.9.0.0/16"),
            route(route_action::UNREACHABLE, 0, "::", 0),
        ),
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

/// The MTU of the routes to 198.51.100.77 and 2001:db8:5::/48.
pub(super) const NARROW: u32 = 1400;

/// What [`Kernel::new`]'s routing table says. What is larger than the device's packets is the stack's to refuse.
pub(super) fn fib(dst: &Addr, length: u32) -> Fib {
    match route(dst, length) {
        Fib::Device { .. } if length > device().mtu => Fib::Stack,
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
            [198, 51, 100, 77] if length > NARROW => Fib::Stack,
            _ => far("192.0.2.254"),
        },
        IpAddr::V6(v6) => match v6.segments() {
            [0, 0, 0, 0, 0, 0, 0, 1] => Fib::Stack,
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, 0 | 1] | [0x2001, 0xdb8, 0xdead, ..] => Fib::Stack,
            [0x2001, 0xdb8, 0, 0, ..] => Fib::Device {
                ifindex: ifindex::NETDEV,
                gateway: *dst,
            },
            [0x2001, 0xdb8, 5, ..] if length > NARROW => Fib::Stack,
            _ => far("2001:db8::fe"),
        },
    }
}

/// Rules of the pod with rules: it may send TCP to ports 8080 to 8087 (a prefix) of anybody and ping nobody; it takes
/// TCP on port 80 from pods of class 7 and from 10.2.0.0/16.
pub(super) struct Rules {
    pub(super) sets: Vec<(u32, RuleSet)>,
    pub(super) lists: Vec<(RuleKey, RuleList)>,
    pub(super) groups: Vec<(GroupKey, GroupChunk)>,
    pub(super) classes: Vec<(ClassKey, ClassBits)>,
    pub(super) peers: Vec<(Addr, Peer)>,
    pub(super) cidrs: Vec<(Prefix, u32)>,
}

pub(super) fn rules() -> Rules {
    let deny = RuleSet {
        generation: 3,
        flags: rule_set_flags::DEFAULT_DENY,
    };
    let key = |rule_set, direction, port, bits| RuleKey {
        prefix_len: RuleKey::FIXED_BITS + bits,
        rule_set,
        generation: 3,
        direction,
        proto: 6,
        port: Port::new(port),
    };
    let chunk = |word, mask, rule| {
        let group = Group {
            mask,
            word,
            action: action::ALLOW,
            rule,
            pad: 0,
        };
        GroupChunk {
            groups: [group, Group::default(), Group::default(), Group::default()],
        }
    };
    let bits = |any| ClassBits { any, outside: 0 };
    Rules {
        sets: vec![(1, deny), (2, deny)],
        lists: vec![
            (
                key(1, policy_direction::EGRESS, 8080, 13),
                RuleList { list: 1, chunks: 1 },
            ),
            (
                key(2, policy_direction::INGRESS, 80, 16),
                RuleList { list: 2, chunks: 1 },
            ),
        ],
        groups: vec![
            (
                GroupKey { list: 1, chunk: 0 },
                chunk(ClassKey::EVERYBODY_WORD, ClassKey::EVERYBODY_BITS, 11),
            ),
            (GroupKey { list: 2, chunk: 0 }, chunk(4, 0b110, 12)),
        ],
        classes: vec![
            (ClassKey { class: 7, word: 4 }, bits(0b010)),
            (ClassKey { class: 8, word: 4 }, bits(0b100)),
        ],
        peers: vec![
            (
                Addr::from(pod(2, false)),
                Peer {
                    class: 7,
                    flags: peer_flags::POD,
                    ..Peer::default()
                },
            ),
            (
                Addr::from(pod(2, true)),
                Peer {
                    class: 7,
                    flags: peer_flags::POD,
                    ..Peer::default()
                },
            ),
        ],
        cidrs: vec![(prefix("10.2.0.0/16"), 8)],
    }
}

pub(super) type Services = (
    Vec<(ServiceKey, Service)>,
    Vec<(SlotKey, u32)>,
    Vec<(u32, Backend)>,
);

/// 10.96.0.1:80 and fd00:96::1:80 lead to pod B's 8080, port 82 of both to the node's own 6443; port 81 has no backend.
pub(super) fn services() -> Services {
    let key = |addr: &str, port| ServiceKey {
        addr: Addr::from(ip(addr)),
        port: Port::new(port),
        proto: 6,
        scope: service_scope::CLUSTER,
        pad: 0,
    };
    let service = |id, slots| Service {
        id,
        slots,
        ..Service::default()
    };
    let backend = |v6| Backend {
        addr: Addr::from(pod(3, v6)),
        port: Port::new(8080),
        proto: 6,
        ..Backend::default()
    };
    let on_host = |addr: &str| Backend {
        addr: Addr::from(ip(addr)),
        port: Port::new(6443),
        proto: 6,
        ..Backend::default()
    };
    (
        vec![
            (key("10.96.0.1", 80), service(1, 1)),
            (key("fd00:96::1", 80), service(2, 1)),
            (key("10.96.0.1", 81), service(3, 0)),
            (key("10.96.0.1", 82), service(4, 1)),
            (key("fd00:96::1", 82), service(5, 1)),
        ],
        vec![
            (SlotKey { service: 1, slot: 0 }, 1),
            (SlotKey { service: 2, slot: 0 }, 2),
            (SlotKey { service: 4, slot: 0 }, 3),
            (SlotKey { service: 5, slot: 0 }, 4),
        ],
        vec![
            (1, backend(false)),
            (2, backend(true)),
            (3, on_host("192.0.2.1")),
            (4, on_host("2001:db8::1")),
        ],
    )
}
