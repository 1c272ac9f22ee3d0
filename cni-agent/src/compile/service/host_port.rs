//! Ports of the node that lead into a pod: as NodePorts with one endpoint, whose clients keep their address.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use cni_ebpf::abi::{Addr, Port, backend_flags, service_scope};

use super::{Compiled, Frontend, HintsUsed, Place, SetName, SlotSet, Target, key};
use crate::model::{HostPort, Pod};

/// Nothing, if the pod runs on another node.
pub fn compile(place: &Place, pod: &Pod) -> Compiled {
    if *pod.node != *place.node {
        return Compiled::default();
    }
    let mut compiled = Compiled {
        // Pods come and go, and a Service is on all nodes: it comes first, whatever its age.
        created: i64::MAX,
        ..Compiled::default()
    };
    let mut serving = BTreeSet::new();
    for ip in pod.addresses.iter().filter(|ip| place.families.has(**ip)) {
        for port in &pod.host_ports {
            let fronts: Vec<IpAddr> = fronts(place, port, ip.is_ipv4()).collect();
            if fronts.is_empty() {
                continue;
            }
            let proto = port.protocol.number();
            let target = Target {
                addr: Addr::from(*ip),
                port: Port::new(port.container_port),
                proto,
            };
            let name = SetName {
                port: port.container_port,
                proto,
                v4: ip.is_ipv4(),
                local: true,
            };
            serving.insert((target, backend_flags::LOCAL));
            if !compiled.sets.iter().any(|set| set.name == name) {
                compiled.sets.push(SlotSet {
                    name,
                    targets: vec![target],
                    affinity: false,
                    hints: HintsUsed::Anywhere,
                    maglev: None,
                });
            }
            for front in fronts {
                frontends(front, port, name, &mut compiled.frontends);
            }
        }
    }
    compiled.serving = serving.into_iter().collect();
    compiled
}

fn frontends(front: IpAddr, port: &HostPort, set: SetName, frontends: &mut Vec<Frontend>) {
    let mut add = |scope| {
        let frontend = Frontend {
            key: key(front, port.port, set.proto, scope),
            set: Some(set),
            flags: 0,
            affinity_seconds: 0,
            restricted: false,
        };
        if !frontends.iter().any(|other| other.key == frontend.key) {
            frontends.push(frontend);
        }
    };
    add(service_scope::CLUSTER);
    if !front.is_loopback() {
        add(service_scope::EXTERNAL);
    }
}

/// The addresses at which it is there. Loopback's are for processes of the node alone.
fn fronts(place: &Place, port: &HostPort, v4: bool) -> impl Iterator<Item = IpAddr> {
    let loopback = if v4 {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    } else {
        IpAddr::V6(Ipv6Addr::LOCALHOST)
    };
    let own = place.own.iter().copied().chain([loopback]);
    let asked = port.address;
    own.filter(move |ip| ip.is_ipv4() == v4 && asked.is_none_or(|asked| asked == *ip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    fn place() -> Place {
        Place {
            node: "a".into(),
            own: ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()).into(),
            ..Place::default()
        }
    }

    fn pod(address: Option<&str>) -> Pod {
        Pod {
            node: "a".into(),
            addresses: ["10.0.0.2", "fd00::2"].map(|ip| ip.parse().unwrap()).into(),
            host_ports: vec![HostPort {
                address: address.map(|ip| ip.parse().unwrap()),
                protocol: Protocol::Tcp,
                port: 8080,
                container_port: 80,
            }],
            ..Pod::default()
        }
    }

    fn fronts_of(pod: &Pod) -> Vec<String> {
        let compiled = compile(&place(), pod);
        let one = |frontend: &Frontend| {
            let scope = if frontend.key.scope == service_scope::CLUSTER {
                "inside"
            } else {
                "outside"
            };
            format!("{} {scope}", IpAddr::from(frontend.key.addr))
        };
        compiled.frontends.iter().map(one).collect()
    }

    #[test]
    fn rel_26_every_address_of_the_node_leads_to_the_pod_and_loopback_only_for_the_node() {
        assert_eq!(
            fronts_of(&pod(None)),
            [
                "192.0.2.1 inside",
                "192.0.2.1 outside",
                "127.0.0.1 inside",
                "2001:db8::1 inside",
                "2001:db8::1 outside",
                "::1 inside"
            ]
        );
        let compiled = compile(&place(), &pod(None));
        assert_eq!((compiled.sets.len(), compiled.serving.len()), (2, 2));
    }

    #[test]
    fn one_address_leads_there_if_it_was_asked_for_and_is_the_nodes() {
        assert_eq!(fronts_of(&pod(Some("127.0.0.1"))), ["127.0.0.1 inside"]);
        assert_eq!(
            fronts_of(&pod(Some("192.0.2.1"))),
            ["192.0.2.1 inside", "192.0.2.1 outside"]
        );
        assert!(fronts_of(&pod(Some("192.0.2.9"))).is_empty());
    }

    #[test]
    fn another_nodes_pod_is_that_nodes_business() {
        let elsewhere = Pod {
            node: "b".into(),
            ..pod(None)
        };
        assert_eq!(compile(&place(), &elsewhere), Compiled::default());
    }
}
