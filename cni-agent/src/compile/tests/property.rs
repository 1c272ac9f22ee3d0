//! Compared with a naive reading of the same objects.

use std::net::{IpAddr, Ipv4Addr};

use cni_ebpf::abi::{Addr, Prefix, Route, route_action, route_flags};
use cni_plugin::{Attachment, Mac};
use proptest::prelude::*;

use crate::{
    compile::{compile, compile_endpoints, endpoint_keys},
    config::{Config, Routing},
    desired::{Desired, Table},
    kernel::{Scope, fake::FakeKernel},
    model::{Endpoint, Event, Node, Object, Phase, Pod, PodName, Rates},
    reconcile::{Reconciler, Removals},
    state::State,
};

/// Longest prefix, by looking at all of them.
fn look_up(desired: &Desired, ip: IpAddr) -> Option<Route> {
    let matches = |prefix: &&Prefix| {
        let (network, length) = prefix.parts();
        ipnetwork::IpNetwork::new(network, length).is_ok_and(|range| range.contains(ip))
    };
    let best = desired
        .tables
        .routes
        .keys()
        .filter(matches)
        .max_by_key(|prefix| prefix.len)?;
    desired.tables.routes.get(best).copied()
}

/// Node `n` of the cluster; this one is 0.
fn node(n: u8) -> Node {
    Node {
        name: format!("node-{n}"),
        addresses: vec![node_address(n)],
        pod_cidrs: vec![
            format!("10.{n}.0.0/16").parse().unwrap(),
            format!("fd00:{n}::/64").parse().unwrap(),
        ],
        ..Node::default()
    }
}

fn node_address(n: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, n + 1).into()
}

pub(super) fn endpoint(id: u8) -> Endpoint {
    Endpoint {
        id: id.into(),
        network: "net".into(),
        attachment: Attachment::new(format!("c{id}"), "eth0"),
        pod: None,
        pod_uid: String::new(),
        confirmed: false,
        // Every third one has an address of another IPAM's range.
        addresses: vec![
            if id.is_multiple_of(3) {
                format!("172.30.0.{id}")
            } else {
                format!("10.0.0.{id}")
            }
            .parse()
            .unwrap(),
        ],
        delegated: id.is_multiple_of(3),
        mac: Mac([2, 0, 0, 0, 0, id]),
        host_mac: Mac([2, 0, 0, 0, 1, id]),
        mtu: 1450,
        via_stack: id.is_multiple_of(2),
        rates: Rates {
            egress: u64::from(id % 2) * 1000,
            ..Rates::default()
        },
        created: 1,
        phase: Phase::Programmed {
            ifindex: 100 + u32::from(id),
        },
    }
}

fn cluster(nodes: u8, endpoints: u8, pods: u8, tunnel: bool) -> (Config, State) {
    let routing = if tunnel { Routing::Vxlan } else { Routing::Direct };
    let config = Config {
        node_name: "node-0".into(),
        routing,
        ..Config::default()
    };
    let mut state = State::new([]);
    for n in 0..nodes.max(1) {
        state.handle(Event::Set(Object::Node(node(n))));
    }
    state.devices = vec![
        FakeKernel::device("eth0", 2, &["192.0.2.1/24"]),
        FakeKernel::tunnel_device(),
    ];
    for id in 1..=endpoints {
        state.endpoints.insert(id.into(), endpoint(id));
    }
    for n in 0..pods {
        let name = PodName {
            namespace: "n".into(),
            name: format!("p{n}"),
        };
        let addresses = [Ipv4Addr::new(10, n % nodes.max(1), 0, n + 1).into()].into();
        state.handle(Event::Set(Object::Pod(Pod {
            name,
            addresses,
            ..Pod::default()
        })));
    }
    (config, state)
}

pub(super) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

