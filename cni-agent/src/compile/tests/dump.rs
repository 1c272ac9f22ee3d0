//! What should be in the kernel, as lines that people can read and compare.

use std::{fmt::Write, net::IpAddr};

use cni_ebpf::abi::{
    Addr, Endpoint, Prefix, Route, ServiceKey, backend_flags, device_flags, peer_flags, route_action,
    route_flags, service_flags, service_scope,
};

use crate::{
    compile::{Compiled, service},
    desired::{Desired, HostRoute, Table, Tables},
    model::NamespacedName,
    services::Book,
};

const FRONTEND_FLAGS: [(u32, &str); 5] = [
    (service_flags::REJECT, "refuse"),
    (service_flags::DROP, "drop"),
    (service_flags::MASQUERADE, "masquerade"),
    (service_flags::DSR, "dsr"),
    (service_flags::ANY_NODE, "any-node"),
];
const BACKEND_FLAGS: [(u32, &str); 2] = [
    (backend_flags::LOCAL, "local"),
    (backend_flags::TERMINATING, "terminating"),
];

pub(super) fn compiled(compiled: &Compiled) -> String {
    let mut out = String::new();
    if !compiled.complete {
        out.push_str("incomplete\n");
    }
    desired(&compiled.desired, &mut out);
    for problem in &compiled.problems {
        let _ = writeln!(out, "problem {problem}");
    }
    out
}

pub(super) fn service(name: &NamespacedName, compiled: &service::Compiled, out: &mut String) {
    let _ = writeln!(out, "service {name}");
    for frontend in &compiled.frontends {
        let mut words = flags(&FRONTEND_FLAGS, frontend.flags);
        if frontend.affinity_seconds != 0 {
            words.push(format!("affinity {}", frontend.affinity_seconds));
        }
        if frontend.restricted {
            words.push("restricted".to_owned());
        }
        if frontend.only_answers_pings() {
            words.push("pings".to_owned());
        }
        let set = compiled.sets.iter().find(|set| Some(set.name) == frontend.set);
        if let Some(set) = set {
            let targets = set
                .targets
                .iter()
                .map(|target| format!("{}:{}", target.addr, target.port));
            words.push(format!(
                "to [{}] by {:?}",
                targets.collect::<Vec<_>>().join(" "),
                set.hints
            ));
        }
        let _ = writeln!(out, "  {} {}", front(&frontend.key), words.join(" "));
    }
    for (target, flags_of) in &compiled.serving {
        let words = flags(&BACKEND_FLAGS, *flags_of).join(" ");
        let _ = writeln!(
            out,
            "  serving {}:{}/{} {words}",
            target.addr, target.port, target.proto
        );
    }
    if !compiled.ranges.is_empty() {
        let ranges: Vec<String> = compiled.ranges.iter().map(ToString::to_string).collect();
        let _ = writeln!(out, "  ranges {}", ranges.join(" "));
    }
    if let Some(health) = compiled.health {
        let _ = writeln!(out, "  health {} local {:?}", health.port, health.local_ready);
    }
    for problem in &compiled.problems {
        let _ = writeln!(out, "  problem {problem}");
    }
}

/// The rows of all Services; of Maglev tables only who has one, for their parts are numbers by the thousand.
pub(super) fn book(book: &Book, out: &mut String) {
    let view = book.view();
    let mut frontends = view.rows(Table::Services).services;
    frontends.sort_unstable_by_key(|(key, _)| *key);
    for (key, service) in frontends {
        let mut words = flags(&FRONTEND_FLAGS, service.flags);
        if service.slots != 0 {
            let (first, end) = (service.first, service.first + service.slots);
            words.push(format!("set {} places {first}..{end}", service.id));
        }
        if service.flags & service_flags::AFFINITY != 0 {
            words.push(format!("affinity {}", service.affinity_seconds));
        }
        if service.ranges != 0 {
            words.push(format!("ranges {}", service.ranges));
        }
        if service.maglev != 0 {
            words.push(format!("table {} of {}", service.maglev, service.maglev_size));
        }
        line(&format!("frontend {}", front(&key)), &words, out);
    }
    for (place, slot) in view.rows(Table::ServiceSlots).slots {
        let (set, backend, ip, port) = (slot.service, slot.backend, slot.addr, slot.port);
        let _ = writeln!(out, "place {place} set {set} backend {backend} at {ip}:{port}");
    }
    let mut members = view.rows(Table::ServiceMembers).members;
    members.sort_unstable_by_key(|(key, _)| (key.service, key.backend));
    for (key, _) in members {
        let _ = writeln!(out, "member {} of set {}", key.backend, key.service);
    }
    let mut ranges = view.rows(Table::ServiceRanges).ranges;
    ranges.sort_unstable_by_key(|(range, _)| (range.ranges, range.words.map(u32::from_be), range.len));
    for (range, _) in ranges {
        let prefix = Prefix {
            // In front of the address stands the number.
            len: range.len - 32,
            words: range.words,
        };
        let (ip, length) = prefix.parts();
        let _ = writeln!(out, "ranges {} {ip}/{length}", range.ranges);
    }
    let mut backends = view.rows(Table::Backends).backends;
    backends.sort_unstable_by_key(|(number, _)| *number);
    for (number, backend) in backends {
        let (ip, port, proto) = (backend.addr, backend.port, backend.proto);
        let words = flags(&BACKEND_FLAGS, backend.flags);
        line(&format!("backend {number} {ip}:{port}/{proto}"), &words, out);
    }
}

