//! The stages that are compiled apart, as global functions.
//!
//! A global function takes the context only and finds the scratch by itself: a pointer to it as an argument needs a newer
//! kernel than the oldest that is served. Programs of another type have functions of their own: the context is another.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use cni_ebpf::abi::Reason;
use cni_ebpf::datapath::Work;
use cni_ebpf::datapath::stage::{Stage, run};

use super::frame::Frame;
use super::maps::WORK;
use super::packet::Skb;
use super::tables::Maps;

macro_rules! stages {
    ($over:ident $context:ty: $($stage:ident => $name:ident;)*) => {
        $(
            #[unsafe(no_mangle)]
            #[inline(never)]
            pub(crate) extern "C" fn $name(context: *mut $context) -> u32 {
                // An argument that nobody reads is passed as garbage, which the verifier refuses.
                let context = core::hint::black_box(context);
                let Some(work) = WORK.get_ptr_mut(0) else { return Reason::Rewrite as u32 };
                // SAFETY: the caller works on the same value and does not look at it during the call.
                run(Stage::$stage, &Maps, &mut $over::over(context), unsafe { &mut *work })
            }
        )*
    };
}

macro_rules! calls {
    ($($stage:ident => $name:ident;)*) => {
        stages! { Skb __sk_buff: $($stage => $name;)* }

        /// Calls the function of a stage.
        #[inline(always)]
        pub(super) fn call(stage: Stage, skb: *mut __sk_buff) -> u32 {
            match stage {
                $( Stage::$stage => $name(skb), )*
            }
        }
    };
}

calls! {
    Parse => stage_parse;
    Decide => stage_decide;
    Translate => stage_translate;
    Related => stage_related;
    Fib => stage_fib;
    Allocate => stage_allocate;
    LookAfter => stage_look_after;
    Limit => stage_limit;
    Choose => stage_choose;
    Settled => stage_settled;
    Dial => stage_dial;
    Answer => stage_answer;
    Promote => stage_promote;
    Withdraw => stage_withdraw;
}

stages! { Frame xdp_md:
    Parse => wire_parse;
    Translate => wire_translate;
    Allocate => wire_allocate;
    LookAfter => wire_look_after;
    Choose => wire_choose;
    Dial => wire_dial;
    Promote => wire_promote;
    Withdraw => wire_withdraw;
}

/// Calls the function of a stage of a program without socket buffers. The others are none of its stages.
#[inline(always)]
pub(super) fn wire(stage: Stage, xdp: *mut xdp_md, work: &mut Work) -> u32 {
    let mut work: *mut Work = work;
    core::hint::black_box(&mut work);
    let result = match stage {
        Stage::Parse => wire_parse(xdp),
        Stage::Translate => wire_translate(xdp),
        Stage::Allocate => wire_allocate(xdp),
        Stage::LookAfter => wire_look_after(xdp),
        Stage::Choose => wire_choose(xdp),
        Stage::Dial => wire_dial(xdp),
        Stage::Promote => wire_promote(xdp),
        Stage::Withdraw => wire_withdraw(xdp),
        _ => Reason::Rewrite as u32,
    };
    core::hint::black_box(&mut work);
    result
}
