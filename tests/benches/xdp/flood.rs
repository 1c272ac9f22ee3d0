//! A flood of new connections at a NodePort, and what becomes of the connections through it that there are.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cni_tests::bench::Report;
use cni_tests::bench::report::Limit;
use cni_tests::bench::series::Samples;
use cni_tests::frames::Ends;
use cni_tests::lab::{Families, Lab, Node, Plan, Routing};
use cni_tests::traffic::{Echo, Steady, pour};
use cni_tests::wire::Tap;
use serde_json::json;

const NODE_PORT: u16 = 30_080;
/// Entries of the table of new connections, and how many SYNs a second come: ten tables.
const TABLE: u64 = 1024;
const RATE: u64 = 10 * TABLE;
const WINDOW: Duration = Duration::from_secs(2);

const WITH: &str = "during a flood";
const WITHOUT: &str = "without it";
const EXCHANGES: &str = "requests of established connections";
const LOST: &str = "established connections lost";
const SYNS: &str = "SYNs";
const TURNED: &str = "packets turned round by XDP";
const PASSED: &str = "packets that XDP left to the stack, of a thousand";
/// What belongs to a connection that the small table has no more is the stack's: the more, the later it comes.
const PASSED_AT_MOST: f64 = 200.0;

/// A Service whose only endpoint is elsewhere.
fn service(address: &str) -> serde_json::Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "flooded", "namespace": "bench" },
            "spec": {
                "type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
                "ports": [{ "name": "t", "port": 80, "nodePort": NODE_PORT, "protocol": "TCP" }],
            },
        },
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": "flooded-1", "namespace": "bench", "labels": { "kubernetes.io/service-name": "flooded" },
            },
            "ports": [{ "name": "t", "port": 8080, "protocol": "TCP" }],
            "endpoints": [{ "addresses": [address], "nodeName": "node1" }],
        },
    ] })
}

fn wait_until_served(node: &Node) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    while node.dump("services")?.is_empty() {
        ensure!(Instant::now() < end, "the Service was not served");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// What a device's program has met so far, and how much of that it has turned round.
#[derive(Clone, Copy, Debug)]
struct Met {
    packets: u64,
    turned: u64,
}

impl Met {
    fn by(node: &Node) -> Result<Self> {
        let text = node.namespace.ethtool("-S eth0")?;
        let sum = |count: &str| -> u64 {
            let lines = text.lines().filter_map(|line| line.trim().split_once(": "));
            let queues = lines.filter(|(name, _)| name.starts_with("rx_queue_") && name.ends_with(count));
            queues
                .filter_map(|(_, value)| value.trim().parse::<u64>().ok())
                .sum()
        };
        Ok(Self {
            packets: sum("_xdp_packets"),
            turned: sum("_xdp_tx"),
        })
    }

    fn since(self, before: Self) -> Self {
        Self {
            packets: self.packets - before.packets,
            turned: self.turned - before.turned,
        }
    }
}

pub(crate) fn measure(rounds: usize, samples: &mut Samples) -> Result<()> {
    let config = json!({
        "services": { "proxy": "millrace", "cidrs": ["10.96.0.0/16"], "xdp": "native" },
        "maps": { "conntrackNew": TABLE },
    });
    let lab = Lab::start(Plan::new(Routing::Direct, Families::V4).config(config))?;
    let [near, far] = lab.pair();
    let pod = far.add_pod("pod")?;
    let _echo = Echo::tcp(&pod.namespace, pod.ip(true), 8080)?;
    for node in &lab.nodes {
        node.write_manifest("service.yaml", &service(&pod.ip(true).to_string()))?;
        wait_until_served(node)?;
    }
    let _ports = lab.take_frames_back()?;
    for host in [&lab.outside, &pod.namespace] {
        host.finish_checksums("eth0")?;
    }
    let to = SocketAddr::new(near.address(true), NODE_PORT);
    let flows: Vec<Steady> = (0..8)
        .map(|_| Steady::tcp(&lab.outside, to))
        .collect::<Result<_>>()?;
    flows.iter().for_each(|flow| flow.wait_for(10));
    let from = Ends {
        src_mac: lab.outside.mac("eth0")?,
        dst_mac: lab.fabric.mac("outside")?,
        src: lab.outside_address(true),
        dst: to.ip(),
        src_port: 0,
        dst_port: NODE_PORT,
        ttl: 64,
    };
    let tap = Tap::open(&lab.outside, "eth0")?;
    let (on, end, sent) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let exchanges = || flows.iter().map(Steady::exchanges).sum::<u64>();
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            pour(RATE, &on, &end, &sent, |number| {
                let src_port = 1024 + (number % 60_000) as u16;
                tap.send(&Ends { src_port, ..from }.tcp(2, b""))
            })
        });
        let mut watch = || -> Result<()> {
            for turn in 0..2 * rounds {
                let (contender, flooding) = if turn % 2 == 0 {
                    (WITH, true)
                } else {
                    (WITHOUT, false)
                };
                on.store(flooding, Ordering::Relaxed);
                let met = Met::by(near)?;
                let (before, poured, begin) = (exchanges(), sent.load(Ordering::Relaxed), Instant::now());
                thread::sleep(WINDOW);
                let seconds = begin.elapsed().as_secs_f64();
                samples.add(
                    contender,
                    EXCHANGES,
                    "1/s",
                    (exchanges() - before) as f64 / seconds,
                );
                if flooding {
                    let syns = sent.load(Ordering::Relaxed) - poured;
                    let met = Met::by(near)?.since(met);
                    let passed =
                        1000.0 * met.packets.saturating_sub(met.turned) as f64 / met.packets.max(1) as f64;
                    // Otherwise this would measure another path. Answers come by the program too.
                    ensure!(
                        met.turned > syns && passed <= PASSED_AT_MOST,
                        "{syns} SYNs came, and of a thousand packets XDP left {passed:.1} to the stack: {met:?}"
                    );
                    samples.add(WITH, SYNS, "1/s", syns as f64 / seconds);
                    samples.add(WITH, TURNED, "1/s", met.turned as f64 / seconds);
                    samples.add(WITH, PASSED, "", passed);
                }
            }
            Ok(())
        };
        let watched = watch();
        // Whatever was seen: who waits for the flood would wait for ever.
        end.store(true, Ordering::Relaxed);
        let poured = flood
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        watched.and(poured)
    })?;
    let lost = flows.into_iter().map(Steady::stop);
    let lost = lost.filter(|tally| !tally.failures.is_empty()).count();
    samples.add(WITH, LOST, "", lost as f64);
    Ok(())
}

pub(crate) fn report(samples: &Samples, report: &mut Report) {
    let value = samples.ratio(WITH, WITHOUT, EXCHANGES);
    report.ratio(EXCHANGES, WITH, WITHOUT, value, None);
    if let Some(lost) = samples
        .values(WITH, LOST)
        .and_then(|values| values.first().copied())
    {
        report.limits.push(Limit {
            metric: LOST.to_owned(),
            value: lost,
            unit: "",
            most: 0.0,
        });
    }
}
