//! The last steps: into a pod, through the one choke point, or off this node.

use super::stage::{self, Stage};
use super::{Outcome, Packet, Tables, Work, balance, direct, limit, rewrite, route, way, work};
use crate::abi::{Config, Endpoint, direction, route_flags};

/// Hands on a packet whose way is known: to the local `receiver`, or off this node. Replies go back the way the
/// connection came.
#[inline(always)]
pub(super) fn forward<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    sender: &Endpoint,
    receiver: Option<&Endpoint>,
) -> Outcome {
    if let Some(receiver) = receiver {
        limit::check_leaving(tables, packet, work, sender)?;
        return deliver(tables, packet, work, receiver);
    }
    if work.stack_reply != 0 {
        return leave_to_stack(tables, packet, work, sender);
    }
    let destination = work.out.dst;
    let route = route::lookup(tables, work, &destination)?;
    let masked_late = work.unmasked != 0 && route.flags & route_flags::MASQUERADE != 0;
    // An error is its receiver's already, and nobody's connection.
    let by_stack = work.straight == 0 && work.headers.icmp_error == 0 && route::by_stack(sender, route);
    if masked_late || by_stack {
        return leave_to_stack(tables, packet, work, sender);
    }
    route::leave(tables, packet, work, route)?;
    limit::check_leaving(tables, packet, work, sender)?;
    send(tables, packet, work)
}

#[inline(always)]
fn leave_to_stack<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    sender: &Endpoint,
) -> Outcome {
    work.way = way::PASS;
    limit::check_leaving(tables, packet, work, sender)
}

/// Deliver-to-endpoint: every packet that reaches a pod through our programs passes here.
#[inline(always)]
pub(super) fn deliver<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    receiver: &Endpoint,
) -> Outcome {
    // The stack answers these with an error, which must show the packet as it was sent. A pod may receive more than its
    // MTU, so that size matters only where the stack carries the packet on.
    let stack_answers = work.headers.ttl <= 1
        || route::through_stack(work, receiver) && route::exceeds(packet, work, receiver.mtu);
    // An answer to a translated source is the node's own as it came: the stack would refuse it in the pod's name.
    let seems_the_nodes = work.reply != 0 && work.tuple.dst != work.out.dst;
    if stack_answers && !seems_the_nodes {
        // To a Service's address the stack is no router.
        if work.tuple.dst != work.out.dst {
            work.answer_mtu = receiver.mtu;
            return balance::undeliverable(tables, packet, work);
        }
        return work.pass();
    }
    limit::check(tables, packet, work, receiver, direction::INGRESS)?;
    translate(tables, packet, work)?;
    route::to_endpoint(work, receiver);
    if stack_answers {
        work.way = way::HANDLED;
    } else if work.way == way::PEER {
        rewrite::hop(packet, &work.headers, &receiver.mac, &receiver.host_mac)?;
    }
    Ok(())
}

#[inline(always)]
pub(super) fn translate<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    if work.tuple != work.out {
        stage::call(Stage::Translate, tables, packet, work)?;
    }
    Ok(())
}

/// Sends the packet off this node. What the stack gets to forward is left as the pod sent it, `to_netdev` translates it
/// then; what the stack receives itself it must find addressed to itself.
#[inline(always)]
pub(super) fn send<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    if work.way == way::NEIGHBOUR {
        translate(tables, packet, work)?;
        // The helper that resolves the neighbour writes the MAC addresses; the hop counts here.
        rewrite::hop_only(packet, &work.headers)?;
    } else if work.way == way::TUNNEL {
        if work.direct == work::direct::LEAVES {
            work.link = direct::link(&work.out);
            packet.write(0, &work.link)?;
            return Ok(rewrite::hop_only(packet, &work.headers)?);
        }
        translate(tables, packet, work)?;
        rewrite::hop(packet, &work.headers, &Config::TUNNEL_MAC, &Config::TUNNEL_SENDER)?;
    } else if work.way == way::TOO_BIG {
        return balance::told_size(tables, packet, work);
    } else if work.way == way::LOCAL && work.tuple.src == work.out.src {
        translate(tables, packet, work)?;
    } else if work.way == way::PASS && is_not_the_stacks(work) {
        return balance::undeliverable(tables, packet, work);
    }
    Ok(())
}

/// Whether the stack must not have the packet as its sender sent it: to a Service's address it is no router, and what had a rival
/// would be taken for that one where it leaves.
#[inline(always)]
fn is_not_the_stacks(work: &Work) -> bool {
    let Work { tuple, out, key, .. } = work;
    let moved = key.reserved != 0 || tuple.src == out.src && tuple.src_port != out.src_port;
    work.reply == 0 && work.headers.icmp_error == 0 && (tuple.dst != out.dst || moved)
}
