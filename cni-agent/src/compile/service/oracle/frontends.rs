//! Who reaches which endpoints by which address, as the sentences about policies, load balancers and ranges say it.

use super::super::tests::{frontend, reached};
use super::*;
use cni_ebpf::abi::service_flags;
use std::net::IpAddr;

/// Addresses that clients use, by family: the Service's own, a node's, those of load balancers, and one that is nobody's.
const OWN: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const INGRESS: [&str; 4] = ["203.0.113.1", "203.0.113.2", "2001:db8:7::1", "2001:db8:7::2"];
const NOBODYS: [&str; 2] = ["203.0.113.9", "2001:db8:7::9"];
/// One has clients, one the node, and one both.
const RANGES: [&str; 5] = [
    " 198.51.100.0/24",
    "192.0.2.0/24\n",
    "198.51.100.7/32",
    "2001:db8:9::/48",
    "2001:db8::/32",
];
/// Who may come: two of each family, and the node itself.
const CLIENTS: [&str; 6] = [
    "198.51.100.7",
    "198.51.200.7",
    "192.0.2.1",
    "2001:db8:9::7",
    "2001:dead::7",
    "2001:db8::1",
];

/// A Service around its endpoints, as an object says it.
#[derive(Clone, Debug)]
struct Around {
    internal: Option<&'static str>,
    external: &'static str,
    node_port: bool,
    families: [bool; 2],
    /// By address, if a load balancer has it: its `ipMode`.
    ingress: [Option<Option<&'static str>>; 4],
    external_ips: [bool; 2],
    ranges: Vec<&'static str>,
}

fn around() -> impl Strategy<Value = Around> {
    let policy = || prop::sample::select(vec!["Cluster", "Local"]);
    let mode = prop::sample::select(vec![None, Some("VIP"), Some("Proxy")]);
    (
        proptest::option::of(policy()),
        policy(),
        any::<bool>(),
        prop::sample::select(vec![[true, true], [true, false], [false, true]]),
        proptest::array::uniform4(proptest::option::of(mode)),
        any::<[bool; 2]>(),
        proptest::sample::subsequence(RANGES.to_vec(), 0..=3),
    )
        .prop_map(
            |(internal, external, node_port, families, ingress, external_ips, ranges)| Around {
                internal,
                external,
                node_port,
                families,
                ingress,
                external_ips,
                ranges,
            },
        )
}

fn some<T: Copy>(all: &[T], has: &[bool]) -> Vec<T> {
    let all = all.iter().zip(has).filter(|(_, has)| **has);
    all.map(|(one, _)| *one).collect()
}

impl Around {
    fn object(&self) -> Value {
        let own = some(&OWN, &self.families);
        let mut port = json!({ "name": "web", "port": 80 });
        if self.node_port {
            port["nodePort"] = json!(30_080);
        }
        let mut object = service(json!({
            "type": "LoadBalancer", "clusterIP": own[0], "clusterIPs": own, "ports": [port],
            "externalTrafficPolicy": self.external, "internalTrafficPolicy": self.internal,
            "externalIPs": some(&NOBODYS, &self.external_ips), "loadBalancerSourceRanges": self.ranges,
        }));
        let ingress = INGRESS.iter().zip(&self.ingress);
        let ingress: Value = ingress
            .filter_map(|(ip, mode)| mode.map(|mode| json!({ "ip": ip, "ipMode": mode })))
            .collect();
        object["status"] = json!({ "loadBalancer": { "ingress": ingress } });
        object
    }

    fn has_family_of(&self, ip: &str) -> bool {
        self.families[usize::from(ip.contains(':'))]
    }

    /// Statement 39.
    fn is_captured(&self, ingress: usize) -> bool {
        matches!(self.ingress[ingress], Some(None | Some("VIP")))
    }

