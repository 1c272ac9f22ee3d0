//! Stages that the verifier looks at apart.
//!
//! A stage with many ends, inlined, has each end followed through all that comes after it. In the kernel these are
//! global functions instead: verified once, alone, their result an unknown number. A call costs one or two nanoseconds,
//! so only what is rare, or has to be done anyway (parsing), is a stage.

use super::{
    Outcome, Packet, Tables, Work, balance, external, headers, limit, nat, policy, refuse, related, rewrite,
    route, service,
};
use crate::abi::Reason;

/// What [`Packet::apart`] can be asked to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Headers into `work.headers` and `work.tuple`.
    Parse,
    /// `work.question` into `work.answer`.
    Decide,
    /// The packet from `work.tuple` to `work.out`.
    Translate,
    /// An ICMP error: found, translated; `work.out` is where it goes.
    Related,
    /// The kernel's route of `work.out` into `work.way`: out through a device, or the stack.
    Fib,
    /// A source port behind `work.snat` for `work.flow`.
    Allocate,
    /// The alias of `work.key`'s flow that this packet does not pass through.
    LookAfter,
    /// The packet's length out of the bucket `work.limit_key`.
    Limit,
    /// The backend for `work.tuple` into `work.choice`.
    Choose,
    /// Whether a stream's packet for `work.tuple.dst` may be the stack's.
    Settled,
    /// What was dialled, into `work.flow` and its alias.
    Dial,
    /// The packet into its own answer, `work.answer_kind`.
    Answer,
    /// `work.key`'s flow into the table of established ones.
    Promote,
    /// Back out of the tables what this run entered for a connection that is refused.
    Withdraw,
}

/// Runs a stage in place. 0, or the number of a [`Reason`].
#[inline(always)]
pub fn run<T: Tables, P: Packet>(stage: Stage, tables: &T, packet: &mut P, work: &mut Work) -> u32 {
    let outcome = match stage {
        Stage::Parse => headers::parse(tables, packet, work),
        Stage::Decide => policy::decide_stage(tables, work),
        Stage::Translate => {
            rewrite::translate(tables, packet, &work.headers, &work.tuple, &work.out).map_err(Reason::from)
        }
        Stage::Related => related::stage(tables, packet, work),
        Stage::Fib => route::by_fib(packet, work),
        Stage::Allocate => nat::allocate(tables, packet, work),
        Stage::LookAfter => nat::look_after(tables, work),
        Stage::Limit => limit::take(tables, packet, work),
        Stage::Choose => service::stage(tables, work),
        Stage::Settled => external::settled(tables, packet, work),
        Stage::Dial => balance::dial(tables, work),
        Stage::Answer => refuse::stage(tables, packet, work),
        Stage::Promote => nat::promote(tables, work),
        Stage::Withdraw => {
            nat::withdraw(tables, work);
            Ok(())
        }
    };
    match outcome {
        Ok(()) => 0,
        Err(reason) => reason as u32,
    }
}

/// Calls a stage.
#[inline(always)]
pub(super) fn call<T: Tables, P: Packet>(
    stage: Stage,
    tables: &T,
    packet: &mut P,
    work: &mut Work,
) -> Outcome {
    match packet.apart(stage, tables, work) {
        0 => Ok(()),
        number => Err(Reason::from_number(number as u8).unwrap_or(Reason::Malformed)),
    }
}
