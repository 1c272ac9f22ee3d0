//! Bandwidth limits: a token bucket for each limited endpoint and direction, refilled when it is looked at.
//!
//! Packets above the rate are dropped (policing), or, where what a pod sends leaves the node by a device whose queueing
//! discipline is `fq`, given the time at which they may leave (pacing, "earliest departure time"): the bucket then goes
//! into debt, and what would have to wait for longer than `HORIZON` is dropped. Both use one bucket, so that a pod has
//! one limit wherever it sends to.
//!
//! Two CPUs that take from one bucket in the same nanoseconds may both get what one of them should: the limit is met on
//! average, not to the byte.

use super::conntrack::SECOND;
use super::stage::{self, Stage};
use super::{Outcome, Packet, Tables, Work, way};
use crate::abi::{Bucket, Endpoint, Reason, device_flags, direction, endpoint_flags};

/// The longest that a packet may wait: what a sender sees as lost anyway need not be kept.
const HORIZON: u64 = 2 * SECOND;

/// Drops the packet if `endpoint` has a limit in this direction and has used it up.
#[inline(always)]
pub(super) fn check<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    endpoint: &Endpoint,
    towards: u8,
) -> Outcome {
    work.limit_waits = 0;
    against(tables, packet, work, endpoint, towards)
}

/// The same for what a pod whose packets may wait has sent, when its way is known and before anything is changed: whether
/// a packet can wait hangs on the device by which it leaves.
#[inline(always)]
pub(super) fn check_leaving<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    sender: &Endpoint,
) -> Outcome {
    if sender.flags & endpoint_flags::PACE == 0 {
        return Ok(());
    }
    let ifindex = match work.way {
        way::NEIGHBOUR => work.to_ifindex,
        way::TUNNEL => tables.config().tunnel_device(),
        // Into a pod of this node or to the stack: nothing on this way waits for a time.
        _ => 0,
    };
    let paces = tables
        .device(ifindex)
        .is_some_and(|device| device.flags & device_flags::PACES != 0);
    work.limit_waits = paces.into();
    against(tables, packet, work, sender, direction::EGRESS)
}

#[inline(always)]
fn against<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    endpoint: &Endpoint,
    towards: u8,
) -> Outcome {
    let egress = towards == direction::EGRESS;
    let flag = if egress {
        endpoint_flags::LIMIT_EGRESS
    } else {
        endpoint_flags::LIMIT_INGRESS
    };
    if tables.config().limits_bandwidth() == 0 || endpoint.flags & flag == 0 {
        return Ok(());
    }
    // The load that handed it over has asked.
    if packet.handed_over(work.hook) > 0 {
        return Ok(());
    }
    work.limit_key = Bucket::key(endpoint.id, towards);
    work.limit_rate = if egress {
        endpoint.egress_rate
    } else {
        endpoint.ingress_rate
    };
    work.limit_burst = u64::from(if egress {
        endpoint.egress_burst
    } else {
        endpoint.ingress_burst
    });
    stage::call(Stage::Limit, tables, packet, work)
}

/// Takes the packet's length out of the bucket. No bucket: the agent is about to make or remove it, and nothing is
/// limited meanwhile.
#[inline(always)]
pub(super) fn take<T: Tables, P: Packet>(tables: &T, packet: &P, work: &mut Work) -> Outcome {
    let Some(bucket) = tables.bucket(work.limit_key) else {
        return Ok(());
    };
    let elapsed = work.now.saturating_sub(bucket.refilled.get()).min(SECOND);
    // Microseconds: the product of a second and a rate of terabytes fits.
    let refill = (elapsed / 1000).wrapping_mul(work.limit_rate) / 1_000_000;
    let mut tokens = bucket.tokens.get().cast_signed();
    if refill > 0 {
        bucket.refilled.set(work.now);
        tokens = tokens
            .wrapping_add(refill.cast_signed())
            .min(work.limit_burst.cast_signed());
    }
    let left = tokens.wrapping_sub(i64::from(packet.length()));
    if left >= 0 {
        bucket.tokens.set(left.cast_unsigned());
        return Ok(());
    }
    if let Some(wait) = wait(work, left) {
        bucket.tokens.set(left.cast_unsigned());
        work.departure = work.now.wrapping_add(wait);
        return Ok(());
    }
    bucket.tokens.set(tokens.cast_unsigned());
    Err(Reason::RateLimit)
}

/// How long it takes until a debt is paid off, in nanoseconds; `None` if it may not or must not be made.
#[inline(always)]
fn wait(work: &Work, left: i64) -> Option<u64> {
    if work.limit_waits == 0 {
        return None;
    }
    let debt = left.wrapping_neg().cast_unsigned();
    // A debt within the horizon is small enough for the product to fit.
    if debt / 2 > work.limit_rate {
        return None;
    }
    let wait = debt.wrapping_mul(1_000_000).checked_div(work.limit_rate)?;
    Some(wait.wrapping_mul(1000)).filter(|wait| *wait <= HORIZON)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Up to rates of terabytes a second and debts of any size.
        #[test]
        fn a_packet_waits_until_its_debt_is_paid_and_never_beyond_the_horizon(
            rate in 0..=10u64.pow(12), left in prop_oneof![-10i64.pow(13)..0, i64::MIN..0],
        ) {
            let mut work = Work { limit_rate: rate, limit_waits: 1, ..Work::default() };
            let debt = u128::from(left.unsigned_abs());
            let exact = (debt * 1_000_000).checked_div(rate.into()).map(|wait| wait * 1000);
            match wait(&work, left) {
                Some(wait) => {
                    prop_assert!(wait <= HORIZON);
                    prop_assert_eq!(Some(wait.into()), exact);
                }
                None => prop_assert!(exact.is_none_or(|exact| exact >= HORIZON.into()), "{exact:?}"),
            }
            work.limit_waits = 0;
            prop_assert_eq!(wait(&work, left), None);
        }
    }
}
