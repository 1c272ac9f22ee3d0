//! The packet path as pure code: values in, values out.
//!
//! The order of stages stands in this file and nowhere else. The same code is compiled for the kernel, where
//! [`Tables`] are maps and [`Packet`] is the socket buffer, and for the host, where both are in memory.
//!
//! ```text
//! from_pod     parse, fragments, spoof check ─┐
//! from_netdev  parse, fragments, whose is it ─┼─ connection: known? revalidate │ new? service, policy, NAT, entry ─ route
//! to_pod       parse, fragments ──────────────┘
//! to_netdev    parse, fragments, tunnel key, masquerade of what the stack sends
//! ```

pub mod conntrack;
mod fragments;
pub mod headers;
#[cfg(any(test, feature = "std"))]
pub mod memory;
mod nat;
pub mod policy;
mod related;
mod report;
pub mod rewrite;
mod route;
mod service;
mod stack;
mod tables;
pub mod work;

pub use report::finish;
pub use tables::{Fib, NotInserted, NotRewritten, Packet, Table, Tables};
pub use work::{Headers, Work};

use crate::abi::{
    Addr, Config, Endpoint, Flow, Reason, direction, hook, route_action,
    route_flags, via,
};
use conntrack::Found;
use headers::{Ethertype, icmpv6, proto};

/// What becomes of a packet. A drop is an `Err` with its [`Reason`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// On to whatever comes next on this hook, and then the stack.
    Pass,
    /// The same for a packet that is complete: marked, so that no later hook of ours judges or translates it again.
    Handled,
    /// Into the pod behind this host-side device.
    Peer { ifindex: u32 },
    /// Out through a device, to a neighbour; [`Addr::UNSPECIFIED`]: the destination itself.
    Neighbour { ifindex: u32, gateway: Addr },
    /// Into the tunnel, to the node with this address.
    Tunnel { remote: Addr },
    /// On, with this tunnel key: the packet is already on the tunnel device.
    TunnelKey { remote: Addr },
}

pub type Outcome = Result<Verdict, Reason>;

impl From<NotRewritten> for Reason {
    fn from(_: NotRewritten) -> Self {
        Self::Rewrite
    }
}

/// What every hook begins with.
#[inline(always)]
fn open<T: Tables, P: Packet>(tables: &T, packet: &P, work: &mut Work, at: u8, towards: u8) -> Result<(), Reason> {
    work.now = tables.now();
    work.hook = at;
    work.direction = towards;
    work.endpoint = 0;
    work.rule = 0;
    work.service = 0;
    work.state = 0;
    work.tell = 0;
    work.reply = 0;
    work.tuple.src = Addr::UNSPECIFIED;
    work.tuple.dst = Addr::UNSPECIFIED;
    work.tuple.src_port = crate::abi::Port::ZERO;
    work.tuple.dst_port = crate::abi::Port::ZERO;
    work.tuple.proto = 0;
    let number = headers::parse(packet, work);
    if number != 0 {
        return Err(Reason::from_number(number as u8).unwrap_or(Reason::Malformed));
    }
    let config = tables.config();
    let served = if work.headers.v6 != 0 { config.serves_ipv6() } else { config.serves_ipv4() };
    if served == 0 {
        return Err(Reason::FamilyDisabled);
    }
    fragments::resolve(tables, work)
}

/// What a pod sends: its egress, a local destination's ingress, and the way there, in one run.
#[inline(always)]
pub fn from_pod<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    open(tables, packet, work, hook::FROM_POD, direction::EGRESS)?;
    let sender = sender(tables, packet, work)?;
    let verdict = if work.headers.icmp_error != 0 {
        related_from_pod(tables, packet, work)?
    } else {
        connection_from_pod(tables, packet, work, sender)?
    };
    Ok(verdict)
}

