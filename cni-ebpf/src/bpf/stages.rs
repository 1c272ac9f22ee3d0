//! The stages that are compiled apart, as global functions.
//!
//! A global function takes the context only and finds the scratch by itself: a pointer to it as an argument needs a newer
//! kernel than the oldest that is served.

use aya_ebpf::bindings::__sk_buff;
use cni_ebpf::abi::Reason;
use cni_ebpf::datapath::stage::{Stage, run};

use super::maps::WORK;
use super::packet::Skb;
use super::tables::Maps;

macro_rules! stages {
    ($($stage:ident => $name:ident;)*) => {
        /// Calls the function of a stage.
        #[inline(always)]
        pub(super) fn call(stage: Stage, skb: *mut __sk_buff) -> u32 {
            match stage {
                $( Stage::$stage => $name(skb), )*
            }
        }

        $(
            #[unsafe(no_mangle)]
            #[inline(never)]
            pub(crate) extern "C" fn $name(skb: *mut __sk_buff) -> u32 {
                // An argument that nobody reads is passed as garbage, which the verifier refuses.
                let skb = core::hint::black_box(skb);
                let Some(work) = WORK.get_ptr_mut(0) else { return Reason::Rewrite as u32 };
                // SAFETY: the caller works on the same value and does not look at it during the call.
                run(Stage::$stage, &Maps, &mut Skb::over(skb), unsafe { &mut *work })
            }
        )*
    };
}

stages! {
    Parse => stage_parse;
    Decide => stage_decide;
    Translate => stage_translate;
    Related => stage_related;
    Fib => stage_fib;
    Allocate => stage_allocate;
    LookAfter => stage_look_after;
    Limit => stage_limit;
    Choose => stage_choose;
    Dial => stage_dial;
    Answer => stage_answer;
    Promote => stage_promote;
    Withdraw => stage_withdraw;
}
