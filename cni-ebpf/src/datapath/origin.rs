//! Who may send what from where, of what does not come from a pod of this node.

use super::{Packet, Tables, Work, direct, headers, route};
use crate::abi::{Reason, Route, route_action, route_flags};

/// Whether this is a packet of the tunnel to this node: what is in it comes by the tunnel's device, and is asked about
/// there.
#[inline(always)]
pub(super) fn carries_tunnelled<T: Tables>(tables: &T, work: &Work) -> bool {
    let port = tables.config().port_of_tunnel();
    port != 0
        && work.tuple.proto == headers::proto::UDP
        && u32::from(work.tuple.dst_port.get()) == port
        && tables
            .settings()
            .is_some_and(|node| work.tuple.dst == node.node_v4 || work.tuple.dst == node.node_v6)
}

/// The address of another node.
#[inline(always)]
fn is_node(route: &Route) -> bool {
    route.action == route_action::TUNNEL && route.flags & route_flags::NODE != 0
}

/// The node that sent a tunnelled packet must own the address inside; or have it from outside, for a pod that it names. It
/// may send from any of its addresses, whichever its own routes chose.
#[inline(always)]
pub(super) fn tunnelled<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
) -> Result<(), Reason> {
    let (remote, number) = packet.tunnel_source().ok_or(Reason::TunnelKey)?;
    if number != tables.config().tunnel_number() {
        return Err(Reason::TunnelKey);
    }
    if direct::came(tables, packet, work) {
        packet.claim();
        outside(tables, work, false).map_err(|_| Reason::TunnelSource)?;
        return match route::lookup(tables, work, &remote) {
            Ok(route) if is_node(route) => Ok(()),
            _ => Err(Reason::TunnelSource),
        };
    }
    let inner = work.tuple.src;
    let route = route::lookup(tables, work, &inner).map_err(|_| Reason::TunnelSource)?;
    if route.action != route_action::TUNNEL {
        return Err(Reason::TunnelSource);
    }
    let owner = route.gateway;
    if owner == remote {
        return Ok(());
    }
    match route::lookup(tables, work, &remote) {
        Ok(route) if is_node(route) && route.gateway == owner => Ok(()),
        _ => Err(Reason::TunnelSource),
    }
}

/// Who comes by a device of the node lies neither on this node nor behind the tunnel. Of a connection it is asked once.
/// `nodes`: other nodes may speak for themselves, as they do to what is not a pod.
#[inline(always)]
pub(super) fn outside<T: Tables>(tables: &T, work: &mut Work, nodes: bool) -> Result<(), Reason> {
    let source = work.tuple.src;
    match route::lookup(tables, work, &source) {
        Ok(route) if nodes && is_node(route) => Ok(()),
        Ok(route)
            if matches!(
                route.action,
                route_action::HOST | route_action::ENDPOINTS | route_action::TUNNEL
            ) =>
        {
            Err(Reason::Martian)
        }
        _ => Ok(()),
    }
}
