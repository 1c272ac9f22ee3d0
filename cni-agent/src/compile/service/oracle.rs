//! The choice of endpoints against a second one, made from the sentences of the specification and nothing else.

mod frontends;

use proptest::prelude::*;

use super::Compiled;
use super::tests::{behind, compiled_at, endpoints, node_port_with, place, service, slice};
use cni_ebpf::abi::service_scope;
use serde_json::{Value, json};

/// One endpoint as an object says it.
#[derive(Clone, Debug)]
struct Said {
    last: u8,
    port: u16,
    here: bool,
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
    zone: Option<bool>,
    node: Option<bool>,
}

impl Said {
    /// As the tests of statements write them.
    fn line(&self) -> String {
        let mut line = format!("10.1.0.{}@{}", self.last, if self.here { "one" } else { "two" });
        for (said, word) in [
            (self.ready == Some(false), " not-ready"),
            (self.serving == Some(false), " not-serving"),
            (self.terminating == Some(true), " terminating"),
            (self.zone == Some(true), " zone=a"),
            (self.zone == Some(false), " zone=b"),
            (self.node == Some(true), " for=one"),
            (self.node == Some(false), " for=two"),
        ] {
            if said {
                line.push_str(word);
            }
        }
        line
    }

    fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }

    fn leaves_and_serves(&self) -> bool {
        !self.is_ready() && self.serving.unwrap_or(true) && self.terminating.unwrap_or(false)
    }
}

fn said() -> impl Strategy<Value = Said> {
    let maybe = || proptest::option::of(any::<bool>());
    (any::<bool>(), maybe(), maybe(), maybe(), maybe(), maybe()).prop_map(
        |(here, ready, serving, terminating, zone, node)| Said {
            last: 0,
            port: 8080,
            here,
            ready,
            serving,
            terminating,
            zone,
            node,
        },
    )
}

fn names(all: &[&Said]) -> Vec<String> {
    all.iter()
        .map(|said| format!("10.1.0.{}:{}", said.last, said.port))
        .collect()
}

/// Statements 11, 12 and 15 to 17.
fn cluster(all: &[Said]) -> Vec<&Said> {
    let ready: Vec<&Said> = all.iter().filter(|said| said.is_ready()).collect();
    let narrowed: Vec<&Said> = if ready.iter().all(|said| said.node.is_some())
        && ready.iter().any(|said| said.node == Some(true))
    {
        ready
            .iter()
            .copied()
            .filter(|said| said.node == Some(true))
            .collect()
    } else if ready.iter().all(|said| said.zone.is_some()) && ready.iter().any(|said| said.zone == Some(true))
    {
        ready
            .iter()
            .copied()
            .filter(|said| said.zone == Some(true))
            .collect()
    } else {
        ready
    };
    if narrowed.is_empty() {
        return all.iter().filter(|said| said.leaves_and_serves()).collect();
    }
    narrowed
}

/// Statements 13 and 18.
fn local(all: &[Said]) -> Vec<&Said> {
    let ready: Vec<&Said> = all.iter().filter(|said| said.here && said.is_ready()).collect();
    if ready.is_empty() {
        return all
            .iter()
            .filter(|said| said.here && said.leaves_and_serves())
            .collect();
    }
    ready
}

/// Statements 25, 26, 35 and 38.
fn or_words(chosen: &[&Said], all: &[Said]) -> Vec<String> {
    let any = all.iter().any(|said| said.is_ready() || said.leaves_and_serves());
    match (chosen.is_empty(), any) {
        (false, _) => names(chosen),
        (true, true) => vec!["drop".to_owned()],
        (true, false) => vec!["reject".to_owned()],
    }
}

/// The ports of the Service: two by one name and none, and one of another protocol.
const PORTS: [(u16, &str, &str); 4] = [
    (80, "web", "TCP"),
    (81, "", "TCP"),
    (82, "web", "UDP"),
    (83, "more", "TCP"),
];

fn number_of(protocol: &str) -> u8 {
    if protocol == "UDP" { 17 } else { 6 }
}

/// A port of a slice, as an object says it.
#[derive(Clone, Debug)]
struct SaidPort {
    name: Option<&'static str>,
    protocol: Option<&'static str>,
    number: Option<u16>,
}

#[derive(Clone, Debug)]
struct SaidSlice {
    ports: Vec<SaidPort>,
    endpoints: Vec<Said>,
}

/// Few addresses and few ports, so that slices agree and disagree about the same endpoints.
fn said_slice() -> impl Strategy<Value = SaidSlice> {
    let name = proptest::option::of(prop::sample::select(vec!["", "web", "more", "other"]));
    let protocol = proptest::option::of(prop::sample::select(vec!["TCP", "UDP"]));
    let number = proptest::option::weighted(0.8, prop::sample::select(vec![0u16, 8080, 8080, 8081]));
    let port = (name, protocol, number).prop_map(|(name, protocol, number)| SaidPort {
        name,
        protocol,
        number,
    });
    let endpoint = (1..4u8, said()).prop_map(|(last, said)| Said { last, ..said });
    // An API server takes no address twice in one slice.
    let endpoints = proptest::collection::vec(endpoint, 0..4).prop_map(|mut all| {
        all.sort_by_key(|said| said.last);
        all.dedup_by_key(|said| said.last);
        all
    });
    (proptest::collection::vec(port, 0..4), endpoints)
        .prop_map(|(ports, endpoints)| SaidSlice { ports, endpoints })
}

