//! Connections and datagram sockets that last while their Service changes, and then their proxy starts anew.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    choice::{THERE, in_zones, leaving, not_ready},
    contender::{
        CLIENT, Contender, NODE, OUTSIDE, PACKETS,
        To::{self, Cluster, External, NodePort},
        Who, long, soon, together,
    },
    intake::{TAKEN, others},
    services::{Definition, OWN_TARGET},
    talk::{Means, Talk},
};

/// Who answers at first, when the Service has changed, and when the proxy was started anew; in both families.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) name: &'static str,
    from: Who,
    means: Means,
    /// By another connection each time.
    anew: bool,
    to: To,
    pub(super) wanted: &'static str,
}

macro_rules! flows {
    ($($name:literal: $from:ident by $means:ident $(, $anew:ident)? to $to:expr => $wanted:expr;)*) => {
        &[$(Flow { name: $name, from: $from, means: Means::$means, anew: !stringify!($($anew)?).is_empty(), to: $to, wanted: $wanted }),*]
    };
}

const KEPT: &str = "a, a, a";
const MOVED: &str = "a, b, b";

/// First those that are to move: when they have, those that are not had the same occasion.
pub(super) const FLOWS: &[Flow] = flows! {
    "3: it becomes another proxy's": CLIENT by Tcp, anew to External(TAKEN) => "a, fabric, fabric";
    "3: it becomes another proxy's, a process": NODE by Tcp, anew to External(TAKEN) => "a, fabric, fabric";
    "14: it is not ready any more, a pod": CLIENT by Tcp, anew to Cluster(173) => "a, refused, refused";
    "14: it is not ready any more, who is outside": OUTSIDE by Tcp, anew to NodePort(0, 173) => "a, refused, refused";
    "19: the node moves, a pod": CLIENT by Tcp, anew to Cluster(175) => MOVED;
    "19: the node moves, a pod, by packets": PACKETS by Tcp, anew to Cluster(175) => MOVED;
    "19: the node moves, who is outside": OUTSIDE by Tcp, anew to NodePort(0, 175) => MOVED;
    "51: it serves no longer, a pod": CLIENT by Tcp, anew to Cluster(170) => MOVED;
    "51: it serves no longer, a pod, by packets": PACKETS by Tcp, anew to Cluster(170) => MOVED;
    "51: it serves no longer, a process": NODE by Tcp, anew to Cluster(170) => MOVED;
    "51: it serves no longer, who is outside": OUTSIDE by Tcp, anew to NodePort(0, 170) => MOVED;
    "51: it serves no longer, a pod's datagrams": CLIENT by Udp to Cluster(170) => MOVED;
    "51: it leaves, a pod": CLIENT by Tcp, anew to Cluster(171) => MOVED;
    "51: it leaves, a pod, by packets": PACKETS by Tcp, anew to Cluster(171) => MOVED;
    "51: it leaves, a process": NODE by Tcp, anew to Cluster(171) => MOVED;
    "51: it leaves, who is outside": OUTSIDE by Tcp, anew to NodePort(0, 171) => MOVED;
    "53: it serves no longer, a pod": CLIENT by Udp to Cluster(53) => MOVED;
    "53: it serves no longer, a pod's loose socket": CLIENT by LooseUdp to Cluster(53) => MOVED;
    "53: it serves no longer, a process's loose socket": NODE by LooseUdp to Cluster(53) => MOVED;
    "53: it serves no longer, who is outside": OUTSIDE by Udp to NodePort(0, 53) => MOVED;
    "53: it serves others still, a pod": CLIENT by Udp to Cluster(57) => MOVED;
    "53: it serves others still, a process's loose socket": NODE by LooseUdp to Cluster(57) => MOVED;
    "53: it serves others still, who is outside": OUTSIDE by Udp to NodePort(0, 57) => MOVED;
    "55: it serves no longer, a process": NODE by Udp to Cluster(53) => MOVED;
    "55: it serves others still, a process": NODE by Udp to Cluster(57) => MOVED;
    "54: none was ready, a pod": CLIENT by Udp to Cluster(54) => "refused, a, a";
    "54: none was ready, a process": NODE by LooseUdp to Cluster(54) => "silence, a, a";
    "54: none was ready, who is outside": OUTSIDE by Udp to NodePort(0, 54) => "refused, a, a";
    "53: it leaves and serves, a pod": CLIENT by Udp to Cluster(55) => KEPT;
    "53: it leaves and serves, a process": NODE by Udp to Cluster(55) => KEPT;
    "53: it leaves and serves, who is outside": OUTSIDE by Udp to NodePort(0, 55) => KEPT;
    "53: none serves, a pod": CLIENT by Udp to Cluster(56) => KEPT;
    "53: none serves, a process": NODE by Udp to Cluster(56) => KEPT;
    "53: none serves, who is outside": OUTSIDE by Udp to NodePort(0, 56) => KEPT;
    "6: it moves to another slice, a pod": CLIENT by Udp to Cluster(174) => KEPT;
    "6: it moves to another slice, a pod's loose socket": CLIENT by LooseUdp to Cluster(174) => KEPT;
    "6: it moves to another slice, a process": NODE by Udp to Cluster(174) => KEPT;
    "6: it moves to another slice, who is outside": OUTSIDE by Udp to NodePort(0, 174) => KEPT;
    "52: the Service is deleted, a pod": CLIENT by Tcp to Cluster(52) => KEPT;
    "52: the Service is deleted, a pod, by packets": PACKETS by Tcp to Cluster(52) => KEPT;
    "52: the Service is deleted, a process": NODE by Tcp to Cluster(52) => KEPT;
    "52: the Service is deleted, who is outside": OUTSIDE by Tcp to NodePort(0, 52) => KEPT;
    "52: another endpoint, a pod": CLIENT by Tcp to Cluster(53) => KEPT;
    "52: another endpoint, a pod, by packets": PACKETS by Tcp to Cluster(53) => KEPT;
    "52: another endpoint, a process": NODE by Tcp to Cluster(53) => KEPT;
    "52: another endpoint, who is outside": OUTSIDE by Tcp to NodePort(0, 53) => KEPT;
    "52: no endpoint, a pod, by packets": PACKETS by Tcp to Cluster(56) => KEPT;
    "52: no endpoint, who is outside": OUTSIDE by Tcp to NodePort(0, 56) => KEPT;
    "52: other policies, a pod, by packets": PACKETS by Tcp to Cluster(58) => "b, b, b";
    "52: other policies, who is outside": OUTSIDE by Tcp to NodePort(0, 58) => "b, b, b";
};