/// The endpoint that sent the packet. The source address names it; device and MAC must be its own.
#[inline(always)]
fn sender<'t, T: Tables, P: Packet>(tables: &'t T, packet: &P, work: &mut Work) -> Result<&'t Endpoint, Reason> {
    let icmpv6 = work.tuple.proto == proto::ICMPV6
        && (icmpv6::ROUTER_SOLICITATION..=icmpv6::REDIRECT).contains(&work.headers.icmp_type);
    if icmpv6 && work.headers.fragment != work::fragment::LATER {
        return Err(Reason::NeighbourDiscovery);
    }
    let endpoint = tables.endpoint(&work.tuple.src).ok_or(Reason::SourceAddress)?;
    if endpoint.ifindex != packet.ifindex() {
        return Err(Reason::SourceAddress);
    }
    work.endpoint = endpoint.id;
    let mac: [u16; 3] = packet.load(6).ok_or(Reason::Truncated)?;
    if !same_mac(mac, &endpoint.mac) {
        return Err(Reason::SourceMac);
    }
    if work.tuple.proto == proto::UDP && matches!(work.tuple.src_port.get(), 67 | 547) {
        return Err(Reason::DhcpServer);
    }
    if route::is_link_local(&work.tuple.dst) {
        return Err(Reason::LinkLocal);
    }
    Ok(endpoint)
}

/// Word by word: comparing arrays of bytes becomes a call.
#[inline(always)]
fn same_mac(wire: [u16; 3], mac: &[u8; 6]) -> bool {
    let ([w0, w1, w2], [a, b, c, d, e, f]) = (wire, *mac);
    w0 == u16::from_ne_bytes([a, b]) && w1 == u16::from_ne_bytes([c, d]) && w2 == u16::from_ne_bytes([e, f])
}

#[inline(always)]
fn connection_from_pod<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    sender: &Endpoint,
) -> Outcome {
    if let Some(found) = known(tables, work) {
        let receiver = advance_known(tables, packet, work, &found, Some(sender))?;
        return forward_known(tables, packet, work, found.flow, receiver);
    }
    // A Service is looked for on a miss only: an established connection outlives its Service.
    work.out = work.tuple;
    let chosen = service::choose(tables, work)?;
    if let Some(chosen) = &chosen {
        work.out.dst = chosen.target.addr;
        work.out.dst_port = chosen.target.port;
        work.service = chosen.service;
    }
    let receiver = tables.endpoint(&work.out.dst);
    conntrack::begin(packet, work);
    policy::admit(tables, work, Some(sender), receiver, false)?;
    if let Some(chosen) = &chosen {
        work.flow.service = chosen.service;
        work.flow.backend = chosen.backend;
        nat::enter_dialled(tables, work)?;
    }
    work.flow.via_reply = via::PEER;
    if let Some(receiver) = receiver {
        work.flow.via_forward = via::PEER;
        enter(tables, work)?;
        return deliver(tables, packet, work, receiver, false);
    }
    let destination = work.out.dst;
    let route = route::lookup(tables, work, &destination)?;
    let verdict = masquerade_new(tables, packet, work, route)?;
    work.flow.via_forward = way(verdict);
    enter(tables, work)?;
    send(packet, work, verdict)
}

/// The way a verdict takes, for the flow.
#[inline(always)]
fn way(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Pass | Verdict::Handled => via::STACK,
        Verdict::Peer { .. } => via::PEER,
        Verdict::Neighbour { .. } => via::DEVICE,
        Verdict::Tunnel { .. } | Verdict::TunnelKey { .. } => via::TUNNEL,
    }
}

/// Enters `work.flow` among the new connections, in the place of one that is over.
#[inline(always)]
fn enter<T: Tables>(tables: &T, work: &Work) -> Result<(), Reason> {
    if tables.flow(Table::Established, &work.key).is_some() {
        tables.remove_flow(Table::Established, &work.key);
    }
    tables.insert_flow(Table::New, &work.key, &work.flow).map_err(|_| Reason::ConntrackFull)
}

/// The flow of the packet. `None` too if another flow has taken over its translated tuple.
#[inline(always)]
fn known<'t, T: Tables>(tables: &'t T, work: &mut Work) -> Option<Found<'t>> {
    let found = conntrack::find(tables, work)?;
    if nat::look_after(tables, work, found.flow, found.table) {
        return Some(found);
    }
    tables.remove_flow(found.table, &work.key);
    None
}

