//! Programs for `BPF_PROG_TEST_RUN` with `repeat`, built with the feature `bench` into an object of their own.
//!
//! The kernel runs a repeated program over one packet and never restores it. `from_pod` rewrites MAC addresses and TTL, so
//! its second run would measure the drop of a spoofed packet. Here each run writes the packet anew first, for the next
//! flow of a prepared order; [`bench_empty`] does that and nothing else, and is what is to be subtracted.

mod dial;
mod swap;

use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::helpers::generated as helper;
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::TcContext;
use cni_ebpf::abi::Port;
use cni_ebpf::datapath;

use super::programs::run;

/// Length of the order, a power of two.
const RUNS: u32 = 1 << 17;
/// The packet as 16-bit words.
const WORDS: usize = 48;
const IPV6: u16 = 0x86dd_u16.to_be();

/// The packet, without its ports.
#[map(name = "bench_packet")]
static PACKET: PerCpuArray<[u16; WORDS]> = PerCpuArray::with_max_entries(1, 0);
/// Which flow's turn it is.
#[map(name = "bench_order")]
static ORDER: Array<u32> = Array::with_max_entries(RUNS, 0);
#[map(name = "bench_next")]
static NEXT: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// The next number of the order.
#[inline(always)]
fn turn() -> Option<u32> {
    // SAFETY: a value of this CPU alone; programs of one CPU do not interrupt each other.
    let next = unsafe { &mut *NEXT.get_ptr_mut(0)? };
    *next = next.wrapping_add(1);
    ORDER.get(*next & (RUNS - 1)).copied()
}

/// Makes the packet that of the next flow. The number of a flow stands in its ports.
#[inline(always)]
fn restore(context: &TcContext) -> Option<()> {
    let flow = turn()?;
    // SAFETY: as in `turn`.
    let packet = unsafe { &mut *PACKET.get_ptr_mut(0)? };
    let source = Port::new(1024 + (flow & 0x7fff) as u16).wire();
    let destination = Port::new(8000 + (flow >> 15) as u16).wire();
    if packet[6] == IPV6 {
        packet[27] = source;
        packet[28] = destination;
    } else {
        packet[17] = source;
        packet[18] = destination;
    }
    let from = core::ptr::from_ref(packet).cast::<c_void>();
    // SAFETY: `packet` is that many initialised bytes.
    let failed =
        unsafe { helper::bpf_skb_store_bytes(context.as_ptr().cast(), 0, from, 2 * WORDS as u32, 0) };
    (failed == 0).then_some(())
}

#[classifier]
pub(crate) fn bench_empty(context: TcContext) -> i32 {
    match restore(&context) {
        Some(()) => 0,
        None => TC_ACT_SHOT,
    }
}

#[classifier]
#[expect(
    clippy::redundant_closure,
    reason = "like those of the programs it is always inlined"
)]
pub(crate) fn bench_from_pod(context: TcContext) -> i32 {
    if restore(&context).is_none() {
        return TC_ACT_SHOT;
    }
    run(
        &context,
        #[inline(always)]
        |maps, packet, work| datapath::from_pod(maps, packet, work),
    )
}