fn of_slices(place: &super::Place, all: &[SaidSlice]) -> Compiled {
    let ports = PORTS.map(|(number, name, protocol)| {
        json!({ "name": name, "port": number, "nodePort": 30_000 + number, "protocol": protocol })
    });
    let spec = json!({ "type": "NodePort", "externalTrafficPolicy": "Local", "ports": ports });
    let mut objects = vec![service(spec)];
    for (number, said) in all.iter().enumerate() {
        let lines: Vec<String> = said.endpoints.iter().map(Said::line).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let mut slice = slice(&format!("s-{number}"), endpoints(&lines));
        // What is not said is null in one and absent in the other.
        let ports = said.ports.iter().map(|port| {
            let mut object = json!({ "name": port.name, "port": port.number });
            if let Some(protocol) = port.protocol {
                object["protocol"] = json!(protocol);
            }
            object
        });
        slice["ports"] = ports.collect::<Value>();
        objects.push(slice);
    }
    compiled_at(place, &objects)
}

/// What all slices say of the endpoints of one port: each once, by the best that is said of it.
fn together(all: &[SaidSlice], name: &str, protocol: &str, zone: bool) -> Vec<Said> {
    let mut found: Vec<Said> = Vec::new();
    for slice in all {
        for port in &slice.ports {
            let matches = port.name.unwrap_or("") == name && port.protocol.unwrap_or("TCP") == protocol;
            let Some(number) = port.number.filter(|number| matches && *number != 0) else {
                continue;
            };
            for said in &slice.endpoints {
                let said = Said {
                    port: number,
                    ..said.clone()
                };
                let rank = |said: &Said| (!said.is_ready(), !said.leaves_and_serves());
                match found
                    .iter_mut()
                    .find(|known| (known.last, known.port) == (said.last, number))
                {
                    None => found.push(said),
                    Some(known) => {
                        let here = known.here || said.here;
                        if rank(&said) < rank(known) {
                            *known = said;
                        }
                        known.here = here;
                    }
                }
            }
        }
    }
    found.sort_by_key(|said| (said.last, said.port));
    if !zone {
        // A node that is nowhere in particular takes hints of zones for none.
        found.iter_mut().for_each(|said| said.zone = None);
    }
    found
}

proptest! {
    /// Statements 4, 6 and 7, and the choice among what they leave.
    #[test]
    fn what_slices_say_together_is_what_the_sentences_say(all in proptest::collection::vec(said_slice(), 0..5), zone: bool) {
        let place = super::Place { zone: zone.then(|| "a".to_owned()), ..place() };
        let compiled = of_slices(&place, &all);
        let mut expected = Vec::new();
        for (number, name, protocol) in PORTS {
            let together = together(&all, name, protocol, zone);
            let at = |ip: &str, port, scope| super::tests::behind_proto(&compiled, ip, port, number_of(protocol), scope);
            let cluster = or_words(&cluster(&together), &together);
            prop_assert_eq!(at("10.96.0.10", number, service_scope::CLUSTER), cluster, "{} of {}", name, protocol);
            let local = or_words(&local(&together), &together);
            prop_assert_eq!(at("192.0.2.1", 30_000 + number, service_scope::EXTERNAL), local, "{} of {}", name, protocol);
            expected.extend(together.iter().filter(|said| said.is_ready() || said.leaves_and_serves()).map(|said| {
                (format!("10.1.0.{}:{}", said.last, said.port), number_of(protocol))
            }));
        }
        expected.sort();
        expected.dedup();
        let mut serving: Vec<_> = compiled
            .serving
            .iter()
            .map(|(target, _)| (format!("{}:{}", target.addr, target.port), target.proto))
            .collect();
        serving.sort();
        serving.dedup();
        prop_assert_eq!(serving, expected);
    }

    #[test]
    fn the_choice_is_what_the_sentences_say(mut all in proptest::collection::vec(said(), 0..6)) {
        for (last, said) in all.iter_mut().enumerate() {
            said.last = last as u8 + 1;
        }
        let lines: Vec<String> = all.iter().map(Said::line).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let compiled = node_port_with(&place(), "Local", &lines);
        let at = |ip: &str, port, scope| behind(&compiled, ip, port, scope);
        let cluster = or_words(&cluster(&all), &all);
        prop_assert_eq!(at("10.96.0.10", 80, service_scope::CLUSTER), cluster.clone());
        prop_assert_eq!(at("192.0.2.1", 30080, service_scope::CLUSTER), cluster);
        prop_assert_eq!(at("192.0.2.1", 30080, service_scope::EXTERNAL), or_words(&local(&all), &all));
        let serving = all.iter().filter(|said| said.is_ready() || said.leaves_and_serves()).count();
        prop_assert_eq!(compiled.serving.len(), serving);
    }
}
