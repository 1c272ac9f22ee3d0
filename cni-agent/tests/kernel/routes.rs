//! Routes, neighbours and settings.

use std::net::IpAddr;

use cni_agent::{
    desired::{Desired, HostRoute, NeighbourKey, NextHop, RouteKey},
    kernel::{Kernel, Scope},
    reconcile::Change,
};

use crate::namespace::{block_on, cable, ifindex, ip, on_host};

fn key(text: &str) -> RouteKey {
    RouteKey {
        destination: text.parse().unwrap(),
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn routes_of_both_families_converge_and_others_stay() {
    on_host(|host| {
        cable("eth0");
        ip("addr add 192.0.2.1/24 dev eth0");
        ip("addr add fd00::1/64 dev eth0 nodad");
        ip("link set eth0 up");
        ip("route add 10.9.0.0/16 dev eth0");
        let ifindex = ifindex("eth0");
        let on_link = NextHop {
            ifindex,
            gateway: None,
            source: None,
            mtu: None,
        };
        let plain = HostRoute::Via(on_link);
        let routes = [
            (
                "10.1.0.0/24",
                HostRoute::Via(NextHop {
                    gateway: Some(address("192.0.2.9")),
                    mtu: Some(1400),
                    ..on_link
                }),
            ),
            (
                "10.1.1.1/32",
                HostRoute::Via(NextHop {
                    source: Some(address("192.0.2.1")),
                    ..on_link
                }),
            ),
            (
                "fd01::/64",
                HostRoute::Via(NextHop {
                    gateway: Some(address("fd00::9")),
                    ..on_link
                }),
            ),
            ("fd01:1::5/128", plain),
            ("10.2.0.0/24", HostRoute::Unreachable),
            ("fd02::/64", HostRoute::Unreachable),
        ];
        let mut linux = host.linux(None);
        for (destination, route) in routes {
            let change = Change::SetRoute {
                key: key(destination),
                route,
            };
            block_on(linux.apply(&change)).unwrap();
            block_on(linux.apply(&change)).unwrap();
        }
        let seen = block_on(linux.observe(&Desired::default(), Scope::Whole))
            .unwrap()
            .routes;
        assert_eq!(
            seen,
            routes
                .into_iter()
                .map(|(text, route)| (key(text), route))
                .collect()
        );

        // From any kind to any other.
        for (text, route) in [
            ("10.1.0.0/24", HostRoute::Unreachable),
            ("fd01::/64", HostRoute::Unreachable),
            ("10.2.0.0/24", plain),
            ("fd02::/64", plain),
        ] {
            block_on(linux.apply(&Change::SetRoute {
                key: key(text),
                route,
            }))
            .unwrap();
        }
        let seen = block_on(linux.observe(&Desired::default(), Scope::Whole))
            .unwrap()
            .routes;
        assert_eq!(
            (
                seen.len(),
                ["10.1.0.0/24", "fd01::/64", "10.2.0.0/24", "fd02::/64"].map(|text| seen[&key(text)])
            ),
            (6, [HostRoute::Unreachable, HostRoute::Unreachable, plain, plain])
        );

        let foreign = Change::SetRoute {
            key: key("10.9.0.0/16"),
            route: plain,
        };
        let error = block_on(linux.apply(&foreign)).unwrap_err();
        assert!(error.to_string().contains("another program"), "{error}");
        for text in [
            "10.9.0.0/16",
            "10.1.0.0/24",
            "10.1.0.0/24",
            "10.1.1.1/32",
            "fd01::/64",
            "fd01:1::5/128",
            "10.2.0.0/24",
            "fd02::/64",
        ] {
            block_on(linux.apply(&Change::RemoveRoute(key(text)))).unwrap();
        }
        assert!(
            block_on(linux.observe(&Desired::default(), Scope::Whole))
                .unwrap()
                .routes
                .is_empty()
        );
        assert!(ip("route show").contains("10.9.0.0/16"));
    });
}

#[test]
fn neighbours_are_permanent() {
    on_host(|host| {
        cable("eth0");
        ip("link set eth0 up");
        let mut linux = host.linux(None);
        let mut wanted = Desired::default();
        for text in ["10.0.0.7", "fd00::7"] {
            let key = NeighbourKey {
                ifindex: ifindex("eth0"),
                ip: address(text),
            };
            wanted.neighbours.insert(key, [2, 0, 0, 0, 0, 7]);
        }
        assert!(
            block_on(linux.observe(&wanted, Scope::Keys))
                .unwrap()
                .neighbours
                .is_empty()
        );
        for (key, mac) in &wanted.neighbours {
            block_on(linux.apply(&Change::SetNeighbour { key: *key, mac: *mac })).unwrap();
        }
        assert_eq!(
            block_on(linux.observe(&wanted, Scope::Whole)).unwrap().neighbours,
            wanted.neighbours
        );
    });
}

#[test]
fn settings_are_read_and_written_in_the_namespace() {
    on_host(|host| {
        cable("eth0.5");
        let mut linux = host.linux(None);
        let mut wanted = Desired::default();
        for path in ["net/ipv4/ip_forward", "net/ipv4/conf/eth0.5/rp_filter"] {
            wanted.sysctls.insert(path.to_owned(), "1".to_owned());
            block_on(linux.apply(&Change::SetSysctl {
                path: path.to_owned(),
                value: "1".to_owned(),
            }))
            .unwrap();
        }
        wanted
            .sysctls
            .insert("net/ipv4/conf/gone/rp_filter".to_owned(), "0".to_owned());
        let seen = block_on(linux.observe(&wanted, Scope::Keys)).unwrap().sysctls;
        wanted.sysctls.remove("net/ipv4/conf/gone/rp_filter");
        assert_eq!(seen, wanted.sysctls);
    });
}