fn line(what: &str, words: &[String], out: &mut String) {
    let words = words.iter().map(String::as_str);
    let words: Vec<&str> = [what].into_iter().chain(words).collect();
    let _ = writeln!(out, "{}", words.join(" "));
}

fn front(key: &ServiceKey) -> String {
    let scope = if key.scope == service_scope::EXTERNAL {
        "outside"
    } else {
        "inside"
    };
    format!("{} {}/{} {scope}", key.addr, key.port, key.proto)
}

fn flags(names: &[(u32, &str)], flags: u32) -> Vec<String> {
    let set = names.iter().filter(|(flag, _)| flags & flag != 0);
    set.map(|(_, name)| (*name).to_owned()).collect()
}

fn desired(desired: &Desired, out: &mut String) {
    if let Some(config) = desired.config {
        let _ = writeln!(
            out,
            "config ipv4 {} ipv6 {} masquerade {} tunnel {} on {} vni {} ports {}-{}",
            config.ipv4,
            config.ipv6,
            config.masquerade,
            config.tunnel,
            config.tunnel_ifindex,
            config.vni,
            config.snat_first,
            config.snat_last
        );
    }
    tables(&desired.tables, out);
    if let Some(vxlan) = &desired.vxlan {
        let _ = writeln!(out, "vxlan {} port {} mtu {}", vxlan.name, vxlan.port, vxlan.mtu);
    }
    for (key, ifindex) in &desired.links {
        let _ = writeln!(out, "link {key} on {ifindex}");
    }
    for (key, route) in &desired.routes {
        let HostRoute::Via(next) = route else {
            let _ = writeln!(out, "host-route {} unreachable", key.destination);
            continue;
        };
        let gateway = next.gateway.map(|ip| format!(" via {ip}")).unwrap_or_default();
        let source = next.source.map(|ip| format!(" src {ip}")).unwrap_or_default();
        let _ = writeln!(
            out,
            "host-route {}{gateway} dev {}{source}",
            key.destination, next.ifindex
        );
    }
    for key in desired.neighbours.keys() {
        let _ = writeln!(out, "neighbour {} dev {}", key.ip, key.ifindex);
    }
    for (name, veth) in &desired.veths {
        let _ = writeln!(out, "veth {name} {veth:?}");
    }
    for ifindex in &desired.pacing {
        let _ = writeln!(out, "pace {ifindex}");
    }
    for (path, value) in &desired.sysctls {
        let _ = writeln!(out, "sysctl {path} = {value}");
    }
}

fn tables(tables: &Tables, out: &mut String) {
    for (index, device) in &tables.devices {
        let (v4, v6) = (device.masquerade_v4, device.masquerade_v6);
        let paces = if device.flags & device_flags::PACES == 0 {
            ""
        } else {
            " paces"
        };
        let _ = writeln!(
            out,
            "device {index} mtu {} masquerade {v4} {v6}{paces}",
            device.mtu
        );
    }
    for (addr, peer) in &tables.peers {
        let kind = match peer.flags {
            peer_flags::POD => "pod",
            peer_flags::HOST => "host",
            peer_flags::REMOTE_NODE => "node",
            _ => "?",
        };
        let _ = writeln!(out, "peer {addr} {kind}");
    }
    for (addr, id) in &tables.addresses {
        let Some(endpoint) = tables.endpoints.get(&Endpoint::slot(*id)) else {
            let _ = writeln!(out, "address {addr} of nobody");
            continue;
        };
        let _ = writeln!(
            out,
            "endpoint {addr} id {} dev {} mtu {} flags {:#x}",
            endpoint.id, endpoint.ifindex, endpoint.mtu, endpoint.flags
        );
    }
    for (prefix, entry) in &tables.routes {
        let (ip, length) = prefix.parts();
        let _ = writeln!(out, "route {ip}/{length} {}", route(entry));
    }
    for key in tables.buckets.keys() {
        let _ = writeln!(out, "bucket {key}");
    }
}

fn route(route: &Route) -> String {
    let mut text = match route.action {
        route_action::ENDPOINTS => "endpoints",
        route_action::HOST => "host",
        route_action::TUNNEL => "tunnel",
        route_action::DIRECT => "direct",
        route_action::FIB => "fib",
        route_action::STACK => "stack",
        route_action::UNREACHABLE => "unreachable",
        route_action::SERVICE => "service",
        _ => "?",
    }
    .to_owned();
    if route.gateway != Addr::UNSPECIFIED {
        let _ = write!(text, " {}", IpAddr::from(route.gateway));
    }
    if route.ifindex != 0 {
        let _ = write!(text, " dev {} mtu {}", route.ifindex, route.mtu);
    }
    for (flag, name) in [
        (route_flags::MASQUERADE, " masquerade"),
        (route_flags::NODE, " node"),
        (route_flags::DSR, " dsr"),
    ] {
        if route.flags & flag != 0 {
            text.push_str(name);
        }
    }
    text
}
