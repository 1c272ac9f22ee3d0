//! What `xdp_nodeport` is measured beside.

use core::ffi::c_void;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_TX};
use aya_ebpf::helpers::generated as helper;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use cni_ebpf::abi::{Addr, Port, Tuple};
use cni_ebpf::datapath::{Packet, Wire};

use super::super::frame::Frame;
use super::super::maps::NAT;
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

/// What nobody who translates known connections to where the routing table says can do without: one look-up of the
/// connection, and one of the route to its pod. Nothing is translated, counted or aged.
#[xdp(frags)]
pub(crate) fn bench_floor(context: XdpContext) -> u32 {
    if restore(&context).is_none() {
        return XDP_ABORTED;
    }
    let mut frame = Frame::over(context.ctx);
    match sent_where_its_pod_is(&mut frame) {
        Some(()) => XDP_TX,
        None => XDP_ABORTED,
    }
}

#[inline(always)]
fn sent_where_its_pod_is(frame: &mut Frame) -> Option<()> {
    let tuple = dialled(frame)?;
    // SAFETY: the entry lives until the end of the RCU section, which is the program's.
    let alias = unsafe { NAT.get(tuple) }?;
    // The other side is the node's address, which hides the client.
    let pod = if alias.flow.a == tuple.dst {
        alias.flow.b
    } else {
        alias.flow.a
    };
    let hop = frame.hop(&tuple.dst, &pod, frame.length())?;
    frame.write(0, &hop.link).ok()
}

/// The tuple of a frame without options.
#[inline(always)]
fn dialled(frame: &Frame) -> Option<Tuple> {
    let v6 = frame.load::<u16>(12)? == IPV6;
    let ports = frame.load::<[u16; 2]>(if v6 { 54 } else { 34 })?;
    let (src, dst) = if v6 {
        let [s0, s1, d0, d1] = frame.load::<[u64; 4]>(22)?;
        (Addr { hi: s0, lo: s1 }, Addr { hi: d0, lo: d1 })
    } else {
        let [src, dst] = frame.load::<[u32; 2]>(26)?;
        (Addr::v4_word(src), Addr::v4_word(dst))
    };
    let [src_port, dst_port] = ports.map(Port::from_wire);
    Some(Tuple {
        src,
        dst,
        src_port,
        dst_port,
        proto: 6,
        ..Tuple::default()
    })
}
