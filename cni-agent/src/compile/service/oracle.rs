//! The choice of endpoints against a second one, made from the sentences of the specification and nothing else.

use proptest::prelude::*;

use super::tests::{behind, node_port_with, place};
use cni_ebpf::abi::service_scope;

/// One endpoint as an object says it.
#[derive(Clone, Debug)]
struct Said {
    last: u8,
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
        .map(|said| format!("10.1.0.{}:8080", said.last))
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

proptest! {
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