    /// Statements 10, 40 and 41.
    fn lets_in(&self, client: &str) -> bool {
        let ranges: Vec<ipnetwork::IpNetwork> = self
            .ranges
            .iter()
            .map(|range| range.trim().parse().unwrap())
            .collect();
        let has = |ip: &str| {
            let ip: IpAddr = ip.parse().unwrap();
            ranges.iter().any(|range| range.contains(ip))
        };
        let is_node = NODE.contains(&client);
        ranges.is_empty() || has(client) || is_node && NODE.iter().any(|ip| self.has_family_of(ip) && has(ip))
    }
}

/// The endpoints are there in both families, those of IPv6 as `fd00:1::` with the last number of IPv4.
fn compile_all(around: &Around, all: &[Said]) -> Compiled {
    let lines: Vec<String> = all.iter().map(Said::line).collect();
    let v6: Vec<String> = lines
        .iter()
        .map(|line| line.replace("10.1.0.", "fd00:1::"))
        .collect();
    let of = |lines: &[String]| endpoints(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    let mut second = slice("s-6", of(&v6));
    second["addressType"] = json!("IPv6");
    compiled_at(&place(), &[around.object(), slice("s-4", of(&lines)), second])
}

proptest! {
    #[test]
    fn who_reaches_what_by_which_address_is_what_the_sentences_say(around in around(), mut all in proptest::collection::vec(said(), 0..4)) {
        for (last, said) in all.iter_mut().enumerate() {
            said.last = last as u8 + 1;
        }
        let compiled = compile_all(&around, &all);
        let expected = |ip: &str, local: bool| {
            let chosen = if local { super::local(&all) } else { cluster(&all) };
            let mut words = or_words(&chosen, &all);
            if ip.contains(':') {
                words.iter_mut().for_each(|word| *word = word.replace("10.1.0.", "fd00:1::"));
            }
            words
        };
        let at = |ip: &str, port, scope| frontend(&compiled, ip, port, 6, scope);
        // Statements 13, 26 and 27.
        for ip in OWN {
            let own = at(ip, 80, service_scope::CLUSTER);
            let words = if around.has_family_of(ip) { expected(ip, around.internal == Some("Local")) } else { vec!["unknown".into()] };
            prop_assert_eq!(reached(&compiled, own), words, "at {}", ip);
            prop_assert!(own.is_none_or(|own| !own.restricted && own.flags & service_flags::MASQUERADE == 0), "at {}", ip);
        }
        // Statements 33 to 36, 39, 40, 42 and 43.
        let outer = NODE.iter().map(|ip| (*ip, 30_080, around.node_port, false))
            .chain(INGRESS.iter().enumerate().map(|(n, ip)| (*ip, 80, around.is_captured(n), true)))
            .chain(NOBODYS.iter().zip(around.external_ips).map(|(ip, has)| (*ip, 80, has, false)));
        for (ip, port, is_there, is_balancer) in outer {
            let is_there = is_there && around.has_family_of(ip);
            for (scope, local) in [(service_scope::CLUSTER, false), (service_scope::EXTERNAL, around.external == "Local")] {
                let outer = at(ip, port, scope);
                let words = if is_there { expected(ip, local) } else { vec!["unknown".into()] };
                prop_assert_eq!(reached(&compiled, outer), words, "at {} in {}", ip, scope);
                if let Some(outer) = outer {
                    prop_assert_eq!(outer.flags & service_flags::MASQUERADE != 0, around.external == "Cluster", "at {} in {}", ip, scope);
                    prop_assert_eq!(outer.restricted, is_balancer && !around.ranges.is_empty(), "at {} in {}", ip, scope);
                }
            }
        }
        for client in CLIENTS {
            let ip: IpAddr = client.parse().unwrap();
            let let_in = around.ranges.is_empty() || compiled.ranges.iter().any(|range| range.contains(ip));
            if around.has_family_of(client) {
                prop_assert_eq!(let_in, around.lets_in(client), "{}", client);
            }
        }
    }
}
