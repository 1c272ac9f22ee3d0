//! Frontends that more than one Service asks for.

use std::net::IpAddr;

use super::{room::World, *};
use crate::{
    compile::service::{self, Place},
    model::{HostPort, Pod, Protocol, ServicePort},
};

/// One that asks for these frontends, and is as old as that.
fn claimant(number: u8, keys: &BTreeSet<u8>, created: i64) -> Compiled {
    let mut compiled = compiled(number, &BTreeSet::from([number]), false);
    let frontend = compiled.frontends[0];
    let all = keys.iter().map(|last| Frontend {
        key: key(*last),
        ..frontend
    });
    compiled.frontends = all.collect();
    compiled.created = created;
    compiled
}

/// Who should have what.
fn expected(wanted: &BTreeMap<u8, Compiled>) -> BTreeMap<ServiceKey, BTreeSet<u8>> {
    let mut best: BTreeMap<ServiceKey, (i64, u8)> = BTreeMap::new();
    for (number, compiled) in wanted {
        for frontend in &compiled.frontends {
            let claim = (compiled.created, *number);
            let owner = best.entry(frontend.key).or_insert(claim);
            *owner = claim.min(*owner);
        }
    }
    best.into_iter()
        .map(|(key, (_, number))| (key, BTreeSet::from([number])))
        .collect()
}

proptest! {
    #[test]
    fn a_frontend_is_the_same_services_in_whatever_order_they_come_and_after_a_restart(
        steps in proptest::collection::vec(
            (0u8..5, proptest::collection::btree_set(100u8..104, 0..4), 0i64..3, 0u8..8), 1..24,
        ),
    ) {
        let mut world = World::new(ample(0).rows);
        for (number, keys, created, fate) in steps {
            match fate {
                0 => _ = world.wanted.remove(&number),
                _ => _ = world.wanted.insert(number, claimant(number, &keys, created)),
            }
            world.change([name(number)].into());
            if fate == 1 {
                world.restart();
            }
            prop_assert_eq!(world.served(), expected(&world.wanted));
            let losers: BTreeSet<u8> = world.wanted.iter().filter(|(number, compiled)| {
                let mut keys = compiled.frontends.iter().map(|frontend| frontend.key);
                keys.any(|key| expected(&world.wanted)[&key] != BTreeSet::from([**number]))
            }).map(|(number, _)| *number).collect();
            let told = world.book.troubled().map(|(name, _)| name.name[1..].parse().unwrap()).collect();
            let troubles = Troubles { frontend: losers.len(), ..Troubles::default() };
            prop_assert_eq!(world.book.troubles(), troubles);
            prop_assert_eq!(losers, told, "all who lost one are told, and nobody else");
        }
    }
}

fn node() -> Place {
    let ip: IpAddr = [192, 0, 2, 1].into();
    Place {
        node: "one".into(),
        node_ports: [ip].into(),
        own: [ip].into(),
        ..Place::default()
    }
}

fn node_port(number: u8, created: i64) -> Compiled {
    let object = crate::model::Service {
        name: name(number),
        created,
        cluster_ips: [[10, 96, 0, number].into()].into(),
        ports: [ServicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: Some(30_080),
        }]
        .into(),
        ..crate::model::Service::default()
    };
    service::compile(&node(), &object, &[])
}

fn host_port() -> Compiled {
    let pod = Pod {
        node: "one".into(),
        addresses: [[10, 1, 0, 2].into()].into(),
        host_ports: vec![HostPort {
            address: None,
            protocol: Protocol::Tcp,
            port: 30_080,
            container_port: 8080,
        }],
        ..Pod::default()
    };
    service::host_ports(&node(), &pod)
}

#[test]
fn a_node_port_is_the_older_services_and_a_services_before_a_pods() {
    let asked = ServiceKey {
        addr: Addr::v4([192, 0, 2, 1]),
        port: Port::new(30_080),
        proto: 6,
        scope: service_scope::EXTERNAL,
        pad: 0,
    };
    let claims = [
        (1, node_port(1, 7), "s2"),
        (2, node_port(2, 5), ""),
        (3, host_port(), "s2"),
    ];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut world = World::new(ample(0).rows);
        for i in order {
            let (number, compiled, _) = &claims[i];
            world.wanted.insert(*number, compiled.clone());
            world.change([name(*number)].into());
        }
        assert_eq!(world.book.owners[&asked], name(2), "{order:?}");
        for (number, _, better) in &claims {
            let mut troubled = world.book.troubled();
            let why = troubled.find(|(other, _)| **other == *name(*number));
            let why = why.map(|(_, why)| why.join("\n")).unwrap_or_default();
            assert_eq!(why.is_empty(), better.is_empty(), "{why}");
            assert!(why.contains("192.0.2.1 port 30080") || better.is_empty(), "{why}");
            assert!(why.contains("Service n/s2's") || better.is_empty(), "{why}");
        }
        // The next one inherits it.
        world.wanted.remove(&2);
        world.change([name(2)].into());
        assert_eq!(world.book.owners[&asked], name(1), "{order:?}");
        world.wanted.remove(&1);
        world.change([name(1)].into());
        assert_eq!(world.book.owners[&asked], name(3), "{order:?}");
        assert_eq!(world.book.problems().count(), 0);
    }
}
