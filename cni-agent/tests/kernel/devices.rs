//! Devices: listed, watched, made.

use cni_agent::{
    desired::{Desired, VethState, Vxlan},
    kernel::{Kernel, Scope, devices},
    model::DeviceKind,
    reconcile::Change,
};
use cni_ebpf::abi::Config;

use crate::namespace::{block_on, cable, ifindex, ip, on_host};

fn tunnel(port: u16, mtu: u32) -> Vxlan {
    Vxlan {
        name: "millrace.vx".to_owned(),
        port,
        mtu,
        mac: Config::TUNNEL_MAC,
    }
}

#[test]
fn the_tunnel_device_is_made_changed_and_removed() {
    on_host(|host| {
        let mut linux = host.linux(None);
        let wanted = Desired::default();
        for vxlan in [tunnel(4789, 1450), tunnel(4789, 1400), tunnel(8472, 1400)] {
            let change = Change::SetVxlan(vxlan.clone());
            block_on(linux.apply(&change)).unwrap();
            block_on(linux.apply(&change)).unwrap();
            assert_eq!(
                block_on(linux.observe(&wanted, Scope::Whole)).unwrap().vxlan,
                Some(vxlan)
            );
        }
        let shown = ip("-d link show millrace.vx");
        for word in ["external", "nolearning", "NOARP", "UP"] {
            assert!(shown.contains(word), "{word}: {shown}");
        }
        assert!(!ip("-6 addr show dev millrace.vx").contains("fe80"));
        // Somebody sets it down: it is not as it should be any more.
        ip("link set millrace.vx down");
        assert_eq!(
            block_on(linux.observe(&wanted, Scope::Whole)).unwrap().vxlan,
            None
        );
        block_on(linux.apply(&Change::SetVxlan(tunnel(8472, 1400)))).unwrap();
        assert!(
            block_on(linux.observe(&wanted, Scope::Whole))
                .unwrap()
                .vxlan
                .is_some()
        );
        for _ in 0..2 {
            block_on(linux.apply(&Change::RemoveVxlan("millrace.vx".into()))).unwrap();
        }
        assert_eq!(
            block_on(linux.observe(&wanted, Scope::Whole)).unwrap().vxlan,
            None
        );
    });
}

#[test]
fn a_foreign_device_of_that_name_and_a_taken_port_are_errors_with_a_remedy() {
    on_host(|host| {
        let mut linux = host.linux(None);
        cable("millrace.vx");
        let error = block_on(linux.apply(&Change::SetVxlan(tunnel(4789, 1450)))).unwrap_err();
        assert!(error.to_string().contains("vxlan.device"), "{error}");
        ip("link del millrace.vx");
        ip("link add other type vxlan external dstport 4789");
        ip("link set other up");
        let error = block_on(linux.apply(&Change::SetVxlan(tunnel(4789, 1450)))).unwrap_err();
        assert!(error.to_string().contains("vxlan.port"), "{error}");
    });
}

#[test]
fn host_sides_of_pods_are_found_by_name_raised_and_removed() {
    on_host(|host| {
        let mut linux = host.linux(None);
        for name in ["mr0123456789a", "mr00000000001", "mrx", "eth9"] {
            cable(name);
        }
        let index = ifindex("mr0123456789a");
        let raise = |ifindex| Change::RaiseVeth {
            name: "mr0123456789a".into(),
            ifindex,
        };
        block_on(linux.apply(&raise(index))).unwrap();
        assert!(block_on(linux.apply(&raise(index + 1000))).is_err());
        let seen = block_on(linux.observe(&Desired::default(), Scope::Whole))
            .unwrap()
            .veths;
        assert_eq!(
            seen.keys().collect::<Vec<_>>(),
            ["mr00000000001", "mr0123456789a"]
        );
        assert_eq!(
            seen["mr0123456789a"],
            VethState {
                ifindex: index,
                up: true
            }
        );
        for _ in 0..2 {
            block_on(linux.apply(&Change::RemoveVeth("mr0123456789a".into()))).unwrap();
        }
        assert_eq!(
            block_on(linux.observe(&Desired::default(), Scope::Whole))
                .unwrap()
                .veths
                .len(),
            1
        );
    });
}

#[test]
fn devices_have_their_kind_addresses_and_default_route() {
    on_host(|host| {
        ip("link add eth0 type veth peer name far");
        ip("link add br0 type bridge");
        ip("link set far master br0");
        ip("addr add 192.0.2.1/24 dev eth0");
        ip("addr add 192.0.2.2/24 dev eth0");
        for name in ["eth0", "far", "br0"] {
            ip(&format!("link set {name} up"));
        }
        ip("route add default via 192.0.2.254");
        let list = devices::list(&mut host.netlink()).unwrap();
        let find = |name: &str| list.iter().find(|device| device.name == name).unwrap();
        assert_eq!(find("lo").kind, DeviceKind::Loopback);
        assert_eq!(find("br0").kind, DeviceKind::Bridge);
        let far = find("far");
        assert_eq!(
            (far.kind, far.master, far.default_route),
            (DeviceKind::Veth, Some(ifindex("br0")), false)
        );
        let eth0 = find("eth0");
        assert_eq!(
            (eth0.default_route, eth0.up, eth0.mac.is_some()),
            (true, true, true)
        );
        let v4: Vec<_> = eth0
            .addresses
            .iter()
            .filter(|address| address.network.is_ipv4())
            .map(|address| (address.network.to_string(), address.global, address.avoid))
            .collect();
        assert_eq!(
            v4,
            [
                ("192.0.2.1/24".to_owned(), true, false),
                ("192.0.2.2/24".to_owned(), true, true)
            ]
        );
    });
}

#[test]
fn changes_of_devices_addresses_and_routes_are_heard() {
    on_host(|_| {
        block_on(async {
            let mut watch = devices::Watch::begin().unwrap();
            let first = watch.next().await.unwrap();
            assert!(!first.iter().any(|device| device.name == "eth0"));
            cable("eth0");
            assert!(
                watch
                    .next()
                    .await
                    .unwrap()
                    .iter()
                    .any(|device| device.name == "eth0" && !device.up)
            );
            ip("link set eth0 up");
            while !watch
                .next()
                .await
                .unwrap()
                .iter()
                .any(|device| device.up && device.name == "eth0")
            {}
            ip("addr add 192.0.2.1/24 dev eth0");
            while !watch
                .next()
                .await
                .unwrap()
                .iter()
                .any(|device| device.global_addresses().count() == 1)
            {}
            ip("route add default via 192.0.2.254");
            while !watch
                .next()
                .await
                .unwrap()
                .iter()
                .any(|device| device.default_route)
            {}
            ip("link del eth0");
            while watch
                .next()
                .await
                .unwrap()
                .iter()
                .any(|device| device.name == "eth0")
            {}
        });
    });
}
