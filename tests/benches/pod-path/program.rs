//! `from_pod` by itself: nanoseconds a packet by `BPF_PROG_TEST_RUN`, over one flow and over many.
//!
//! The programs `bench_empty` and `bench_from_pod` write the packet anew before each run; the first does nothing else, so
//! the difference is the cost of the pipeline.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, PerCpuArray, PerCpuValues};
use aya::programs::{TestRun, TestRunOptions};
use cni_ebpf::abi::{Addr, Endpoint, Flow, FlowKey, Prefix, Route, as_bytes, route_action};
use cni_tests::bench::Command;
use cni_tests::bench::load::bind;
use cni_tests::bench::program::{self, ORDER, Random, context, nanoseconds, set_order, undisturbed};
use cni_tests::bench::report::Limit;
use cni_tests::bench::series::{Samples, median};
use cni_tests::frames::Ends;
use cni_tests::netns::Namespace;

const FLOWS: u32 = 65_536;
/// Of the packet, headers and payload.
const BYTES: usize = 96;
/// Two pods; their devices have these indices.
const PODS: [u32; 2] = [10, 11];
/// As many endpoints as a full node has.
const ENDPOINTS: u32 = 110;
const REDIRECT: u32 = 7;
const MOST: f64 = 60.0;

const EMPTY: &str = "empty program";
const FULL: &str = "from_pod";

/// In which order flows come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    Hot,
    Zipf,
    Uniform,
}

impl Keys {
    const ALL: [Self; 3] = [Self::Hot, Self::Zipf, Self::Uniform];

    fn metric(self, v4: bool) -> String {
        let family = if v4 { "IPv4" } else { "IPv6" };
        match self {
            Self::Hot => format!("a packet, {family}, one flow"),
            Self::Zipf => format!("a packet, {family}, {FLOWS} flows, Zipf"),
            Self::Uniform => format!("a packet, {family}, {FLOWS} flows, uniform"),
        }
    }

    fn order(self) -> Vec<u32> {
        let mut random = Random(Random::SEED);
        match self {
            Self::Hot => vec![0; ORDER as usize],
            Self::Uniform => (0..ORDER).map(|_| random.below(FLOWS)).collect(),
            Self::Zipf => zipf(&mut random),
        }
    }
}

/// Ranks with a probability of one over the rank, spread over the flows' numbers.
fn zipf(random: &mut Random) -> Vec<u32> {
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=FLOWS)
        .map(|rank| {
            sum += 1.0 / f64::from(rank);
            sum
        })
        .collect();
    let draw = |random: &mut Random| {
        let point = f64::from(random.below(u32::MAX)) / f64::from(u32::MAX) * sum;
        let rank = sums.partition_point(|sum| *sum < point) as u32;
        // An odd factor is a permutation of the numbers.
        rank.wrapping_mul(40_503) % FLOWS
    };
    (0..ORDER).map(|_| draw(random)).collect()
}

fn address(v4: bool, pod: u32) -> IpAddr {
    if v4 {
        IpAddr::from([10, 1, 0, 2 + pod as u8])
    } else {
        IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, 2 + pod as u16])
    }
}

fn mac(pod: u32) -> [u8; 6] {
    [2, 0, 0, 0, 1, pod as u8]
}

fn raw<T: cni_ebpf::abi::Plain, const N: usize>(value: &T) -> Result<[u8; N]> {
    Ok(as_bytes(value).try_into()?)
}

/// The object in a namespace whose devices have the right indices.
struct Bench {
    ebpf: Ebpf,
    _namespace: Namespace,
}

impl Bench {
    /// The calling thread is in the namespace that this needs, and bound to one processor.
    fn load(namespace: Namespace) -> Result<Self> {
        for index in PODS {
            namespace.ip(&format!(
                "link add d{index} index {index} type veth peer name p{index}"
            ))?;
        }
        // Room for the flows of both families: an LRU map evicts before it is full.
        let sizes = [("conntrack", 4 * FLOWS)];
        let ebpf = program::open(&sizes, &["from_pod", "bench_empty", "bench_from_pod"])?;
        let mut bench = Self {
            ebpf,
            _namespace: namespace,
        };
        bench.fill()?;
        Ok(bench)
    }

    fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))
    }

    fn fill(&mut self) -> Result<()> {
        for pod in 0..ENDPOINTS {
            let endpoint = Endpoint {
                id: 1 + pod,
                ifindex: PODS[0] + pod,
                mac: mac(pod),
                host_mac: mac(0xff),
                mtu: 1500,
                ..Endpoint::default()
            };
            let mut endpoints: Array<_, [u8; size_of::<Endpoint>()]> =
                Array::try_from(self.map("endpoints")?)?;
            endpoints.set(Endpoint::slot(endpoint.id), raw(&endpoint)?, 0)?;
            let mut addresses: HashMap<_, [u8; size_of::<Addr>()], u32> =
                HashMap::try_from(self.map("addresses")?)?;
            for v4 in [true, false] {
                addresses.insert(raw(&Addr::from(address(v4, pod)))?, endpoint.id, 0)?;
            }
        }
        let mut routes: LpmTrie<_, [u32; 4], [u8; size_of::<Route>()]> =
            LpmTrie::try_from(self.map("routes")?)?;
        for (v4, length) in [(true, 24), (false, 64)] {
            let first = match address(v4, 0) {
                IpAddr::V4(_) => IpAddr::from([10, 1, 0, 0]),
                IpAddr::V6(_) => IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, 0]),
            };
            let prefix = Prefix::new(first, length).context("a prefix")?;
            let route = Route {
                action: route_action::ENDPOINTS,
                ..Route::default()
            };
            routes.insert(&Key::new(prefix.len, prefix.words), raw(&route)?, 0)?;
        }
        Ok(())
    }

    /// One handshake for each flow: through the real program, so that entries are what they are in traffic.
    fn establish(&mut self, v4: bool) -> Result<()> {
        for flow in 0..FLOWS {
            for (flags, from) in [(0x02, 0), (0x12, 1), (0x10, 0)] {
                let mut ends = ends(v4, flow);
                if from == 1 {
                    ends = ends.reversed();
                    (ends.src_mac, ends.dst_mac) = (mac(1), mac(0xff));
                }
                let packet = ends.tcp(flags, &[]);
                let context = context(PODS[from]);
                let options = TestRunOptions {
                    data_in: Some(&packet),
                    ctx_in: Some(&context),
                    ..TestRunOptions::new()
                };
                let verdict = program::program(&self.ebpf, "from_pod")?
                    .test_run(options)?
                    .return_value;
                ensure!(
                    verdict == REDIRECT,
                    "a handshake's packet of flow {flow}: {verdict:#x}"
                );
            }
        }
        let flows: HashMap<_, [u8; size_of::<FlowKey>()], [u8; size_of::<Flow>()]> =
            HashMap::try_from(self.map("conntrack")?)?;
        let established = flows.keys().flatten().count() as u32;
        // An LRU map may evict a little before it is full.
        ensure!(
            established >= FLOWS / 100 * 99,
            "only {established} flows are established"
        );
        Ok(())
    }

    fn prepare(&mut self, packet: &[u8], order: &[u32]) -> Result<()> {
        let mut words = [0u16; BYTES / 2];
        for (word, bytes) in words.iter_mut().zip(packet.as_chunks::<2>().0) {
            *word = u16::from_ne_bytes(*bytes);
        }
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let mut map: PerCpuArray<_, [u16; BYTES / 2]> = PerCpuArray::try_from(self.map("bench_packet")?)?;
        map.set(0, PerCpuValues::try_from(vec![words; cpus])?, 0)?;
        set_order(&mut self.ebpf, order)
    }

    fn measure(&self, program: &str, packet: &[u8]) -> Result<f64> {
        let expected = if program == "bench_empty" { 0 } else { REDIRECT };
        nanoseconds(&self.ebpf, program, packet, PODS[0], expected)
    }
}

/// A flow as the bench programs number them.
fn ends(v4: bool, flow: u32) -> Ends {
    Ends {
        src_mac: mac(0),
        dst_mac: mac(0xff),
        src: address(v4, 0),
        dst: address(v4, 1),
        src_port: 1024 + (flow & 0x7fff) as u16,
        dst_port: 8000 + (flow >> 15) as u16,
        ttl: 64,
    }
}

/// What the programs are run over.
fn packet(v4: bool) -> Vec<u8> {
    let headers = if v4 { 54 } else { 74 };
    ends(v4, 0).tcp(0x10, &vec![0; BYTES - headers])
}

/// Takes the samples of all rounds. The calling thread stays in the namespace.
pub(crate) fn measure(command: &Command, samples: &mut Samples, limits: &mut Vec<Limit>) -> Result<()> {
    let namespace = Namespace::create(&format!("mrbench-{}-program", std::process::id()))?;
    let inside = namespace.duplicate()?;
    inside.run(|| {
        bind(0)?;
        let mut bench = Bench::load(namespace)?;
        for v4 in [true, false] {
            bench.establish(v4)?;
        }
        undisturbed()?;
        for v4 in [true, false] {
            family(&mut bench, v4, command.rounds, samples)?;
        }
        anyhow::Ok(())
    })?;
    let net = samples.values(NET, &Keys::Hot.metric(true));
    limits.extend(net.and_then(median).map(|value| Limit {
        metric: format!("{} of {FULL}, net", Keys::Hot.metric(true)),
        value,
        unit: "ns",
        most: MOST,
    }));
    Ok(())
}

const NET: &str = "from_pod, net";

fn family(bench: &mut Bench, v4: bool, rounds: usize, samples: &mut Samples) -> Result<()> {
    let packet = packet(v4);
    let orders = Keys::ALL.map(Keys::order);
    for _ in 0..rounds {
        for (keys, order) in Keys::ALL.into_iter().zip(&orders) {
            bench.prepare(&packet, order)?;
            let empty = bench.measure("bench_empty", &packet)?;
            let full = bench.measure("bench_from_pod", &packet)?;
            for (contender, value) in [(EMPTY, empty), (FULL, full), (NET, full - empty)] {
                samples.add(contender, &keys.metric(v4), "ns", value);
            }
        }
    }
    Ok(())
}
