//! Translated source ports towards one place until there are none: how many are given, and what each costs.
//!
//! Real traffic beside the kernel's own masquerade; and the real programs, a packet at a time: a pod's SYN, which is timed, and the answer, after which the
//! connection is an established one that nothing evicts.

mod traffic;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cni_ebpf::abi::{Config, Reason};
use cni_tests::bench::series::{Samples, median, quantile};
use cni_tests::bench::{Command, Report};
use cni_tests::frames::Ends;
use cni_tests::world::{self, Hook, Kernel, ifindex, ip, mac, pod};

const MILLRACE: &str = "millrace";
const PLAIN: &str = "a new connection without translation";
const FULL: Config = Config::DEFAULT;
/// The maps as the product has them.
const ROOM: u32 = 1 << 17;
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const GOAL: f64 = 98.0;
/// Of these, one is compared with a connection that needs no port.
const COMPARED: u32 = 32;

/// How full the range is, in percent, where costs are told apart.
const PARTS: [(u32, u32); 5] = [(0, 10), (10, 50), (50, 90), (90, 98), (98, 100)];

fn ports() -> u32 {
    FULL.snat_last - FULL.snat_first + 1
}

fn part(given: u32) -> Option<(u32, u32)> {
    let percent = given * 100 / ports();
    PARTS
        .into_iter()
        .find(|(from, to)| (*from..*to).contains(&percent))
}

fn from_pod(dst: IpAddr, src_port: u16) -> Ends {
    Ends {
        src_mac: mac(ifindex::POD_A),
        dst_mac: world::NODE_MAC,
        src: pod(2, dst.is_ipv6()),
        dst,
        src_port,
        dst_port: 443,
        ttl: 64,
    }
}

/// A world whose maps are the kernel's.
struct Bench {
    kernel: Kernel,
    v6: bool,
    out: Vec<u8>,
}

impl Bench {
    fn sent(&mut self, hook: Hook, frame: Vec<u8>, device: u32) -> Result<(Result<(), Reason>, Duration)> {
        let frame = world::frame(frame, device);
        let (outcome, time) = self.kernel.run_timed(hook, &frame, &mut self.out)?;
        Ok((outcome.map(drop), time))
    }

    /// The port with which a connection leaves, and the time that took.
    fn dial(&mut self, src_port: u16) -> Result<(Option<u16>, Duration)> {
        let dst = ip(if self.v6 { "2620:fe::9" } else { "9.9.9.9" });
        let ends = from_pod(dst, src_port);
        let (outcome, time) = self.sent(Hook::FromPod, ends.tcp(SYN, &[]), ifindex::POD_A)?;
        match outcome {
            Err(Reason::NatExhausted) => return Ok((None, time)),
            other => other.map_err(|reason| anyhow::anyhow!("a SYN was dropped: {reason:?}"))?,
        }
        let place = if self.v6 { 54 } else { 34 };
        let port = self.out.get(place..place + 2).context("a packet without ports")?;
        let port = u16::from_be_bytes([port[0], port[1]]);
        self.answer(ends, port)?;
        Ok((Some(port), time))
    }

    fn answer(&mut self, ends: Ends, port: u16) -> Result<()> {
        let node = ip(if self.v6 { "2001:db8::1" } else { "192.0.2.1" });
        let answer = Ends {
            src_mac: mac(ifindex::NETDEV),
            dst_mac: world::NODE_MAC,
            dst: node,
            dst_port: port,
            ..ends.reversed()
        };
        let (outcome, _) = self.sent(Hook::FromNetdev, answer.tcp(SYN_ACK, &[]), ifindex::NETDEV)?;
        outcome.map_err(|reason| anyhow::anyhow!("an answer was dropped: {reason:?}"))
    }

