//! A packet between the programs of two loads, while one takes over from the other.
//!
//! What a program does not know ([`Reason::Unsettled`]) it hands to the other load's; what that does not know either comes
//! back, and is judged as if there were no other. Where nothing is being replaced there is no other, and the program itself looks
//! once more: slots that were read while they were another set's are its own by then.
//!
//! Places, hooks and the packet's words for programs are what two releases have in common; others than these have another
//! version of the map.
//!
//! [`Reason::Unsettled`]: cni_ebpf::abi::Reason::Unsettled

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use cni_ebpf::abi::program_place;
use cni_ebpf::datapath::{BACK, Tables as _};

use super::maps::PROGRAMS;
use super::tables::Maps;

/// In the packet's first word for programs, with device and hook: it is being handed over here.
const MARK: u32 = 0x6d72_0000;

/// Device and hook: a packet that goes on to another device may be handed over there as well.
#[inline(always)]
fn here(skb: *const __sk_buff, hook: u8) -> u32 {
    // SAFETY: the context is valid.
    MARK ^ unsafe { (*skb).ifindex } << 3 ^ u32::from(hook)
}

/// How often the packet was handed over here, which its second word says. What others have left there is no concern: who takes
/// it for such a number does what it would without the other load.
#[inline(always)]
pub(super) fn handed_over(skb: *const __sk_buff, hook: u8) -> u32 {
    // SAFETY: the context is valid.
    let (mark, times) = unsafe { ((*skb).cb[0], (*skb).cb[1]) };
    if mark == here(skb, hook) { times } else { 0 }
}

/// Has the other load's program decide. Nothing has been done with the packet yet, and what it costs of a limit is asked for
/// once. This comes back where that has decided already, and where neither load has entered its programs.
#[inline(always)]
pub(super) fn hand_over(context: &TcContext, hook: u8) {
    let skb: *mut __sk_buff = context.as_ptr().cast();
    let times = handed_over(skb, hook);
    if times >= BACK {
        return;
    }
    let own = Maps.config().own_side() & 1;
    // SAFETY: the context is valid, and these words of it are for programs to write. Nothing that is alive here has to be
    // dropped.
    unsafe {
        (*skb).cb[0] = here(skb, hook);
        (*skb).cb[1] = times + 1;
        PROGRAMS.tail_call(context, program_place(own ^ 1, hook));
        // There is no other.
        (*skb).cb[1] = BACK;
        PROGRAMS.tail_call(context, program_place(own, hook));
    }
}
