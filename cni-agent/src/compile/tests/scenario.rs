//! Scenarios: files in `scenarios/` with what goes in and, in readable lines, what comes out.
//!
//! A file has parts, each under a line `=== NAME`: `config` (YAML), `manifests` (YAML), `devices` and `endpoints` (a line
//! each), and `expect`. With `BLESS=1` the last one is written instead of compared. Afterwards everything is deleted, and
//! nothing may be left in the kernel.

use std::{collections::BTreeMap, fs, path::PathBuf};

use cni_plugin::{Attachment, Mac};
use similar::{Algorithm, ChangeTag, TextDiff};

use super::dump;
use crate::{
    compile::{
        Topology, compile,
        service::{self, Place},
    },
    config::{Config, Proxy},
    desired::Desired,
    kernel::{Scope, fake::FakeKernel},
    model::{Device, DeviceAddress, DeviceKind, Endpoint, Event, Phase, Rates},
    reconcile::{Reconciler, Removals},
    services::{Book, Capacity, Numbers},
    source::file::Folder,
    state::State,
};

struct Scenario {
    config: Config,
    state: State,
    expect: String,
}

fn parts(text: &str) -> BTreeMap<&str, String> {
    let mut parts: BTreeMap<&str, String> = BTreeMap::new();
    let mut name = "";
    for line in text.lines() {
        if let Some(next) = line.strip_prefix("=== ") {
            name = next.trim();
        } else if !line.starts_with('#') {
            let part = parts.entry(name).or_default();
            part.push_str(line);
            part.push('\n');
        }
    }
    parts
}

fn read(text: &str) -> Scenario {
    let mut parts = parts(text);
    let mut part = |name: &str| parts.remove(name).unwrap_or_default();
    let config = Config::parse(&part("config")).unwrap();
    let mut state = State::new([]);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("all.yaml"), part("manifests")).unwrap();
    for event in Folder::new(folder.path().to_owned()).scan() {
        assert!(!matches!(event, Event::Problems(..)), "{event:?}");
        state.handle(event);
    }
    let devices = part("devices")
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(device)
        .collect();
    state.handle(Event::Devices(devices));
    for line in part("endpoints").lines().filter(|line| !line.trim().is_empty()) {
        let endpoint = endpoint(line);
        state.endpoints.insert(endpoint.id, endpoint);
    }
    Scenario {
        config,
        state,
        expect: part("expect"),
    }
}

/// `NAME INDEX KIND MTU [ADDRESS/LENGTH...] [default] [down] [master=INDEX] [nomac] [paces]`
fn device(line: &str) -> Device {
    let mut words = line.split_whitespace();
    let mut next = || {
        words
            .next()
            .unwrap_or_else(|| panic!("too few words: {line}"))
            .to_owned()
    };
    let (name, ifindex, kind, mtu) = (next(), next(), next(), next());
    let mut device = Device {
        name,
        ifindex: ifindex.parse().unwrap(),
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        mtu: mtu.parse().unwrap(),
        up: true,
        master: None,
        kind: serde_json::from_value::<DeviceKind>(kind.into()).unwrap(),
        addresses: Vec::new(),
        default_route: false,
        paces: false,
    };
    for word in words {
        match word.split_once('=') {
            Some(("master", index)) => device.master = Some(index.parse().unwrap()),
            _ if word == "default" => device.default_route = true,
            _ if word == "paces" => device.paces = true,
            _ if word == "down" => device.up = false,
            _ if word == "nomac" => device.mac = None,
            _ => device.addresses.push(DeviceAddress {
                network: word.parse().unwrap(),
                global: true,
                avoid: false,
            }),
        }
    }
    device
}

/// `ID CONTAINER INDEX|reserved ADDRESS... [viaStack] [limited]`
fn endpoint(line: &str) -> Endpoint {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [id, container, index, rest @ ..] = words.as_slice() else {
        panic!("too few words: {line}")
    };
    Endpoint {
        id: id.parse().unwrap(),
        network: "net".into(),
        attachment: Attachment::new(*container, "eth0"),
        pod: None,
        pod_uid: String::new(),
        confirmed: false,
        addresses: rest.iter().filter_map(|word| word.parse().ok()).collect(),
        delegated: false,
        mac: Mac([2, 0, 0, 0, 1, 1]),
        host_mac: Mac([2, 0, 0, 0, 1, 2]),
        mtu: 1450,
        via_stack: rest.contains(&"viaStack"),
        rates: if rest.contains(&"limited") {
            Rates {
                egress: 1000,
                ..Rates::default()
            }
        } else {
            Rates::default()
        },
        created: 1,
        phase: match *index {
            "reserved" => Phase::Reserved,
            index => Phase::Programmed {
                ifindex: index.parse().unwrap(),
            },
        },
    }
}

