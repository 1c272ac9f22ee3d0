//! The look-up of a Service among many: from what a packet dialled to the backend, by itself.

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::{Array, HashMap};
use cni_ebpf::abi::{Addr, Backend, Port, Service, ServiceKey, Slot, as_bytes, service_scope};
use cni_tests::bench::Report;
use cni_tests::bench::load::bind;
use cni_tests::bench::program::{ORDER, Random, nanoseconds, open, set_order, undisturbed};
use cni_tests::bench::report::Limit;
use cni_tests::bench::series::{Samples, median, turns};

/// Behind each Service.
const ENDPOINTS: u32 = 3;
/// As large for a few Services as for all that they have room for.
const ROOM: u32 = 1 << 17;
const NET: &str = "look-up, net";
/// The least: one row of the table of frontends, found and read.
const ROW: &str = "one row, net";
const MORE: f64 = 0.05;
const MOST: f64 = 250.0;

/// In which order Services are dialled.
#[derive(Clone, Copy, Debug)]
enum Keys {
    Hot,
    Uniform,
}

impl Keys {
    const ALL: [Self; 2] = [Self::Hot, Self::Uniform];

    fn name(self) -> &'static str {
        match self {
            Self::Hot => "the look-up of one Service",
            Self::Uniform => "the look-up of any Service",
        }
    }

    fn order(self, services: u32) -> Vec<u32> {
        let mut random = Random(Random::SEED);
        let number = |_| match self {
            Self::Hot => services / 2,
            Self::Uniform => random.below(services),
        };
        (0..ORDER).map(number).collect()
    }
}

/// Maps with so many Services in them.
struct Crowd {
    services: u32,
    ebpf: Ebpf,
}

impl Crowd {
    fn new(services: u32) -> Result<Self> {
        let sizes = [
            ("services", ROOM),
            ("service_slots", ROOM * 4),
            ("backends", ROOM * 4),
        ];
        let mut crowd = Self {
            services,
            ebpf: open(&sizes, &["bench_dial", "bench_row", "bench_choose"])?,
        };
        crowd.fill()?;
        Ok(crowd)
    }

    fn put<const KEY: usize, const VALUE: usize>(
        &mut self,
        name: &str,
        rows: impl Iterator<Item = ([u8; KEY], [u8; VALUE])>,
    ) -> Result<()> {
        let map = self.ebpf.map_mut(name).context("a map of the object")?;
        let mut map: HashMap<_, [u8; KEY], [u8; VALUE]> = HashMap::try_from(map)?;
        for (key, value) in rows {
            map.insert(key, value, 0).with_context(|| name.to_owned())?;
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<()> {
        let all = 0..self.services;
        let backends = all.clone().flat_map(|service| {
            (0..ENDPOINTS).map(move |slot| {
                let number = 1 + service * ENDPOINTS + slot;
                let backend = Backend {
                    addr: Addr::v4((0x0a80_0000 + number).to_be_bytes()),
                    port: Port::new(8080),
                    proto: 6,
                    ..Backend::default()
                };
                (service, slot, number, backend)
            })
        });
        self.put::<4, 32>(
            "backends",
            backends
                .clone()
                .map(|(.., number, backend)| (raw(&number), raw(&backend))),
        )?;
        let map = self
            .ebpf
            .map_mut("service_slots")
            .context("a map of the object")?;
        let mut slots: Array<_, [u8; 32]> = Array::try_from(map)?;
        for (service, slot, number, backend) in backends {
            let row = Slot::new(1 + service, number, backend.addr, backend.port);
            slots.set(first(service) + slot, raw(&row), 0)?;
        }
        let frontends = all.map(|number| {
            let key = ServiceKey {
                addr: Addr::v4((0x0a40_0000 + number).to_be_bytes()),
                port: Port::new(80),
                proto: 6,
                scope: service_scope::CLUSTER,
                pad: 0,
            };
            let service = Service {
                id: 1 + number,
                slots: ENDPOINTS,
                first: first(number),
                ..Service::default()
            };
            (raw(&key), raw(&service))
        });
        self.put::<24, 32>("services", frontends)
    }

    fn measure(&mut self, keys: Keys, samples: &mut Samples) -> Result<()> {
        set_order(&mut self.ebpf, &keys.order(self.services))?;
        let packet = [0; 64];
        let asked = nanoseconds(&self.ebpf, "bench_dial", &packet, 1, 0)?;
        for (what, program) in [(NET, "bench_choose"), (ROW, "bench_row")] {
            let answered = nanoseconds(&self.ebpf, program, &packet, 1, 0)?;
            let contender = contender(what, self.services);
            samples.add(&contender, keys.name(), "ns", answered - asked);
        }
        Ok(())
    }
}

/// Where its slots begin: anywhere, as after a time of changes.
fn first(service: u32) -> u32 {
    service * ENDPOINTS
}

fn raw<T: cni_ebpf::abi::Plain, const N: usize>(value: &T) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(as_bytes(value));
    bytes
}

fn contender(what: &str, services: u32) -> String {
    format!("{what}, {services} Services")
}

/// Takes the samples of all rounds.
pub(crate) fn measure(services: &[u32], rounds: usize, samples: &mut Samples) -> Result<()> {
    // A thread of its own: bound and urgent for good.
    std::thread::scope(|scope| {
        let bench = scope.spawn(|| {
            bind(0)?;
            let mut crowds: Vec<Crowd> = services
                .iter()
                .map(|number| Crowd::new(*number))
                .collect::<Result<_>>()?;
            undisturbed()?;
            for round in 0..rounds {
                for turn in turns(crowds.len(), round) {
                    for keys in Keys::ALL {
                        crowds[turn].measure(keys, samples)?;
                    }
                }
            }
            Ok(())
        });
        bench
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

pub(crate) fn judge(services: &[u32], report: &mut Report, samples: &Samples) {
    let [Some(few), Some(many)] = [services.iter().min(), services.iter().max()] else {
        return;
    };
    let [few, many] = [few, many].map(|number| contender(NET, *number));
    let metric = Keys::Hot.name();
    // More is better: the time of few by that of many.
    let value = samples.ratio(&few, &many, metric);
    report.ratio(metric, &many, &few, value, Some(1.0 / (1.0 + MORE)));
    let uniform = Keys::Uniform.name();
    let row = contender(ROW, *services.iter().max().unwrap_or(&0));
    // Again a time.
    report.ratio(uniform, &many, &row, samples.ratio(&row, &many, uniform), None);
    let value = samples.values(&many, uniform).and_then(median);
    report.limits.extend(value.map(|value| Limit {
        metric: format!("{uniform}, {many}"),
        value,
        unit: "ns",
        most: MOST,
    }));
}
