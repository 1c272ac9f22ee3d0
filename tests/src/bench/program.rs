//! Programs by themselves: nanoseconds a run by `BPF_PROG_TEST_RUN`, each run over the next number of a prepared order.

use anyhow::{Context, Result, ensure};
use aya::maps::Array;
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use cni_ebpf::abi::Config;

use super::series::quantile;
use crate::{object::Global, signals};

/// As long as the object's map.
pub const ORDER: u32 = 1 << 17;
/// Runs in one call, a fraction of a millisecond, and the share of calls that nothing interrupts.
const PART: u32 = 2048;
const UNDISTURBED: f64 = 0.25;

/// A generator with the same sequence in every run (xorshift).
pub struct Random(pub u64);

impl Random {
    pub const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

    pub fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (((self.0 >> 32) * u64::from(end)) >> 32) as u32
    }
}

/// Has the calling thread preempted by nobody who is not more important than the bench: the kernel counts what runs in
/// between as the program's time.
pub fn undisturbed() -> Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the calling thread, and a structure that lives through the call.
    let failed = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    ensure!(
        failed == 0,
        "real-time priority: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// The object with the programs for benches.
pub fn object() -> Result<Vec<u8>> {
    let path = std::env::var_os("MILLRACE_BENCH_OBJECT").context("MILLRACE_BENCH_OBJECT is not set")?;
    std::fs::read(&path).with_context(|| format!("read {}", path.display()))
}

/// Creates the maps of the object with the programs for benches, some of them with another size, and loads programs.
pub fn open(sizes: &[(&str, u32)], programs: &[&str]) -> Result<Ebpf> {
    let bytes = object()?;
    let mut loader = EbpfLoader::new();
    let global = Global(Config::DEFAULT);
    loader.override_global("CONFIG", &global, true);
    for (map, entries) in sizes {
        loader.map_max_entries(map, *entries);
    }
    let mut ebpf = loader.load(&bytes).context("create the maps")?;
    for name in programs {
        let program: &mut SchedClassifier = ebpf
            .program_mut(name)
            .with_context(|| format!("no program {name}"))?
            .try_into()?;
        signals::hold_back(|| program.load()).with_context(|| format!("load {name}"))?;
    }
    Ok(ebpf)
}

pub fn program<'e>(ebpf: &'e Ebpf, name: &str) -> Result<&'e SchedClassifier> {
    Ok(ebpf
        .program(name)
        .context("a program of the object")?
        .try_into()?)
}

/// Whose turn it is, run by run.
pub fn set_order(ebpf: &mut Ebpf, order: &[u32]) -> Result<()> {
    let map = ebpf.map_mut("bench_order").context("no map bench_order")?;
    let mut map: Array<_, u32> = Array::try_from(map)?;
    for (index, number) in (0..).zip(order) {
        map.set(index, number, 0)?;
    }
    Ok(())
}

/// The program's context: only the device counts.
pub fn context(ifindex: u32) -> [u8; 192] {
    let mut context = [0; 192];
    context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

/// Nanoseconds a run, over the whole order; each must end with `expected`.
pub fn nanoseconds(ebpf: &Ebpf, name: &str, packet: &[u8], ifindex: u32, expected: u32) -> Result<f64> {
    let context = context(ifindex);
    let mut parts = Vec::new();
    for _ in 0..ORDER / PART {
        let result = program(ebpf, name)?.test_run(TestRunOptions {
            data_in: Some(packet),
            ctx_in: Some(&context),
            repeat: PART,
            ..TestRunOptions::new()
        })?;
        ensure!(
            result.return_value == expected,
            "{name} ended with {}, not {expected}: this would measure another path",
            result.return_value
        );
        parts.push(result.duration.as_nanos() as f64);
    }
    quantile(&parts, UNDISTURBED).context("no parts")
}