/// Counts the packet on its flow, asks policy again if anything moved, and works out how it leaves (`work.out`). Gives
/// the local endpoint it is for.
#[inline(always)]
fn advance_known<'t, T: Tables, P: Packet>(
    tables: &'t T,
    packet: &P,
    work: &mut Work,
    found: &Found<'_>,
    sender: Option<&'t Endpoint>,
) -> Result<Option<&'t Endpoint>, Reason> {
    conntrack::advance(tables, packet, work, found.flow);
    conntrack::forward_tuple(&work.key, found.flow, &mut work.out);
    let other = if work.reply == 0 { work.out.dst } else { work.out.src };
    let receiver = tables.endpoint(&other);
    let (source, destination) = if work.reply == 0 { (sender, receiver) } else { (receiver, sender) };
    policy::revalidate(tables, work, found.flow, source, destination)?;
    work.service = found.flow.service;
    conntrack::promote(tables, work, found);
    nat::leaving(work, found.flow);
    Ok(receiver)
}

#[inline(always)]
fn forward_known<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    flow: &Flow,
    receiver: Option<&Endpoint>,
) -> Outcome {
    // Replies go back the way the connection came.
    let through_stack = work.reply != 0 && flow.via_reply == via::STACK;
    if let Some(receiver) = receiver {
        return deliver(tables, packet, work, receiver, through_stack);
    }
    if through_stack {
        return Ok(Verdict::Pass);
    }
    let destination = work.out.dst;
    let route = route::lookup(tables, work, &destination)?;
    let verdict = route::leave(packet, work, route)?;
    send(packet, work, verdict)
}

/// Deliver-to-endpoint: every packet that reaches a pod through our programs passes here.
#[inline(always)]
fn deliver<T: Tables, P: Packet>(
    _: &T,
    packet: &mut P,
    work: &mut Work,
    receiver: &Endpoint,
    through_stack: bool,
) -> Outcome {
    // The stack answers these with an error, which must show the packet as it was sent.
    if work.headers.ttl <= 1 || route::exceeds(packet, work, receiver.mtu) {
        return Ok(Verdict::Pass);
    }
    translate(packet, work)?;
    let verdict = route::to_endpoint(receiver, through_stack);
    if verdict != Verdict::Handled {
        rewrite::hop(packet, &work.headers, &receiver.mac, &receiver.host_mac)?;
    }
    Ok(verdict)
}

#[inline(always)]
fn translate<P: Packet>(packet: &mut P, work: &Work) -> Result<(), Reason> {
    if work.tuple != work.out {
        rewrite::translate(packet, &work.headers, &work.tuple, &work.out)?;
    }
    Ok(())
}

/// Sends the packet off this node. What the stack gets is left as the pod sent it, `to_netdev` translates it then.
#[inline(always)]
fn send<P: Packet>(packet: &mut P, work: &Work, verdict: Verdict) -> Outcome {
    match verdict {
        Verdict::Neighbour { .. } => {
            translate(packet, work)?;
            // The helper that resolves the neighbour writes the MAC addresses; the hop counts here.
            let macs: [u8; 12] = packet.load(0).ok_or(Reason::Truncated)?;
            let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = macs;
            rewrite::hop(packet, &work.headers, &[d0, d1, d2, d3, d4, d5], &[s0, s1, s2, s3, s4, s5])?;
        }
        Verdict::Tunnel { .. } => {
            translate(packet, work)?;
            rewrite::hop(packet, &work.headers, &Config::TUNNEL_MAC, &Config::TUNNEL_MAC)?;
        }
        Verdict::Pass | Verdict::Handled | Verdict::Peer { .. } | Verdict::TunnelKey { .. } => {}
    }
    Ok(verdict)
}

