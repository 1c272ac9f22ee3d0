//! The look-up of a Service by itself. [`bench_dial`] makes what a packet asks, and is what is to be subtracted.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use cni_ebpf::abi::{Addr, Port, ServiceKey, client_kind, service_scope};
use cni_ebpf::datapath::Work;
use cni_ebpf::datapath::stage::Stage;

use super::super::maps::{SERVICES, WORK};
use super::super::stages;
use super::turn;

/// A Service's number is added to it.
const FIRST: u32 = u32::from_be_bytes([10, 64, 0, 0]);
const CLIENT: u32 = u32::from_ne_bytes([10, 1, 0, 2]);
const TCP: u8 = 6;

#[inline(always)]
fn dial(work: &mut Work) -> Option<()> {
    let number = turn()?;
    work.tuple.src = Addr::v4_word(CLIENT);
    work.tuple.dst = Addr::v4_word(FIRST.wrapping_add(number).to_be());
    work.tuple.dst_port = Port::new(80);
    work.tuple.proto = TCP;
    work.choice.scope = service_scope::CLUSTER;
    work.choice.client.client = Addr::v4_word(CLIENT);
    work.choice.client.kind = client_kind::ADDRESS;
    work.choice.found = 0;
    Some(())
}

#[inline(always)]
fn scratch() -> Option<&'static mut Work> {
    // SAFETY: a value of this CPU alone; programs of one CPU do not interrupt each other.
    WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}

#[classifier]
pub(crate) fn bench_dial(_: TcContext) -> i32 {
    match scratch().and_then(dial) {
        Some(()) => 0,
        None => TC_ACT_SHOT,
    }
}

/// One row of one table, which nobody who keeps frontends in a table of the kernel can do without.
#[classifier]
pub(crate) fn bench_row(_: TcContext) -> i32 {
    match scratch().and_then(row) {
        Some(slots) if slots != 0 => 0,
        _ => TC_ACT_SHOT,
    }
}

#[inline(always)]
fn row(work: &mut Work) -> Option<u32> {
    dial(work)?;
    let key = ServiceKey {
        addr: work.tuple.dst,
        port: work.tuple.dst_port,
        proto: TCP,
        scope: service_scope::CLUSTER,
        pad: 0,
    };
    // SAFETY: the entry lives until the end of the RCU section, which is the program's.
    unsafe { SERVICES.get(key) }.map(|service| service.slots)
}

#[classifier]
pub(crate) fn bench_choose(context: TcContext) -> i32 {
    if scratch().and_then(dial).is_none() {
        return TC_ACT_SHOT;
    }
    let refused = stages::call(Stage::Choose, context.as_ptr().cast());
    match scratch() {
        Some(work) if refused == 0 && work.choice.found != 0 => 0,
        _ => TC_ACT_SHOT,
    }
}