fn with(number: u8, endpoints: &[&'static str]) -> Definition {
    let mut definition = Definition::new(number, endpoints).node_ports("Cluster");
    // What leaves this one leaves all; of the others, others have the same endpoints.
    if number == 53 {
        definition.target = OWN_TARGET;
    }
    definition
}

/// What they begin with.
pub(super) fn before() -> Vec<Definition> {
    let of_a = [52, 53, 55, 56, 57].map(|number| with(number, &["a"]));
    let moves = [("b", not_ready()), ("b", not_ready()), ("a", json!({}))];
    let moves = Definition::with_conditions(174, &moves).node_ports("Cluster");
    let others = [
        with(54, &[]),
        with(58, &["b"]),
        affine(170, &["a"]),
        affine(171, &["a"]),
        with(TAKEN, &["a"]).external(),
        with(173, &["a"]),
        moves,
        in_zones(175).node_ports("Cluster"),
    ];
    [&of_a[..], &others].concat()
}

fn affine(number: u8, endpoints: &[&'static str]) -> Definition {
    with(number, endpoints).affine(10_800)
}

fn first_is(condition: Value, mut definition: Definition) -> Definition {
    definition.endpoints[0].1 = condition;
    definition
}

fn change(contender: &mut Contender) {
    let other = Definition::new(58, &["b"]).node_ports("Local").local_inside();
    let slices = |number, place| {
        ["ipv4", "ipv6"].map(|family| format!("endpointslice/service-{number}-{family}-{place}"))
    };
    let gone = [
        &slices(52, 0)[..],
        &slices(56, 0),
        // It is in two by now.
        &slices(174, 2),
        &["service/service-52".to_owned()],
    ]
    .concat();
    let changed = [
        with(53, &["b"]),
        with(57, &["b"]),
        with(54, &["a"]),
        first_is(leaving(), with(55, &["a", "b"])),
        other,
        affine(170, &["b"]),
        first_is(leaving(), affine(171, &["a", "b"])),
        first_is(not_ready(), with(173, &["a"])),
        others(with(TAKEN, &["a"]).external()),
        with(174, &["b", "a"]),
    ];
    contender.move_to(THERE);
    contender.change(&changed, &gone);
}

/// A socket, which may not have come to be.
struct Open {
    flow: &'static Flow,
    to: SocketAddr,
    wanted: Vec<String>,
    kind: &'static str,
    talk: std::io::Result<Talk>,
    heard: Vec<String>,
}

impl Open {
    /// What has ended, or gone astray, is asked no more.
    fn lasts(&self) -> bool {
        self.wanted.len() > self.heard.len() && self.wanted.starts_with(&self.heard)
    }

    /// Asks until the answer is the wanted one, but not for ever.
    fn ask(&mut self, contender: &Contender, end: Instant) {
        let wanted = self.wanted[self.heard.len()].clone();
        loop {
            if self.flow.anew {
                self.talk = begin(contender, self.flow, self.to, soon());
            }
            let said = match &mut self.talk {
                Ok(talk) => talk.ask(soon()),
                Err(error) => Err(std::io::Error::from(error.kind())),
            };
            let said = contender.told(said);
            let name = said.split(" sees ").next().unwrap_or_default().to_owned();
            if name == wanted || Instant::now() > end {
                self.heard.push(name);
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn begin(contender: &Contender, flow: &Flow, to: SocketAddr, patience: Duration) -> std::io::Result<Talk> {
    contender.as_one(flow.from, |inside| {
        Talk::begin(inside, flow.means, contender.port(), to, patience)
    })
}

fn ask_all(all: &mut [Open], contender: &Contender) {
    let end = Instant::now() + long();
    let lasting = all.iter_mut().filter(|open| open.lasts());
    lasting.for_each(|open| open.ask(contender, end));
}

/// What each flow saw; `wanted` says how it is to go.
pub(super) fn observe(contender: &mut Contender, wanted: impl Fn(&Flow) -> &'static str) -> Vec<String> {
    let mut all = Vec::new();
    for flow in FLOWS {
        for (v4, kind) in [(true, "IPv4"), (false, "IPv6")] {
            let to: SocketAddr = contender.address(flow.to, v4);
            let talk = begin(contender, flow, to, long());
            let wanted = wanted(flow).split(", ").map(str::to_owned).collect();
            all.push(Open {
                flow,
                to,
                wanted,
                kind,
                talk,
                heard: Vec::new(),
            });
        }
    }
    ask_all(&mut all, contender);
    change(contender);
    ask_all(&mut all, contender);
    contender.restart_proxies();
    ask_all(&mut all, contender);
    let seen = |pair: &[Open]| {
        together(
            pair.iter()
                .map(|open| (open.kind.to_owned(), open.heard.join(", "))),
        )
    };
    all.chunks(2).map(seen).collect()
}