/// Routes a new connection out of the node, with a translated source if it leaves the cluster.
#[inline(always)]
fn masquerade_new<T: Tables, P: Packet>(
    tables: &T,
    packet: &P,
    work: &mut Work,
    route: &crate::abi::Route,
) -> Outcome {
    if route.flags & route_flags::MASQUERADE == 0 || tables.config().masquerades() == 0 {
        return route::leave(packet, work, route);
    }
    // The address to masquerade with is that of the device by which the packet leaves, so the kernel's route comes
    // first. Where the stack must decide, `to_netdev` does all of it.
    let Fib::Device { ifindex, gateway } = packet.fib(&work.out.src, &work.out.dst, work.headers.length) else {
        return route::leave(packet, work, route);
    };
    stack::masquerade(tables, packet, work, ifindex)?;
    if work.headers.ttl <= 1 || route::exceeds(packet, work, route.mtu) {
        return Ok(Verdict::Pass);
    }
    work.out.src = work.flow.snat;
    work.out.src_port = work.flow.snat_port;
    Ok(Verdict::Neighbour { ifindex, gateway })
}

/// An ICMP error from a pod.
#[inline(always)]
fn related_from_pod<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    let found = related::find(tables, work).ok_or(Reason::RelatedUnknown)?;
    let through_stack = work.reply != 0 && found.flow.via_reply == via::STACK;
    let source = related::leaving(work, &found);
    let destination = work.out.src;
    rewrite::translate_error(packet, &work.headers, &work.tuple, &source, &work.inner, &work.out)?;
    work.tuple.src = source;
    work.tuple.dst = destination;
    work.out.src = source;
    work.out.dst = destination;
    if let Some(receiver) = tables.endpoint(&destination) {
        work.tuple = work.out;
        return deliver(tables, packet, work, receiver, through_stack);
    }
    if through_stack {
        return Ok(Verdict::Pass);
    }
    let route = route::lookup(tables, work, &destination)?;
    let verdict = route::leave(packet, work, route)?;
    work.tuple = work.out;
    send(packet, work, verdict)
}

/// What the host's stack hands to a pod: its own packets, and what another proxy or a chained plugin handled.
#[inline(always)]
pub fn to_pod<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    let config = tables.config();
    if packet.mark() & config.own_mark_mask() == config.own_mark() {
        return Ok(Verdict::Pass);
    }
    open(tables, packet, work, hook::TO_POD, direction::INGRESS)?;
    let receiver = tables.endpoint(&work.tuple.dst).ok_or(Reason::NoEndpoint)?;
    if receiver.ifindex != packet.ifindex() {
        return Err(Reason::NoEndpoint);
    }
    work.endpoint = receiver.id;
    if work.headers.icmp_error != 0 {
        let found = related::find(tables, work).ok_or(Reason::RelatedUnknown)?;
        let source = related::leaving(work, &found);
        rewrite::translate_error(packet, &work.headers, &work.tuple, &source, &work.inner, &work.out)?;
        return Ok(Verdict::Pass);
    }
    if let Some(found) = known(tables, work) {
        conntrack::advance(tables, packet, work, found.flow);
        conntrack::forward_tuple(&work.key, found.flow, &mut work.out);
        let (source, destination) = if work.reply == 0 { (None, Some(receiver)) } else { (Some(receiver), None) };
        policy::revalidate(tables, work, found.flow, source, destination)?;
        conntrack::promote(tables, work, &found);
        nat::leaving(work, found.flow);
        translate(packet, work)?;
        return Ok(Verdict::Pass);
    }
    work.out = work.tuple;
    conntrack::begin(packet, work);
    policy::admit(tables, work, None, Some(receiver), packet.ingress_ifindex() == 0)?;
    work.flow.via_forward = via::STACK;
    work.flow.via_reply = via::STACK;
    enter(tables, work)?;
    Ok(Verdict::Pass)
}

