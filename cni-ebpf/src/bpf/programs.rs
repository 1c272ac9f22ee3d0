#![allow(
    clippy::redundant_closure,
    reason = "a function as a value is called through a shim that is not inlined, and costs a frame of the stack"
)]
//! The programs: each calls the pipeline and carries out its verdict.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::{BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_redir_neigh};
use aya_ebpf::helpers::generated as helper;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use cni_ebpf::abi::{Addr, Reason, hook};
use cni_ebpf::datapath::{self, Outcome, Tables, Work, way};

use super::frame::Frame;
use super::handover::hand_over;
use super::kernel::cleared;
use super::link_header;
use super::maps::WORK;
use super::packet::Skb;
use super::tables::Maps;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

#[inline(always)]
pub(super) fn run(context: &TcContext, pipeline: impl FnOnce(&Maps, &mut Skb, &mut Work) -> Outcome) -> i32 {
    let Some(work) = WORK.get_ptr_mut(0) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: a value of this CPU alone; programs of one CPU do not interrupt each other, because all run with bottom
    // halves off.
    let work = unsafe { &mut *work };
    let mut packet = Skb::new(context.as_ptr().cast());
    let outcome = pipeline(&Maps, &mut packet, work);
    if matches!(outcome, Err(Reason::Unsettled)) {
        hand_over(context, work.hook);
    }
    datapath::finish(&Maps, &mut packet, work, &outcome);
    #[cfg(feature = "debug-log")]
    aya_log_ebpf::debug!(
        context,
        "hook {} way {} reason {} length {}",
        work.hook,
        work.way,
        work.reason,
        datapath::Packet::length(&packet)
    );
    match outcome {
        Ok(()) => carry_out(&packet, work),
        Err(_) if work.answered != 0 => carry_out(&packet, work),
        Err(_) => TC_ACT_SHOT,
    }
}

#[inline(always)]
fn carry_out(packet: &Skb, work: &Work) -> i32 {
    let config = Maps.config();
    let number = config.tunnel_number();
    if matches!(work.way, way::TUNNEL | way::TUNNEL_KEY) && packet.set_tunnel(&work.gateway, number).is_err()
    {
        return lost();
    }
    if matches!(work.way, way::HANDLED | way::NEIGHBOUR | way::TUNNEL | way::BACK) {
        packet.set_mark(config.own_mark(), config.own_mark_mask());
    }
    if work.way == way::ARRIVED {
        packet.set_mark(config.mark_of_arrival(), config.own_mark_mask());
    }
    // Only what leaves this node waits, and without a time it only leaves too early.
    if work.departure != 0 {
        let _ = packet.depart_at(work.departure);
    }
    match work.way {
        // SAFETY: the helper takes any index; one that is gone drops the packet.
        way::PEER => unsafe { helper::bpf_redirect_peer(work.to_ifindex, 0) as i32 },
        way::NEIGHBOUR => neighbour(work.to_ifindex, &work.gateway),
        // SAFETY: as for `redirect_peer`.
        way::BACK => unsafe { helper::bpf_redirect(work.to_ifindex, back(work)) as i32 },
        // SAFETY: as for `redirect_peer`.
        way::TUNNEL => unsafe { helper::bpf_redirect(config.tunnel_device(), 0) as i32 },
        _ => TC_ACT_UNSPEC,
    }
}

/// What the host was to send comes back to it as if it arrived.
#[inline(always)]
fn back(work: &Work) -> u64 {
    if work.hook == hook::TO_NETDEV {
        u64::from(BPF_F_INGRESS)
    } else {
        0
    }
}

/// A packet that was counted as passed and then could not be sent.
#[inline(always)]
fn lost() -> i32 {
    Maps.count(Reason::TunnelKey as u8, 0, 0);
    TC_ACT_SHOT
}

#[inline(always)]
fn neighbour(ifindex: u32, next_hop: &Addr) -> i32 {
    let mut params: bpf_redir_neigh = cleared();
    if next_hop.is_v4() {
        params.nh_family = AF_INET;
        params.__bindgen_anon_1.ipv4_nh = next_hop.word_v4();
    } else {
        params.nh_family = AF_INET6;
        params.__bindgen_anon_1.ipv6_nh = next_hop.words();
    }
    // SAFETY: `params` is a whole structure of the size given.
    unsafe {
        helper::bpf_redirect_neigh(ifindex, &raw mut params, size_of::<bpf_redir_neigh>() as i32, 0) as i32
    }
}

#[classifier]
#[inline(always)]
pub(crate) fn from_pod(context: TcContext) -> i32 {
    run(
        &context,
        #[inline(always)]
        |maps, packet, work| datapath::from_pod(maps, packet, work),
    )
}

#[classifier]
#[inline(always)]
pub(crate) fn to_pod(context: TcContext) -> i32 {
    run(
        &context,
        #[inline(always)]
        |maps, packet, work| datapath::to_pod(maps, packet, work),
    )
}

#[classifier]
#[inline(always)]
pub(crate) fn from_netdev(context: TcContext) -> i32 {
    if Maps.config().has_xdp() != 0 {
        link_header::put_back(context.as_ptr().cast());
    }
    run(
        &context,
        #[inline(always)]
        |maps, packet, work| datapath::from_netdev(maps, packet, work),
    )
}

#[classifier]
#[inline(always)]
pub(crate) fn to_netdev(context: TcContext) -> i32 {
    run(
        &context,
        #[inline(always)]
        |maps, packet, work| datapath::to_netdev(maps, packet, work),
    )
}

#[xdp(frags)]
#[inline(always)]
pub(crate) fn xdp_nodeport(context: XdpContext) -> u32 {
    turn_round(&context)
}

#[inline(always)]
pub(super) fn turn_round(context: &XdpContext) -> u32 {
    let Some(work) = WORK.get_ptr_mut(0) else {
        return XDP_PASS;
    };
    // SAFETY: as in `run`.
    let work = unsafe { &mut *work };
    let mut frame = Frame::over(context.ctx);
    let outcome = datapath::xdp_nodeport(&Maps, &mut frame, work);
    if !datapath::takes(work, &outcome) {
        return XDP_PASS;
    }
    datapath::finish(&Maps, &mut frame, work, &outcome);
    if outcome.is_ok() { XDP_TX } else { XDP_DROP }
}
