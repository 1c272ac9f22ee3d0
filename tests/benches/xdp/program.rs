//! Frames that a device really sends (`BPF_F_TEST_XDP_LIVE_FRAMES`), out of one end of a virtual cable whose other end drops
//! them in its driver.
//!
//! Each frame of `bench_nodeport` and `bench_floor` is written anew before anything else, because nothing restores what was
//! sent; `bench_swap`, which needs no such thing, is measured without.

use anyhow::{Context, Result, ensure};
use aya::maps::{PerCpuArray, PerCpuValues};
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions};
use cni_ebpf::abi::Config;
use cni_ebpf::datapath::Verdict;
use cni_tests::bench::Report;
use cni_tests::bench::program::{self, ORDER, Random, set_order, undisturbed};
use cni_tests::bench::series::{Samples, turns};
use cni_tests::frames::Ends;
use cni_tests::object;
use cni_tests::world::{self, Hook, Kernel, ifindex, ip, mac, port};

const FLOWS: u32 = 16_384;
/// Of the frame: as many as the object's map holds.
const BYTES: usize = 96;
/// Frames in one call.
const BATCH: u32 = 64;
const GOAL: f64 = 0.55;
const ROOM: u32 = 1 << 18;

const NODEPORT: &str = "xdp_nodeport";
const SWAP: &str = "addresses swapped";
/// One look-up of the connection and one of the route, which is the most that can be hoped for.
const FLOOR: &str = "two look-ups and no more";
const PROGRAMS: [(&str, &str); 3] = [
    (NODEPORT, "bench_nodeport"),
    (SWAP, "bench_swap"),
    (FLOOR, "bench_floor"),
];

fn metric(v6: bool, many: bool) -> String {
    let flows = if many {
        format!("{FLOWS} flows")
    } else {
        "one flow".to_owned()
    };
    format!("packets, {}, {flows}", if v6 { "IPv6" } else { "IPv4" })
}

/// A flow as the bench program numbers them: from the client to a port of the node.
fn dialled(v6: bool, flow: u32) -> Ends {
    Ends {
        src_mac: [2, 9, 9, 9, 9, 9],
        dst_mac: mac(ifindex::NETDEV),
        src: ip(if v6 { "2620:fe::9" } else { "9.9.9.9" }),
        dst: ip(if v6 { "2001:db8::1" } else { "192.0.2.1" }),
        src_port: 1024 + flow as u16,
        dst_port: port::NODE_REMOTE,
        ttl: 60,
    }
}

struct Bench {
    kernel: Kernel,
    out: Vec<u8>,
}

impl Bench {
    /// The calling thread stays in the world's namespace.
    fn load() -> Result<Self> {
        let config = Config {
            // Twice as many ports as flows.
            snat_first: Config::DEFAULT.snat_first,
            snat_last: Config::DEFAULT.snat_last,
            ..world::CONFIG
        };
        let mut kernel = Kernel::of(&program::object()?, &config, ROOM)?;
        for (_, name) in PROGRAMS {
            object::load_xdp(kernel.ebpf(), name)?;
        }
        let other_end = format!("p{}", ifindex::NETDEV);
        object::load_xdp(kernel.ebpf(), "bench_drop")?.attach(&other_end, XdpMode::Driver)?;
        undisturbed()?;
        Ok(Self {
            kernel,
            out: Vec::new(),
        })
    }

    fn passes(&mut self, ends: Ends, flags: u8) -> Result<()> {
        let frame = world::frame(ends.tcp(flags, &[]), ifindex::NETDEV);
        let mut verdict = self.kernel.run(Hook::XdpNodeport, &frame, &mut self.out)?;
        if verdict == Ok(Verdict::Pass) {
            // One packet in 65,536 has the checksum of an unfinished one.
            verdict = self.kernel.run(Hook::FromNetdev, &frame, &mut self.out)?;
        }
        ensure!(
            matches!(verdict, Ok(Verdict::Neighbour { .. })),
            "a handshake's packet: {verdict:?}"
        );
        Ok(())
    }