/// What arrives on a device of the node, or out of the tunnel. What is not for a pod is the stack's.
#[inline(always)]
pub fn from_netdev<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    if headers::ethertype(packet) != Ethertype::Ip {
        return Ok(Verdict::Pass);
    }
    let tunnel = packet.ifindex() == tables.config().tunnel_device();
    match open(tables, packet, work, hook::FROM_NETDEV, direction::INGRESS) {
        Ok(()) => {}
        // What cannot be read is no pod's business here: the stack judges what is its own, and `to_pod` stands before
        // every pod. Out of the tunnel nothing comes but pods' packets.
        Err(_) if !tunnel => return Ok(Verdict::Pass),
        Err(reason) => return Err(reason),
    }
    if tunnel {
        tunnel_source(tables, packet, work)?;
    }
    if let Some(receiver) = tables.endpoint(&work.tuple.dst) {
        work.endpoint = receiver.id;
        return arriving(tables, packet, work, receiver);
    }
    if tunnel {
        let destination = work.tuple.dst;
        let route = route::lookup(tables, work, &destination)?;
        return match route.action {
            route_action::HOST => Ok(Verdict::Pass),
            route_action::ENDPOINTS => Err(Reason::NoEndpoint),
            _ => Err(Reason::HostAddress),
        };
    }
    stack::arriving(tables, packet, work)
}

/// The node that sent a tunnelled packet must own the address inside.
#[inline(always)]
fn tunnel_source<T: Tables, P: Packet>(tables: &T, packet: &P, work: &mut Work) -> Result<(), Reason> {
    let (remote, number) = packet.tunnel_source().ok_or(Reason::TunnelKey)?;
    if number != tables.config().tunnel_number() {
        return Err(Reason::TunnelKey);
    }
    let inner = work.tuple.src;
    let route = route::lookup(tables, work, &inner).map_err(|_| Reason::TunnelSource)?;
    if route.action != route_action::TUNNEL || route.gateway != remote {
        return Err(Reason::TunnelSource);
    }
    Ok(())
}

/// A packet from another node or from outside for a pod of this one.
#[inline(always)]
fn arriving<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work, receiver: &Endpoint) -> Outcome {
    if tables.endpoint(&work.tuple.src).is_some() {
        return Err(Reason::Martian);
    }
    if work.headers.icmp_error != 0 {
        let found = related::find(tables, work).ok_or(Reason::RelatedUnknown)?;
        let source = related::leaving(work, &found);
        rewrite::translate_error(packet, &work.headers, &work.tuple, &source, &work.inner, &work.out)?;
        work.out = work.tuple;
        return deliver(tables, packet, work, receiver, false);
    }
    if let Some(found) = known(tables, work) {
        conntrack::advance(tables, packet, work, found.flow);
        conntrack::forward_tuple(&work.key, found.flow, &mut work.out);
        let (source, destination) = if work.reply == 0 { (None, Some(receiver)) } else { (Some(receiver), None) };
        policy::revalidate(tables, work, found.flow, source, destination)?;
        conntrack::promote(tables, work, &found);
        nat::leaving(work, found.flow);
        return deliver(tables, packet, work, receiver, false);
    }
    let source = work.tuple.src;
    if let Ok(route) = route::lookup(tables, work, &source)
        && route.action == route_action::HOST
    {
        return Err(Reason::Martian);
    }
    work.out = work.tuple;
    conntrack::begin(packet, work);
    policy::admit(tables, work, None, Some(receiver), false)?;
    work.flow.via_forward = via::PEER;
    work.flow.via_reply = if packet.ifindex() == tables.config().tunnel_device() { via::TUNNEL } else { via::DEVICE };
    enter(tables, work)?;
    deliver(tables, packet, work, receiver, false)
}

/// What the host's stack sends through a device of the node, or into the tunnel.
#[inline(always)]
pub fn to_netdev<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    let config = tables.config();
    if packet.mark() & config.own_mark_mask() == config.own_mark() || headers::ethertype(packet) != Ethertype::Ip {
        return Ok(Verdict::Pass);
    }
    let tunnel = packet.ifindex() == config.tunnel_device();
    match open(tables, packet, work, hook::TO_NETDEV, direction::EGRESS) {
        Ok(()) => {}
        Err(_) if !tunnel => return Ok(Verdict::Pass),
        Err(reason) => return Err(reason),
    }
    if tunnel {
        let destination = work.tuple.dst;
        let route = route::lookup(tables, work, &destination)?;
        if route.action != route_action::TUNNEL {
            return Err(Reason::NoRoute);
        }
        return Ok(Verdict::TunnelKey { remote: route.gateway });
    }
    stack::leaving(tables, packet, work)
}

