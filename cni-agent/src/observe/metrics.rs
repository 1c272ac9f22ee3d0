//! Prometheus metrics, made anew at each scrape from what the kernel counts and what the agent says of itself.

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

use super::{counters::Counters, tables::Fill};
use crate::{
    compile::service::SetName,
    model::{NamespacedName, Protocol},
    state::of_host_ports,
    status::{ServicesStatus, Status},
};
use std::{collections::BTreeMap, sync::atomic::AtomicU64};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Drop {
    reason: String,
    direction: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MapName {
    map: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceName {
    source: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

/// One set of a Service's endpoints: what counts for it is never less than before, whatever becomes of the others. Whoever
/// scrapes has a label `namespace` of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceSet {
    service_namespace: String,
    service_name: String,
    port: u16,
    protocol: String,
    family: &'static str,
    policy: &'static str,
}

/// Connections that have begun, of each set of a Service's endpoints.
pub type Opened = BTreeMap<(NamespacedName, SetName), u64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolState {
    range: String,
    state: String,
}

/// What is known at a scrape. The kernel's part is missing while there are no maps.
pub struct Snapshot<'a> {
    pub status: &'a Status,
    pub counters: Option<&'a Counters>,
    pub fills: &'a BTreeMap<String, Fill>,
    pub opened: &'a Opened,
    /// Of Services, as the agent measures it.
    pub latency: &'a Histogram,
}

/// The text of the exposition format.
pub fn render(snapshot: &Snapshot<'_>) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("millrace");
    let build = vec![("version", env!("CARGO_PKG_VERSION"))];
    registry.register("build", "The release that runs", Info::new(build));
    agent(&mut registry, snapshot.status);
    if let Some(counters) = snapshot.counters {
        packets(&mut registry, counters);
    }
    tables(&mut registry, snapshot.fills);
    if let Some(status) = &snapshot.status.services {
        services(&mut registry, status, snapshot.latency);
        connections(&mut registry, snapshot.opened);
    }
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: i64) {
    let gauge = Gauge::<i64>::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter = Counter::<u64>::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

fn number(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

fn agent(registry: &mut Registry, status: &Status) {
    gauge(
        registry,
        "ready",
        "1 if an ADD can be served",
        i64::from(status.ready),
    );
    gauge(
        registry,
        "endpoints",
        "Pods with an address of this node",
        number(status.endpoints.len()),
    );
    gauge(
        registry,
        "problems",
        "Things that do not work, as `millrace status` names them",
        number(status.problems.len()),
    );
    let reconcile = &status.reconcile;
    counter(
        registry,
        "reconcile_rounds",
        "Comparisons of everything with the kernel",
        reconcile.rounds,
    );
    counter(
        registry,
        "reconcile_changes",
        "Changes made in the kernel",
        reconcile.changes,
    );
    counter(
        registry,
        "reconcile_errors",
        "Changes that failed",
        reconcile.failures,
    );
    gauge(
        registry,
        "reconcile_failing",
        "Changes that are being tried again",
        number(reconcile.failing.len()),
    );
    let synced = Family::<SourceName, Gauge>::default();
    for (source, state) in &status.sources {
        let label = SourceName {
            source: source.to_string(),
        };
        synced.get_or_create(&label).set(i64::from(state.synced));
    }
    registry.register(
        "source_synced",
        "1 if the source has said everything it knew",
        synced,
    );
    let addresses = Family::<PoolState, Gauge>::default();
    for pool in &status.pools {
        for (state, value) in [
            ("used", pool.used),
            ("quarantined", pool.quarantined),
            ("free", pool.free),
        ] {
            let label = PoolState {
                range: pool.range.to_string(),
                state: state.to_owned(),
            };
            addresses.get_or_create(&label).set(number(value));
        }
    }
    registry.register("addresses", "Pod addresses of each range", addresses);
}

fn services(registry: &mut Registry, status: &ServicesStatus, latency: &Histogram) {
    let summary = &status.summary;
    for (name, help, value) in [
        ("services", "Services in the kernel", summary.services),
        (
            "service_frontends",
            "Addresses and ports of Services",
            summary.frontends,
        ),
        ("service_backends", "Endpoints that answer", summary.backends),
        (
            "service_slots",
            "Rows that lead from Services to endpoints",
            summary.slots,
        ),
    ] {
        gauge(registry, name, help, number(value));
    }
    let troubles = &status.troubles;
    let problems = Family::<Kind, Gauge>::default();
    for (kind, count) in [
        ("object", troubles.object),
        ("room", troubles.room),
        ("frontend", troubles.frontend),
        ("unread", troubles.unread),
    ] {
        problems.get_or_create(&Kind { kind }).set(number(count));
    }
    registry.register(
        "service_problems",
        "Services that are not served as they ask: by what they ask for, for want of room, because a frontend is another \
         Service's, or because nobody can read them",
        problems,
    );
    let age = status.synced.and_then(|then| then.elapsed().ok());
    if let Some(age) = age {
        gauge(
            registry,
            "service_sync_age_seconds",
            "Since everything that was known of Services was last in the kernel",
            number(age.as_secs()),
        );
    }
    if let Some(took) = status.first_sync {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(took.as_secs_f64());
        registry.register(
            "service_first_sync_seconds",
            "From all Services being known to their being in the kernel, when the agent began",
            gauge,
        );
    }
    registry.register(
        "service_programming_seconds",
        "From what made a Service's endpoints change to their being in the kernel",
        latency.clone(),
    );
}

fn connections(registry: &mut Registry, opened: &Opened) {
    let connections = Family::<ServiceSet, Counter>::default();
    // Host ports of pods come and go with them.
    let of_services = opened
        .iter()
        .filter(|((name, _), _)| of_host_ports(&name.name).is_none());
    for ((service, set), count) in of_services {
        let label = ServiceSet {
            service_namespace: service.namespace.to_string(),
            service_name: service.name.clone(),
            port: set.port,
            protocol: Protocol::from_number(set.proto).map_or_else(String::new, |one| one.to_string()),
            family: if set.v4 { "ipv4" } else { "ipv6" },
            policy: if set.local { "local" } else { "cluster" },
        };
        connections.get_or_create(&label).inc_by(*count);
    }
    registry.register(
        "service_connections",
        "Connections through a Service that began on this node, and first datagrams; what had none has no such line",
        connections,
    );
}

fn packets(registry: &mut Registry, counters: &Counters) {
    let (packets, bytes) = (
        Family::<Drop, Counter>::default(),
        Family::<Drop, Counter>::default(),
    );
    for drop in &counters.dropped {
        let label = Drop {
            reason: drop.reason.clone(),
            direction: drop.direction.clone(),
        };
        packets.get_or_create(&label).inc_by(drop.packets);
        bytes.get_or_create(&label).inc_by(drop.bytes);
    }
    registry.register("drop_packets", "Packets dropped", packets);
    registry.register("drop_bytes", "Bytes of packets dropped", bytes);
    let (packets, bytes) = (
        Family::<Direction, Counter>::default(),
        Family::<Direction, Counter>::default(),
    );
    for passed in &counters.passed {
        let label = Direction {
            direction: passed.direction.clone(),
        };
        packets.get_or_create(&label).inc_by(passed.packets);
        bytes.get_or_create(&label).inc_by(passed.bytes);
    }
    registry.register("forward_packets", "Packets passed on", packets);
    registry.register("forward_bytes", "Bytes of packets passed on", bytes);
    counter(
        registry,
        "events_lost",
        "Events for which the ring had no room",
        counters.events_lost,
    );
}

fn tables(registry: &mut Registry, fills: &BTreeMap<String, Fill>) {
    let [entries, live, capacity] = [(); 3].map(|()| Family::<MapName, Gauge>::default());
    for (map, fill) in fills {
        let label = MapName { map: map.clone() };
        entries.get_or_create(&label).set(number(fill.entries));
        if let Some(count) = fill.live {
            live.get_or_create(&label).set(number(count));
        }
        capacity.get_or_create(&label).set(i64::from(fill.capacity));
    }
    registry.register(
        "map_entries",
        "Entries of a map (a reading may be 15 seconds old)",
        entries,
    );
    registry.register(
        "map_live_entries",
        "Entries whose time is not over; at the capacity, new connections cost old ones or are refused",
        live,
    );
    registry.register("map_capacity", "Entries that a map has room for", capacity);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::counters::Count;

    #[test]
    fn svc_62_metrics_bear_the_prefix_and_the_labels() {
        let drop = Count {
            reason: "martian".into(),
            direction: "egress".into(),
            packets: 3,
            bytes: 200,
            ..Count::default()
        };
        let counters = Counters {
            dropped: vec![drop],
            events_lost: 5,
            ..Counters::default()
        };
        let fills = BTreeMap::from([(
            "conntrack".to_owned(),
            Fill {
                entries: 2,
                live: Some(1),
                capacity: 10,
            },
        )]);
        let name = NamespacedName {
            namespace: "shop".into(),
            name: "cart".into(),
        };
        let pod = NamespacedName {
            name: "pod/cart".into(),
            ..name.clone()
        };
        let set = SetName {
            port: 80,
            proto: 6,
            v4: true,
            local: false,
        };
        let opened = Opened::from([((name, set), 7), ((pod, set), 9)]);
        let latency = Histogram::new([0.1]);
        latency.observe(0.05);
        let status = Status {
            ready: true,
            services: Some(ServicesStatus {
                first_sync: Some(std::time::Duration::from_millis(1500)),
                troubles: crate::services::Troubles {
                    room: 2,
                    ..crate::services::Troubles::default()
                },
                ..ServicesStatus::default()
            }),
            ..Status::default()
        };
        let text = render(&Snapshot {
            status: &status,
            counters: Some(&counters),
            fills: &fills,
            opened: &opened,
            latency: &latency,
        })
        .unwrap();
        for line in [
            "millrace_drop_packets_total{reason=\"martian\",direction=\"egress\"} 3",
            "millrace_events_lost_total 5",
            "millrace_service_connections_total{service_namespace=\"shop\",service_name=\"cart\",port=\"80\",protocol=\"TCP\",\
             family=\"ipv4\",policy=\"cluster\"} 7",
            "millrace_map_entries{map=\"conntrack\"} 2",
            "millrace_map_live_entries{map=\"conntrack\"} 1",
            "millrace_map_capacity{map=\"conntrack\"} 10",
            "millrace_ready 1",
            "millrace_services 0",
            "millrace_service_problems{kind=\"room\"} 2",
            "millrace_service_problems{kind=\"unread\"} 0",
            "millrace_service_first_sync_seconds 1.5",
            "millrace_service_programming_seconds_bucket{le=\"0.1\"} 1",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        }
        assert!(text.contains("millrace_build_info{version="));
    }
}
