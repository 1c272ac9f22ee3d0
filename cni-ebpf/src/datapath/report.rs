//! What is told about a packet: counters always, events for what is worth one.

use super::stage::Stage;
use super::{Outcome, Packet, Tables, Work};
use crate::abi::event_kind;

/// Counts the packet and tells what happened to it. Every run ends here; nothing is dropped silently.
#[inline(always)]
pub fn finish<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work, outcome: &Outcome) {
    let reason = match outcome {
        Ok(_) => 0,
        Err(reason) => *reason as u8,
    };
    work.reason = reason;
    // What is refused leaves no entry.
    if reason != 0 && work.entered != 0 {
        packet.apart(Stage::Withdraw, tables, work);
    }
    tables.count(reason, work.direction, packet.length());
    let kind = if reason != 0 { event_kind::DROP } else { work.tell };
    if kind == 0 || tables.config().tells_events() == 0 || !tables.listened() {
        return;
    }
    let Work {
        event,
        tuple,
        headers,
        ..
    } = work;
    event.time = work.now;
    event.src = tuple.src;
    event.dst = tuple.dst;
    event.endpoint = work.endpoint;
    event.ifindex = packet.ifindex();
    event.rule = work.rule;
    event.length = packet.length();
    event.src_port = tuple.src_port;
    event.dst_port = tuple.dst_port;
    event.kind = kind;
    event.reason = reason;
    event.direction = work.direction;
    event.proto = tuple.proto;
    event.tcp_flags = headers.tcp_flags;
    event.hook = work.hook;
    event.state = work.state;
    event.reply = work.reply;
    event.pad = [0; 2];
    event.service = work.service;
    event.reserved = 0;
    tables.event(event);
}