proptest! {
    #[test]
    fn every_address_lies_where_the_objects_say(
        nodes in 1u8..6, tunnel: bool, masquerade: bool,
        octets in prop_oneof![
            any::<[u8; 4]>(),
            (0u8..8, any::<[u8; 2]>()).prop_map(|(n, [a, b])| [10, n, a, b]),
            (0u8..8).prop_map(|n| [192, 0, 2, n]),
        ],
    ) {
        let (mut config, state) = cluster(nodes, 0, 0, tunnel);
        config.masquerade.enabled = masquerade;
        let compiled = compile(&config, &state);
        prop_assert!(compiled.complete && compiled.problems.is_empty(), "{:?}", compiled.problems);
        let ip = IpAddr::from(octets);
        let route = look_up(&compiled.desired, ip).unwrap();
        let found = (route.action, route.flags, IpAddr::from(route.gateway));
        let none = IpAddr::from(Addr::UNSPECIFIED);
        let node_of = |ip: IpAddr| (0..nodes).find(|n| node_address(*n) == ip);
        let pod_of = |ip: IpAddr| (0..nodes).find(|n| node(*n).pod_cidrs[0].contains(ip));
        let away = if tunnel { route_action::TUNNEL } else { route_action::DIRECT };
        let expected = match (node_of(ip), pod_of(ip)) {
            (Some(0), _) => (route_action::HOST, route_flags::NODE, none),
            (Some(n), _) if tunnel => (route_action::TUNNEL, route_flags::NODE, node_address(n)),
            (Some(_), _) => (route_action::FIB, route_flags::NODE, none),
            (None, Some(0)) => (route_action::ENDPOINTS, 0, none),
            (None, Some(n)) => (away, u8::from(tunnel) * route_flags::DSR, node_address(n)),
            (None, None) => (route_action::FIB, u8::from(masquerade) * route_flags::MASQUERADE, none),
        };
        prop_assert_eq!(found, expected);
    }

    /// What an ADD writes is a part of the whole: the next look at everything has nothing to correct.
    #[test]
    fn a_part_is_a_part_of_the_whole(endpoints in 1u8..12, tunnel: bool) {
        let (config, state) = cluster(3, endpoints, 0, tunnel);
        let whole = compile(&config, &state).desired;
        let part = compile_endpoints(&config, &state, state.endpoints.values().take(3)).unwrap();
        prop_assert_eq!(part.config, whole.config);
        for table in Table::ALL {
            let all = whole.tables.entries(*table);
            for entry in part.tables.entries(*table) {
                prop_assert!(all.contains(&entry), "{table:?}");
            }
        }
        prop_assert!(part.routes.iter().all(|(key, route)| whole.routes.get(key) == Some(route)));
        prop_assert!(part.links.iter().all(|(key, ifindex)| whole.links.get(key) == Some(ifindex)));
        prop_assert!(part.neighbours.iter().all(|(key, mac)| whole.neighbours.get(key) == Some(mac)));
        prop_assert!(part.sysctls.iter().all(|(key, value)| whole.sysctls.get(key) == Some(value)));
        prop_assert!(part.veths.iter().all(|(key, veth)| whole.veths.get(key) == Some(veth)));
    }

    /// What a DEL removes is what the whole does not have without the endpoint, no more and no less.
    #[test]
    fn a_removal_leaves_the_whole_without_it(endpoints in 1u8..8, pods in 0u8..8, gone in 1u32..8, tunnel: bool) {
        let (config, mut state) = cluster(3, endpoints, pods, tunnel);
        let kernel = FakeKernel::default();
        let mut reconciler = Reconciler::new(kernel.clone());
        for endpoint in state.endpoints.values() {
            kernel.add_veth(&endpoint.host_ifname(), endpoint.ifindex().unwrap());
        }
        run(async {
            let whole = compile(&config, &state).desired;
            let observed = reconciler.observe(&whole, Scope::Whole).await.unwrap();
            reconciler.converge(&whole, &observed, Removals::Allowed).await;
            if let Some(endpoint) = state.endpoints.remove(&gone) {
                let keys = endpoint_keys(&config, &state, [&endpoint]);
                reconciler.remove_keys(&keys, &Desired::default()).await.unwrap();
            }
        });
        let rest = compile(&config, &state).desired;
        let held = kernel.lock();
        prop_assert_eq!(&held.tables, &rest.tables);
        prop_assert_eq!(&held.routes, &rest.routes);
        prop_assert!(held.links.keys().eq(rest.links.keys()));
        prop_assert!(held.veths.keys().eq(rest.veths.keys()));
    }

    /// Objects that come late, in another order, or first in an older version make no difference to the result.
    #[test]
    fn rel_02_the_order_of_events_does_not_matter(
        nodes in 1u8..5, pods in 0u8..6, tunnel: bool,
        order in proptest::collection::vec(any::<u64>(), 16), stale in any::<u16>(),
    ) {
        let (config, state) = cluster(nodes, 3, pods, tunnel);
        let wanted = compile(&config, &state);
        let mut events: Vec<Event> = state.nodes.values().cloned().map(|node| Event::Set(Object::Node(node))).collect();
        events.extend(state.pods.values().cloned().map(|pod| Event::Set(Object::Pod(pod))));
        events.push(Event::Devices(state.devices.clone()));
        let mut keyed: Vec<(u64, Event)> = order.into_iter().cycle().zip(events).collect();
        keyed.sort_by_key(|(key, _)| *key);
        let mut other = State::new([]);
        other.endpoints.clone_from(&state.endpoints);
        for (i, (_, event)) in keyed.into_iter().enumerate() {
            if let (Event::Set(Object::Node(node)), true) = (&event, stale & (1 << i) != 0) {
                let old = Node { pod_cidrs: vec!["10.77.0.0/16".parse().unwrap()], addresses: Vec::new(), ..node.clone() };
                other.handle(Event::Set(Object::Node(old)));
            }
            other.handle(event);
        }
        prop_assert_eq!(compile(&config, &other), wanted);
    }
}
