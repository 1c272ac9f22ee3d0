//! Fragments: only the first one holds the ports, so what it said is remembered for the others.
//!
//! A later fragment that comes before its first is dropped with its own reason: buffering is the receiver's business,
//! and letting it pass unjudged would be a hole in policy.

use super::work::fragment;
use super::{Tables, Work};
use crate::abi::Reason;

/// RFC 8200 gives a receiver sixty seconds to reassemble; ours is a bound on reuse of the identification.
const LIFETIME: u64 = 60_000_000_000;

/// Gives a later fragment the ports of its datagram, and remembers those of a first one.
#[inline(always)]
pub(super) fn resolve<T: Tables>(tables: &T, work: &mut Work) -> Result<(), Reason> {
    if work.headers.fragment == fragment::WHOLE {
        return Ok(());
    }
    let Work {
        fragment_key: key,
        tuple,
        headers,
        fragment: value,
        ..
    } = work;
    key.src = tuple.src;
    key.dst = tuple.dst;
    key.id = headers.fragment_id;
    key.proto = tuple.proto;
    key.pad = 0;
    key.reserved = 0;
    if headers.fragment == fragment::LATER {
        let first = tables.fragment(key).ok_or(Reason::FragmentOrphan)?;
        if work.now.saturating_sub(first.seen) > LIFETIME {
            return Err(Reason::FragmentOrphan);
        }
        tuple.src_port = first.src_port;
        tuple.dst_port = first.dst_port;
        return Ok(());
    }
    value.seen = work.now;
    value.src_port = tuple.src_port;
    value.dst_port = tuple.dst_port;
    value.pad = 0;
    tables
        .insert_fragment(key, value)
        .map_err(|_| Reason::FragmentTableFull)
}
