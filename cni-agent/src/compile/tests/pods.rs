//! What is compiled of changed pods alone, compared with all of it compiled anew.

use std::{collections::BTreeSet, net::IpAddr};

use proptest::prelude::*;

use super::property::{endpoint, run};
use crate::{
    compile::{changed_pods, compile},
    config::{Config, Families, Routing},
    desired::Desired,
    kernel::{Scope, fake::FakeKernel},
    model::{Endpoint, Event, Kind, Node, Object, ObjectKey, Pod, PodName},
    reconcile::{Reconciler, Removals},
    state::State,
};

/// This node is the first.
const NODES: u8 = 4;

/// What happens to a small cluster, in numbers.
#[derive(Clone, Debug)]
enum Happening {
    Pod(Pod),
    PodGone(PodName),
    OnlyPods(BTreeSet<PodName>),
    /// It is there, with or without its range.
    Node(u8, bool),
    NodeGone(u8),
    /// Everything that has been said is put into the kernel.
    Look,
}

fn name(pod: u8) -> PodName {
    PodName {
        namespace: "n".into(),
        name: format!("p{pod}"),
    }
}

fn node_name(node: u8) -> String {
    format!("node-{node}")
}

fn node(n: u8, has_range: bool) -> Node {
    let range = format!("10.0.{n}.0/30").parse().unwrap();
    Node {
        name: node_name(n),
        addresses: vec![[192, 0, 2, n + 1].into()],
        pod_cidrs: if has_range { vec![range] } else { Vec::new() },
        ..Node::default()
    }
}

/// Few, so that pods meet: those of nodes' ranges, some of nobody's, a node's own, and the endpoint's.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        6 => (0..NODES, 1u8..3).prop_map(|(n, last)| [10, 0, n, last].into()),
        4 => (1u8..4).prop_map(|last| [172, 30, 0, last].into()),
        1 => (0..NODES).prop_map(|n| [192, 0, 2, n + 1].into()),
        1 => Just("fd00::1".parse().unwrap()),
    ]
}

fn pod() -> impl Strategy<Value = Pod> {
    let fate = (prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    let addresses = prop::collection::vec(address(), 0..3);
    // One node more than there is; this node less often than the others.
    let node = prop_oneof![1 => Just(0), 8 => 1..=NODES];
    (0u8..6, addresses, node, fate, 0u8..2).prop_map(|(pod, addresses, node, fate, label)| Pod {
        name: name(pod),
        addresses: addresses.into(),
        node: node_name(node).into(),
        host_network: fate.0,
        finished: fate.1,
        labels: [("turn".to_owned(), label.to_string())].into_iter().collect(),
        ..Pod::default()
    })
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        8 => pod().prop_map(Happening::Pod),
        3 => (0u8..6).prop_map(|pod| Happening::PodGone(name(pod))),
        1 => prop::collection::btree_set(0u8..6, 0..6)
            .prop_map(|pods| Happening::OnlyPods(pods.into_iter().map(name).collect())),
        1 => (0..NODES, any::<bool>()).prop_map(|(n, has_range)| Happening::Node(n, has_range)),
        1 => (1..NODES).prop_map(Happening::NodeGone),
        6 => Just(Happening::Look),
    ]
}

/// Another IPAM gave it its address.
fn own() -> Endpoint {
    endpoint(3)
}

/// As the agent does it: part by part where that is enough.
struct Follower {
    config: Config,
    state: State,
    kernel: FakeKernel,
    reconciler: Reconciler<FakeKernel>,
    dirty: bool,
    parts: usize,
}

impl Follower {
    fn new(config: Config) -> Self {
        let mut state = State::new([]);
        state.devices = vec![
            FakeKernel::device("eth0", 2, &["192.0.2.1/29"]),
            FakeKernel::tunnel_device(),
        ];
        let kernel = FakeKernel::default();
        kernel.add_veth(&own().host_ifname(), own().ifindex().unwrap());
        state.endpoints.insert(own().id, own());
        for n in 0..NODES {
            state.handle(Event::Set(Object::Node(node(n, true))));
        }
        Self {
            config,
            state,
            reconciler: Reconciler::new(kernel.clone()),
            kernel,
            dirty: true,
            parts: 0,
        }
    }

    fn hear(&mut self, happening: Happening) {
        let event = match happening {
            Happening::Pod(pod) => Event::Set(Object::Pod(pod)),
            Happening::PodGone(name) => Event::Gone(ObjectKey::Pod(name)),
            Happening::OnlyPods(names) => {
                Event::Only(Kind::Pod, names.into_iter().map(ObjectKey::Pod).collect())
            }
            Happening::Node(n, has_range) => Event::Set(Object::Node(node(n, has_range))),
            Happening::NodeGone(n) => Event::Gone(ObjectKey::Node(node_name(n))),
            Happening::Look => return,
        };
        self.dirty |= self.state.handle(event);
    }

    async fn look(&mut self) {
        let changes = self.state.pods.take_changed();
        let part = changed_pods(&self.config, &self.state, &changes).filter(|_| !self.dirty);
        let outcome = match part {
            Some(part) => {
                self.parts += 1;
                let (desired, touched) = (part.desired, part.touched);
                assert!(
                    desired
                        .tables
                        .peers
                        .keys()
                        .all(|key| touched.tables.peers.contains_key(key))
                );
                self.reconciler
                    .replace_keys(desired, &touched, Removals::Allowed)
                    .await
                    .unwrap()
            }
            None => {
                let whole = compile(&self.config, &self.state).desired;
                let observed = self.reconciler.observe(&whole, Scope::Whole).await.unwrap();
                self.reconciler
                    .converge(&whole, &observed, Removals::Allowed)
                    .await
            }
        };
        assert!(outcome.is_complete(), "{outcome:?}");
        self.dirty = false;
    }

    fn wanted(&self) -> Desired {
        compile(&self.config, &self.state).desired
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn parts_come_to_the_same_as_the_whole(
        tunnel: bool, v4_only: bool, happenings in prop::collection::vec(happening(), 1..40),
    ) {
        let config = Config {
            node_name: node_name(0),
            routing: if tunnel { Routing::Vxlan } else { Routing::Direct },
            families: if v4_only { Families::V4 } else { Families::Dual },
            ..Config::default()
        };
        let mut follower = Follower::new(config);
        for happening in happenings.into_iter().chain([Happening::Look]) {
            let looks = matches!(happening, Happening::Look);
            follower.hear(happening);
            if looks {
                run(follower.look());
                let (wanted, held) = (follower.wanted(), follower.kernel.lock());
                prop_assert_eq!(&held.tables, &wanted.tables);
                prop_assert_eq!(&held.routes, &wanted.routes);
            }
        }
    }
}

#[test]
fn pods_elsewhere_are_parts_and_pods_here_are_not() {
    let config = Config {
        node_name: node_name(0),
        ..Config::default()
    };
    let mut follower = Follower::new(config);
    run(follower.look());
    let pod = |n: u8, address: [u8; 4]| {
        Happening::Pod(Pod {
            name: name(n),
            addresses: [address.into()].into(),
            node: node_name(n).into(),
            ..Pod::default()
        })
    };
    for (n, address, parts) in [
        (1, [10, 0, 1, 1], 1),
        (2, [172, 30, 0, 2], 2),
        // The endpoint's address, and this node's pod.
        (3, [172, 30, 0, 3], 2),
        (0, [10, 0, 0, 1], 2),
    ] {
        follower.hear(pod(n, address));
        run(follower.look());
        assert_eq!(follower.parts, parts, "{address:?}");
    }
}