    /// One handshake for each flow, so that entries are what they are in traffic.
    fn establish(&mut self, v6: bool) -> Result<()> {
        for flow in 0..FLOWS {
            let there = dialled(v6, flow);
            self.passes(there, 0x02)?;
            let l4 = if v6 { 54 } else { 34 };
            let port = self.out.get(l4..l4 + 2).context("a packet without ports")?;
            let back = Ends {
                src: ip(if v6 { "fd00:2::9" } else { "10.2.0.9" }),
                dst: there.dst,
                src_port: 8080,
                dst_port: u16::from_be_bytes([port[0], port[1]]),
                ..there
            };
            self.passes(back, 0x12)?;
            self.passes(there, 0x10)?;
        }
        let established = self.kernel.flows("conntrack")? as u32;
        ensure!(
            established >= FLOWS / 100 * 99,
            "only {established} flows are established"
        );
        Ok(())
    }

    fn prepare(&mut self, packet: &[u8], order: &[u32]) -> Result<()> {
        let whole: [u8; BYTES] = packet.try_into()?;
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let ebpf = self.kernel.ebpf();
        let map = ebpf.map_mut("bench_packet").context("no map bench_packet")?;
        let mut map: PerCpuArray<_, [u8; BYTES]> = PerCpuArray::try_from(map)?;
        map.set(0, PerCpuValues::try_from(vec![whole; cpus])?, 0)?;
        set_order(ebpf, order)
    }

    /// Packets a second.
    fn rate(&mut self, name: &str, packet: &[u8]) -> Result<f64> {
        let mut context = [0u8; 24];
        context[4..8].copy_from_slice(&u32::try_from(packet.len())?.to_ne_bytes());
        context[12..16].copy_from_slice(&ifindex::NETDEV.to_ne_bytes());
        let before = self.sent()?;
        let program: &aya::programs::Xdp = self
            .kernel
            .ebpf()
            .program(name)
            .context("a program")?
            .try_into()?;
        let begin = std::time::Instant::now();
        program.test_run(TestRunOptions {
            data_in: Some(packet),
            ctx_in: Some(&context),
            repeat: 8 * ORDER,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        })?;
        let elapsed = begin.elapsed().as_secs_f64();
        let arrived = self.sent()? - before;
        let share = arrived as f64 / f64::from(8 * ORDER);
        ensure!(
            share > 0.99,
            "{name}: only {share:.3} of the frames were sent: this would measure another path"
        );
        Ok(f64::from(8 * ORDER) / elapsed)
    }

    /// Frames that the device has sent, by the list of the calling thread's network (`/sys` shows that of its mount).
    fn sent(&self) -> Result<u64> {
        let list = std::fs::read_to_string("/proc/thread-self/net/dev")?;
        let name = format!("d{}:", ifindex::NETDEV);
        let line = list
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(&name));
        // Eight columns of what came, then packets after bytes.
        let packets = line.and_then(|line| line.split_whitespace().nth(9));
        Ok(packets.context("the device is not listed")?.parse()?)
    }

    fn round(&mut self, v6: bool, round: usize, samples: &mut Samples) -> Result<()> {
        let headers = if v6 { 74 } else { 54 };
        let packet = dialled(v6, 0).tcp(0x10, &vec![0; BYTES - headers]);
        let mut random = Random(Random::SEED);
        for many in [false, true] {
            let next = |_| if many { random.below(FLOWS) } else { 0 };
            let order: Vec<u32> = (0..ORDER).map(next).collect();
            self.prepare(&packet, &order)?;
            for turn in turns(PROGRAMS.len(), round) {
                let (contender, name) = PROGRAMS[turn];
                let rate = self.rate(name, &packet)?;
                samples.add(contender, &metric(v6, many), "1/s", rate);
            }
        }
        Ok(())
    }
}

/// All rounds.
pub(crate) fn measure(rounds: usize, samples: &mut Samples) -> Result<()> {
    std::thread::scope(|scope| {
        let all = scope.spawn(|| {
            let mut bench = Bench::load()?;
            for v6 in [false, true] {
                bench.kernel.forget()?;
                bench.establish(v6)?;
                for round in 0..rounds {
                    bench.round(v6, round, samples)?;
                }
            }
            Ok(())
        });
        all.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

pub(crate) fn report(samples: &Samples, report: &mut Report) {
    for v6 in [false, true] {
        for many in [false, true] {
            let metric = metric(v6, many);
            let value = samples.ratio(NODEPORT, SWAP, &metric);
            report.ratio(&metric, NODEPORT, SWAP, value, Some(GOAL));
            for (of, to) in [(FLOOR, SWAP), (NODEPORT, FLOOR)] {
                report.ratio(&metric, of, to, samples.ratio(of, to, &metric), None);
            }
        }
    }
}