/// What Services come to, and which rows that makes, if they are served here.
fn services(scenario: &Scenario, out: &mut String) {
    if scenario.config.services.proxy != Proxy::Millrace {
        return;
    }
    let topology = Topology::new(&scenario.config, &scenario.state);
    let place = Place::new(&topology, &scenario.state, std::collections::BTreeSet::new());
    let known = &scenario.state.services;
    let folder = tempfile::tempdir().unwrap();
    let numbers = Numbers::open(folder.path().join("numbers")).unwrap();
    let mut book = Book::new(numbers, Capacity::of(&scenario.config.maps));
    for name in known.names() {
        let slices: Vec<_> = known.slices_of(name).collect();
        let compiled = service::compile(&place, known.get(name).unwrap(), &slices);
        dump::service(name, &compiled, out);
        book.set(name, compiled);
    }
    dump::book(&book, out);
}

async fn round(reconciler: &mut Reconciler<FakeKernel>, desired: &Desired) {
    let observed = reconciler.observe(desired, Scope::Whole).await.unwrap();
    let outcome = reconciler.converge(desired, &observed, Removals::Allowed).await;
    assert!(outcome.is_complete(), "{outcome:?}");
}

/// In, out, and nothing is left.
async fn come_and_go(scenario: &Scenario) {
    let kernel = FakeKernel::default();
    let mut reconciler = Reconciler::new(kernel.clone());
    for endpoint in scenario.state.programmed() {
        kernel.add_veth(&endpoint.host_ifname(), endpoint.ifindex().unwrap());
    }
    let compiled = compile(&scenario.config, &scenario.state);
    round(&mut reconciler, &compiled.desired).await;
    assert_eq!(kernel.lock().tables, compiled.desired.tables);
    // Without objects only what the configuration itself says is left.
    let mut empty = State::new([]);
    empty
        .devices
        .extend(scenario.state.device(&scenario.config.vxlan.device).cloned());
    let rest = compile(&scenario.config, &empty).desired;
    round(&mut reconciler, &rest).await;
    let tables = kernel.lock().tables.clone();
    assert!(tables.peers.is_empty() && tables.endpoints.is_empty() && tables.addresses.is_empty());
    assert_eq!(kernel.lock().routes, rest.routes);
    assert!(kernel.lock().veths.is_empty());
    round(&mut reconciler, &Desired::default()).await;
    assert!(kernel.is_empty());
}

#[tokio::test]
async fn scenarios() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let scenario = read(&text);
        let mut found = dump::compiled(&compile(&scenario.config, &scenario.state));
        services(&scenario, &mut found);
        if std::env::var_os("BLESS").is_some() {
            let (before, _) = text.split_once("=== expect\n").unwrap();
            fs::write(&path, format!("{before}=== expect\n{found}")).unwrap();
        } else {
            let difference: Vec<String> = diff_lines(&scenario.expect, &found);
            assert!(
                difference.is_empty(),
                "{}:\n{}",
                path.display(),
                difference.join("\n")
            );
        }
        come_and_go(&scenario).await;
        seen += 1;
    }
    assert!(seen >= 5);
}

/// What has to go and what has to come, line by line, so that `wanted` becomes `found`.
fn diff_lines(wanted: &str, found: &str) -> Vec<String> {
    let [wanted, found] = [wanted, found].map(|text| text.lines().collect::<Vec<_>>());
    let mut config = TextDiff::configure();
    let difference = config.algorithm(Algorithm::Lcs).diff_slices(&wanted, &found);
    let changes = difference.iter_all_changes();
    changes
        .filter(|change| change.tag() != ChangeTag::Equal)
        .map(|change| format!("{} {}", change.tag(), change.value()))
        .collect()
}

#[test]
fn lines_that_are_doubled_or_misplaced_differ() {
    assert!(diff_lines("a\nb\na\n", "a\nb\na\n").is_empty());
    assert_eq!(diff_lines("a\nb\nc\n", "a\nb\nb\nc\n"), ["+ b"]);
    assert_eq!(diff_lines("a\nb\n", "b\na\n"), ["- a", "+ a"]);
    assert_eq!(diff_lines("a\nb\nc", "a\nd\nc\ne"), ["- b", "+ d", "+ e"]);
}
