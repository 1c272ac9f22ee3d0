//! What load balancers hear from a node of the endpoints that it has, and of its proxy.

use std::{
    thread,
    time::{Duration, Instant},
};

use cni_tests::traffic::get;
use serde_json::{Value, json};

use super::contender::{
    Contender, OUTSIDE,
    To::{self, Health, OwnHealth, SecondHealth},
    long, together,
};

/// Asked from outside, in both families.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) name: &'static str,
    at: To,
    pub(super) wanted: &'static str,
}

macro_rules! checks {
    ($($name:literal: $at:expr => $wanted:expr;)*) => {
        &[$(Check { name: $name, at: $at, wanted: $wanted }),*]
    };
}

const NOBODY: &str = "nobody";

/// The answer's status, and how many endpoints it speaks of.
pub(super) const CHECKS: &[Check] = checks! {
    "44: at an address of no node ports": SecondHealth(0, 34) => NOBODY;
    "44: with the policy Cluster": Health(0, 33) => NOBODY;
    "45, 46: one is here": Health(0, 34) => "200, 1";
    "45, 46: it is on another node": Health(1, 34) => "503, 0";
    "45, 46: one here and one elsewhere": Health(0, 37) => "200, 1";
    "45, 46: two here": Health(0, 128) => "200, 2";
    "45, 46: nobody anywhere": Health(0, 45) => "503, 0";
    "45: it is not ready": Health(0, 127) => "503, 0";
    "47: it leaves": Health(0, 122) => "503, 0";
    "47: another leaves": Health(0, 124) => "200, 1";
};

/// Its number of endpoints, if it is otherwise what a load balancer expects.
fn summary(answer: &str, number: u8) -> String {
    let read = || {
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?;
        let header = |name: &str| {
            head.lines()
                .filter_map(|line| line.split_once(": "))
                .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
        };
        let body: Value = serde_json::from_str(body).ok()?;
        let local = &body["localEndpoints"];
        let service = json!({ "namespace": "lab", "name": format!("service-{number}") });
        let good = body
            == json!({ "service": service, "localEndpoints": local, "serviceProxyHealthy": true })
            && header("Content-Type")? == "application/json"
            && header("X-Content-Type-Options")? == "nosniff"
            && header("X-Load-Balancing-Endpoint-Weight")?.parse().ok() == local.as_u64();
        good.then(|| format!("{status}, {local}"))
    };
    read().unwrap_or_else(|| answer.to_owned())
}

/// Asks until the answer is the wanted one, but not for ever: rules are written before these ports are opened.
fn ask(contender: &Contender, check: &Check, v4: bool) -> String {
    let (Health(_, number) | SecondHealth(_, number)) = check.at else {
        unreachable!("{check:?}")
    };
    ask_until(check.wanted, || {
        let answer = contender.as_one(OUTSIDE, |inside| {
            get(inside, contender.address(check.at, v4), "/")
        });
        answer.map(|answer| summary(&answer, number))
    })
}

/// What is said at last: the wanted words, or what else was still said when it took too long; nothing is [`NOBODY`].
fn ask_until(wanted: &str, ask: impl Fn() -> Option<String>) -> String {
    let end = Instant::now() + long();
    loop {
        let said = ask().unwrap_or_else(|| NOBODY.to_owned());
        if said == wanted || Instant::now() > end {
            return said;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Asked of the proxy itself, by IPv4, which is where kube-proxy answers unless it is told otherwise: the path, and whether the Node object
/// says by then that the machine will be taken away.
pub(super) const OWN: &[(&str, &str, bool, &str)] = &[
    ("48: healthz", "/healthz", false, "200"),
    ("48: livez", "/livez", false, "200"),
    ("48: healthz of a node that leaves", "/healthz", true, "503"),
    ("48: livez of a node that leaves", "/livez", true, "200"),
];

/// The answer's status.
fn ask_itself(contender: &Contender, path: &str, wanted: &str) -> String {
    ask_until(wanted, || {
        let answer = contender.as_one(OUTSIDE, |inside| {
            get(inside, contender.address(OwnHealth(0), true), path)
        });
        Some(answer?.split(' ').nth(1)?.to_owned())
    })
}

/// The last to be observed: the first node's object says afterwards that it leaves.
pub(super) fn observe_itself(contender: &Contender) -> Vec<String> {
    let mut left = false;
    let ask = |(_, path, leaves, wanted): &(_, &str, bool, &str)| {
        if *leaves && !left {
            contender.node_leaves(0);
            left = true;
        }
        ask_itself(contender, path, wanted)
    };
    OWN.iter().map(ask).collect()
}

pub(super) fn observe(contender: &Contender) -> Vec<String> {
    let both = |check| {
        let families = [(true, "IPv4"), (false, "IPv6")];
        together(families.map(|(v4, kind)| (kind.to_owned(), ask(contender, check, v4))))
    };
    CHECKS.iter().map(both).collect()
}
