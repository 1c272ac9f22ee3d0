//! Bandwidth limits: a token bucket for each limited endpoint and direction, refilled when it is looked at.
//!
//! Packets above the rate are dropped (policing). Two CPUs that take from one bucket in the same nanoseconds may both get
//! what one of them should: the limit is met on average, not to the byte.

use super::conntrack::SECOND;
use super::stage::{self, Stage};
use super::{Outcome, Packet, Tables, Work};
use crate::abi::{Bucket, Endpoint, Reason, direction, endpoint_flags};

/// Drops the packet if `endpoint` has a limit in this direction and has used it up.
#[inline(always)]
pub(super) fn check<T: Tables, P: Packet>(
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
pub(super) fn take<T: Tables, P: Packet>(tables: &T, packet: &P, work: &Work) -> Outcome {
    let Some(bucket) = tables.bucket(work.limit_key) else {
        return Ok(());
    };
    let elapsed = work.now.saturating_sub(bucket.refilled.get()).min(SECOND);
    // Microseconds: the product of a second and a rate of terabytes fits.
    let refill = (elapsed / 1000).wrapping_mul(work.limit_rate) / 1_000_000;
    let mut tokens = bucket.tokens.get();
    if refill > 0 {
        bucket.refilled.set(work.now);
        tokens = tokens.saturating_add(refill).min(work.limit_burst);
    }
    let length = u64::from(packet.length());
    if tokens < length {
        bucket.tokens.set(tokens);
        return Err(Reason::RateLimit);
    }
    bucket.tokens.set(tokens - length);
    Ok(())
}