    /// The time of a connection to another node's pod.
    fn plain(&mut self, src_port: u16) -> Result<Duration> {
        let dst = ip(if self.v6 { "fd00:2::9" } else { "10.2.0.9" });
        let frame = from_pod(dst, src_port).tcp(SYN, &[]);
        let (outcome, time) = self.sent(Hook::FromPod, frame, ifindex::POD_A)?;
        outcome.map_err(|reason| anyhow::anyhow!("a SYN was dropped: {reason:?}"))?;
        Ok(time)
    }

    fn round(&mut self, samples: &mut Samples) -> Result<()> {
        let family = if self.v6 { "IPv6" } else { "IPv4" };
        let mut taken = vec![false; 1 << 16];
        let mut given = 0;
        let mut first_refused = None;
        let mut times: Vec<((u32, u32), f64)> = Vec::new();
        let (mut plain, mut refused) = (Vec::new(), Vec::new());
        // A few more than there are ports.
        for src_port in (1024..).take(ports() as usize * 101 / 100) {
            if u32::from(src_port) % COMPARED == 0 {
                plain.push(self.plain(src_port)?.as_nanos() as f64);
            }
            let (port, time) = self.dial(src_port)?;
            let time = time.as_nanos() as f64;
            match port {
                Some(port) => {
                    ensure!(
                        !std::mem::replace(&mut taken[usize::from(port)], true),
                        "port {port} was given twice"
                    );
                    times.extend(part(given).map(|part| (part, time)));
                    given += 1;
                }
                None => {
                    first_refused.get_or_insert(given);
                    refused.push(time);
                }
            }
        }
        let percent = |number: u32| f64::from(number) / f64::from(ports()) * 100.0;
        let share = percent(first_refused.unwrap_or(given));
        samples.add(
            MILLRACE,
            &format!("{family}, ports given before one is refused"),
            "%",
            share,
        );
        samples.add(MILLRACE, &format!("{family}, ports given"), "%", percent(given));
        for (from, to) in PARTS {
            let of: Vec<f64> = times
                .iter()
                .filter(|(part, _)| *part == (from, to))
                .map(|(_, time)| *time)
                .collect();
            let metric = format!("{family}, {from} to {to} % full");
            for (what, value) in [
                ("a new connection", median(&of)),
                ("a new connection, p99", quantile(&of, 0.99)),
            ] {
                if let Some(value) = value {
                    samples.add(what, &metric, "ns", value);
                }
            }
            if let (true, Some(value)) = (from == 0, median(&plain)) {
                samples.add(PLAIN, &metric, "ns", value);
            }
        }
        if let Some(value) = median(&refused) {
            samples.add("a refusal", &format!("{family}, no port found"), "ns", value);
        }
        Ok(())
    }
}

fn measure(v6: bool, samples: &mut Samples) -> Result<()> {
    // The thread stays in the world's namespace.
    std::thread::scope(|scope| {
        let round = scope.spawn(|| {
            let config = Config {
                snat_first: FULL.snat_first,
                snat_last: FULL.snat_last,
                ..world::CONFIG
            };
            let kernel = Kernel::sized(&config, ROOM)?;
            let mut bench = Bench {
                kernel,
                v6,
                out: Vec::new(),
            };
            bench.round(samples)
        });
        round
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn main() -> Result<()> {
    let command = Command::read()?;
    let mut samples = Samples::default();
    if command.wants("traffic") {
        traffic::measure(command.rounds, &mut samples)?;
    }
    if command.wants("program") {
        for _ in 0..command.rounds {
            for v6 in [false, true] {
                measure(v6, &mut samples)?;
            }
        }
    }
    let mut report = Report::new("snat-fill", command.rounds, &samples);
    for family in ["IPv4", "IPv6"] {
        let metric = format!("{family}, ports given before one is refused");
        let share = samples.values(MILLRACE, &metric).and_then(median);
        let value = share.map(|share| share / 100.0);
        report.ratio(&metric, MILLRACE, "the range", value, Some(GOAL / 100.0));
    }
    let value = samples.ratio(MILLRACE, traffic::KERNEL, traffic::BEFORE);
    report.ratio(traffic::BEFORE, MILLRACE, traffic::KERNEL, value, None);
    command.publish(&report)
}
