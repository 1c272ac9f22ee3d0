//! The same packets through the host build and through the loaded programs: verdict, reason and bytes are equal.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on panics"
)]

#[path = "packets/admission.rs"]
mod admission;
#[path = "packets/clock.rs"]
mod clock;
#[path = "packets/contested.rs"]
mod contested;
#[path = "packets/departure.rs"]
mod departure;
#[path = "packets/direct.rs"]
mod direct;
#[path = "packets/dispute.rs"]
mod dispute;
#[path = "packets/external.rs"]
mod external;
#[path = "packets/fixtures.rs"]
mod fixtures;
#[path = "packets/forged.rs"]
mod forged;
#[path = "packets/fragments.rs"]
mod fragments;
#[path = "packets/handover.rs"]
mod handover;
#[path = "packets/lifetime.rs"]
mod lifetime;
#[path = "packets/limit.rs"]
mod limit;
#[path = "packets/maglev.rs"]
mod maglev;
#[path = "packets/malformed.rs"]
mod malformed;
#[path = "packets/mutation.rs"]
mod mutation;
#[path = "packets/ports.rs"]
mod ports;
#[path = "packets/reasons.rs"]
mod reasons;
#[path = "packets/refusals.rs"]
mod refusals;
#[path = "packets/reports.rs"]
mod reports;
#[path = "packets/rival.rs"]
mod rival;
#[path = "packets/services.rs"]
mod services;
#[path = "packets/slots.rs"]
mod slots;
#[path = "packets/sockets.rs"]
mod sockets;
#[path = "packets/stack.rs"]
mod stack;
#[path = "packets/succession.rs"]
mod succession;
#[path = "packets/tally.rs"]
mod tally;
#[path = "packets/timeouts.rs"]
mod timeouts;
#[path = "packets/translation.rs"]
mod translation;
#[path = "packets/xdp.rs"]
mod xdp;

use cni_ebpf::abi::{Config, Event, Reason};
use cni_ebpf::datapath::{Verdict, Work};
use cni_tests::memory::{Frame, Memory};
use cni_tests::world::{self, Hook, Kernel};

/// Both worlds.
struct Pair {
    memory: Memory,
    kernel: Kernel,
    work: Work,
    out: Vec<u8>,
    /// What the host build told in the last run.
    events: Vec<Event>,
}

impl Pair {
    fn new(config: Config) -> Self {
        Self {
            memory: Memory {
                config,
                ..world::memory()
            },
            kernel: Kernel::with(&config).unwrap(),
            work: Work::default(),
            out: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Runs the packet through both and compares; gives what became of it, and the packet as it left.
    fn run(&mut self, hook: Hook, bytes: &[u8], ifindex: u32) -> (Result<Verdict, Reason>, Vec<u8>) {
        self.run_frame(hook, &world::frame(bytes.to_vec(), ifindex))
    }

    /// The same with all that can be said about a packet.
    fn run_frame(&mut self, hook: Hook, before: &Frame) -> (Result<Verdict, Reason>, Vec<u8>) {
        let bytes = &before.bytes;
        if !runs_in_kernel(bytes) {
            self.memory.clock.set(world::monotonic());
            let (host, frame) = self.host(hook, before);
            return (host, frame.bytes);
        }
        let kernel = self.kernel.run(hook, before, &mut self.out).unwrap();
        // Not a moment later: of two connections that could have the next packet the younger one has it.
        self.memory.clock.set(self.kernel.moment().unwrap());
        let (host, frame) = self.host(hook, before);
        assert_eq!(host, kernel, "{} over {}", hook.name(), hex(bytes));
        if host.is_err() && self.work.answered == 0 {
            assert_eq!(
                &frame.bytes,
                bytes,
                "a dropped packet is left as it was: {}",
                hex(bytes)
            );
        }
        assert_eq!(
            hex(&frame.bytes),
            hex(&self.out),
            "{} ({host:?}) over {}",
            hook.name(),
            hex(bytes)
        );
        (host, frame.bytes)
    }

    /// Runs the packet through the host build alone: for states and times that the kernel's maps cannot be put into.
    fn host(&mut self, hook: Hook, before: &Frame) -> (Result<Verdict, Reason>, Frame) {
        let mut frame = before.clone();
        let outcome = world::run(&self.memory, hook, &mut frame, &mut self.work);
        self.events = self.memory.events.take();
        self.memory.settle();
        (outcome, frame)
    }

    /// Fills the bucket of a pod with a limit.
    fn refill(&mut self, pod: u32, tokens: i64) {
        let bucket = world::bucket(tokens);
        self.kernel.refill(pod, &bucket).unwrap();
        self.memory.buckets.put(world::bucket_key(pod), bucket);
    }

    fn forget(&mut self) {
        self.memory.forget();
        self.kernel.forget().unwrap();
    }
}

/// `BPF_PROG_TEST_RUN` refuses packets that end inside of the header that their Ethertype announces.
fn runs_in_kernel(bytes: &[u8]) -> bool {
    match bytes.get(12..14) {
        Some([0x08, 0x00]) => bytes.len() >= 34,
        Some([0x86, 0xdd]) => bytes.len() >= 54,
        _ => bytes.len() > 14,
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Runs `test` on a thread of its own, because the world's kernel half moves its thread to another namespace.
fn with_pair(config: Config, test: impl FnOnce(&mut Pair) + Send + 'static) {
    std::thread::spawn(move || test(&mut Pair::new(config)))
        .join()
        .unwrap();
}

fn privileged() -> bool {
    nix::unistd::geteuid().is_root()
}
