//! What `xdp_nodeport` is measured beside.

use core::ffi::c_void;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_TX};
use aya_ebpf::helpers::generated as helper;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use cni_ebpf::abi::Port;
use cni_ebpf::datapath::Packet;

use super::super::frame::Frame;
use super::super::programs::turn_round;
use super::{IPV6, PACKET, WORDS, turn};

/// Exchanges the link addresses and sends the frame back: the least that a program can do.
#[xdp(frags)]
pub(crate) fn bench_swap(context: XdpContext) -> u32 {
    let mut frame = Frame::over(context.ctx);
    let Some([d0, d1, d2, s0, s1, s2]) = frame.load::<[u16; 6]>(0) else {
        return XDP_ABORTED;
    };
    match frame.write(0, &[s0, s1, s2, d0, d1, d2]) {
        Ok(()) => XDP_TX,
        Err(_) => XDP_ABORTED,
    }
}

/// The other end of the cable.
#[xdp(frags)]
pub(crate) fn bench_drop(_: XdpContext) -> u32 {
    XDP_DROP
}

/// Makes the frame that of the next flow: the number stands in the source port. Nobody restores what was sent.
#[inline(always)]
fn restore(context: &XdpContext) -> Option<()> {
    let flow = turn()?;
    // SAFETY: as in `turn`.
    let packet = unsafe { &mut *PACKET.get_ptr_mut(0)? };
    let source = Port::new(1024 + (flow & 0x7fff) as u16).wire();
    packet[if packet[6] == IPV6 { 27 } else { 17 }] = source;
    let from = core::ptr::from_mut(packet).cast::<c_void>();
    // SAFETY: `packet` is that many initialised bytes.
    let failed = unsafe { helper::bpf_xdp_store_bytes(context.ctx, 0, from, 2 * WORDS as u32) };
    (failed == 0).then_some(())
}

#[xdp(frags)]
pub(crate) fn bench_restore(context: XdpContext) -> u32 {
    if restore(&context).is_some() {
        XDP_TX
    } else {
        XDP_ABORTED
    }
}

#[xdp(frags)]
pub(crate) fn bench_nodeport(context: XdpContext) -> u32 {
    if restore(&context).is_none() {
        return XDP_ABORTED;
    }
    turn_round(&context)
}
