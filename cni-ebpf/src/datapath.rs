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
mod nat;
pub mod policy;
mod related;
mod report;
pub mod rewrite;
mod route;
mod service;
mod stack;
pub mod stage;
mod tables;
pub mod work;

pub use report::finish;
pub use tables::{Fib, NotInserted, NotRewritten, Packet, Table, Tables};
pub use work::{Headers, Work};

use crate::abi::{Addr, Config, Endpoint, Reason, direction, hook, route_action, route_flags, via};
use conntrack::Found;
use headers::{Ethertype, icmpv6, proto};
use stage::Stage;

/// Where a packet goes, as [`Work::way`] holds it. Stages say it in the scratch and return a scalar: a fat enum in
/// registers is merged by the compiler in ways that the verifier refuses.
pub mod way {
    pub const PASS: u8 = 0;
    pub const HANDLED: u8 = 1;
    pub const PEER: u8 = 2;
    pub const NEIGHBOUR: u8 = 3;
    pub const TUNNEL: u8 = 4;
    pub const TUNNEL_KEY: u8 = 5;
}

/// What becomes of a packet that is not dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// On to whatever comes next on this hook, and then the stack.
    Pass,
    /// The same for a packet that is complete: marked, so that no later hook of ours judges or translates it again.
    Handled,
    /// Into the pod behind this host-side device.
    Peer { ifindex: u32 },
    /// Out through a device, to a neighbour.
    Neighbour { ifindex: u32, gateway: Addr },
    /// Into the tunnel, to the node with this address.
    Tunnel { remote: Addr },
    /// On, with this tunnel key: the packet is already on the tunnel device.
    TunnelKey { remote: Addr },
}

/// A run's end: the verdict stands in the [`Work`], or the packet is dropped for a reason.
pub type Outcome = Result<(), Reason>;

impl Work {
    /// What the run decided, after it ended with `Ok`.
    #[inline(always)]
    pub fn verdict(&self) -> Verdict {
        match self.way {
            way::HANDLED => Verdict::Handled,
            way::PEER => Verdict::Peer {
                ifindex: self.to_ifindex,
            },
            way::NEIGHBOUR => Verdict::Neighbour {
                ifindex: self.to_ifindex,
                gateway: self.gateway,
            },
            way::TUNNEL => Verdict::Tunnel { remote: self.gateway },
            way::TUNNEL_KEY => Verdict::TunnelKey { remote: self.gateway },
            _ => Verdict::Pass,
        }
    }

    #[inline(always)]
    fn pass(&mut self) -> Outcome {
        self.way = way::PASS;
        Ok(())
    }

    #[inline(always)]
    fn neighbour(&mut self, ifindex: u32, gateway: Addr) {
        self.way = way::NEIGHBOUR;
        self.to_ifindex = ifindex;
        self.gateway = gateway;
    }
}

impl From<NotRewritten> for Reason {
    fn from(_: NotRewritten) -> Self {
        Self::Rewrite
    }
}

/// What every hook begins with.
#[inline(always)]
fn open<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    at: u8,
    towards: u8,
) -> Result<(), Reason> {
    work.now = tables.now();
    work.hook = at;
    work.direction = towards;
    work.endpoint = 0;
    work.rule = 0;
    work.service = 0;
    work.state = 0;
    work.tell = 0;
    work.reply = 0;
    work.way = way::PASS;
    work.tuple.src = Addr::UNSPECIFIED;
    work.tuple.dst = Addr::UNSPECIFIED;
    work.tuple.src_port = crate::abi::Port::ZERO;
    work.tuple.dst_port = crate::abi::Port::ZERO;
    work.tuple.proto = 0;
    stage::call(Stage::Parse, tables, packet, work)?;
    fragments::resolve(tables, work)
}

/// What a pod sends: its egress, a local destination's ingress, and the way there, in one run.
#[inline(always)]
pub fn from_pod<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    open(tables, packet, work, hook::FROM_POD, direction::EGRESS)?;
    let sender = sender(tables, packet, work)?;
    if work.headers.icmp_error != 0 {
        return related_from_pod(tables, packet, work);
    }
    connection_from_pod(tables, packet, work, sender)
}

/// The endpoint that sent the packet. The source address names it; device and MAC must be its own.
#[inline(always)]
fn sender<'t, T: Tables, P: Packet>(
    tables: &'t T,
    packet: &P,
    work: &mut Work,
) -> Result<&'t Endpoint, Reason> {
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
    if let Some(found) = known(tables, packet, work) {
        let receiver = advance_known(tables, packet, work, &found, sender, false)?;
        return forward(tables, packet, work, receiver);
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
    policy::admit(tables, packet, work, Some(sender), receiver, false)?;
    if let Some(chosen) = &chosen {
        work.flow.service = chosen.service;
        work.flow.backend = chosen.backend;
        nat::enter_dialled(tables, work)?;
    }
    work.flow.via_reply = via::PEER;
    if let Some(receiver) = receiver {
        work.flow.via_forward = via::PEER;
        enter(tables, work)?;
        work.stack_reply = 0;
        return deliver(tables, packet, work, receiver);
    }
    let destination = work.out.dst;
    let route = route::lookup(tables, work, &destination)?;
    masquerade_new(tables, packet, work, route)?;
    work.flow.via_forward = via_of(work.way);
    enter(tables, work)?;
    send(tables, packet, work)
}

/// The way, for the flow.
#[inline(always)]
fn via_of(way: u8) -> u8 {
    match way {
        way::PEER => via::PEER,
        way::NEIGHBOUR => via::DEVICE,
        way::TUNNEL | way::TUNNEL_KEY => via::TUNNEL,
        _ => via::STACK,
    }
}

/// Enters `work.flow` among the new connections, in the place of one that is over.
#[inline(always)]
fn enter<T: Tables>(tables: &T, work: &Work) -> Result<(), Reason> {
    if tables.flow(Table::Established, &work.key).is_some() {
        tables.remove_flow(Table::Established, &work.key);
    }
    tables
        .insert_flow(Table::New, &work.key, &work.flow)
        .map_err(|_| Reason::ConntrackFull)
}

/// The flow of the packet. `None` too if another flow has taken over its translated tuple.
#[inline(always)]
fn known<'t, T: Tables, P: Packet>(tables: &'t T, packet: &mut P, work: &mut Work) -> Option<Found<'t>> {
    let found = conntrack::find(tables, work)?;
    if nat::due(work, found.flow) && stage::call(Stage::LookAfter, tables, packet, work).is_err() {
        return None;
    }
    Some(found)
}

/// Counts the packet on its flow, asks policy again if anything moved, and works out how it leaves (`work.out`).
/// `near` is the endpoint at which this hook stands; the other one is looked up if `far` says that it may be local.
/// Gives that other one.
#[inline(always)]
fn advance_known<'t, T: Tables, P: Packet>(
    tables: &'t T,
    packet: &mut P,
    work: &mut Work,
    found: &Found<'_>,
    near: &Endpoint,
    receives: bool,
) -> Result<Option<&'t Endpoint>, Reason> {
    conntrack::advance(packet, work, found.flow);
    conntrack::forward_tuple(&work.key, found.flow, &mut work.out);
    let other = if receives {
        None
    } else {
        tables.endpoint(if work.reply == 0 {
            &work.out.dst
        } else {
            &work.out.src
        })
    };
    let near_is_source = (work.reply == 0) != receives;
    let (source, destination) = if near_is_source {
        (Some(near), other)
    } else {
        (other, Some(near))
    };
    policy::revalidate(tables, packet, work, found.flow, source, destination)?;
    work.service = found.flow.service;
    nat::leaving(work, found.flow);
    work.stack_reply = u8::from(work.reply != 0 && found.flow.via_reply == via::STACK);
    if conntrack::ripe(work, found.table) {
        promote(tables, packet, work)?;
    }
    Ok(other)
}

/// Promotes the flow; `work.out` is needed afterwards.
#[inline(always)]
fn promote<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    let out = work.out;
    stage::call(Stage::Promote, tables, packet, work)?;
    work.out = out;
    Ok(())
}

/// Hands on a packet whose way is known: to the local `receiver`, or off this node. Replies go back the way the
/// connection came.
#[inline(always)]
fn forward<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    receiver: Option<&Endpoint>,
) -> Outcome {
    if let Some(receiver) = receiver {
        return deliver(tables, packet, work, receiver);
    }
    if work.stack_reply != 0 {
        return work.pass();
    }
    let destination = work.out.dst;
    let route = route::lookup(tables, work, &destination)?;
    route::leave(tables, packet, work, route)?;
    send(tables, packet, work)
}

/// Deliver-to-endpoint: every packet that reaches a pod through our programs passes here.
#[inline(always)]
fn deliver<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    receiver: &Endpoint,
) -> Outcome {
    // The stack answers these with an error, which must show the packet as it was sent.
    if work.headers.ttl <= 1 || route::exceeds(packet, work, receiver.mtu) {
        return work.pass();
    }
    translate(tables, packet, work)?;
    route::to_endpoint(work, receiver);
    if work.way == way::PEER {
        rewrite::hop(packet, &work.headers, &receiver.mac, &receiver.host_mac)?;
    }
    Ok(())
}

#[inline(always)]
fn translate<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    if work.tuple != work.out {
        stage::call(Stage::Translate, tables, packet, work)?;
    }
    Ok(())
}

/// Sends the packet off this node. What the stack gets is left as the pod sent it, `to_netdev` translates it then.
#[inline(always)]
fn send<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    if work.way == way::NEIGHBOUR {
        translate(tables, packet, work)?;
        // The helper that resolves the neighbour writes the MAC addresses; the hop counts here.
        let macs: [u16; 6] = packet.load(0).ok_or(Reason::Truncated)?;
        rewrite::hop_with(packet, &work.headers, macs)?;
    } else if work.way == way::TUNNEL {
        translate(tables, packet, work)?;
        rewrite::hop(packet, &work.headers, &Config::TUNNEL_MAC, &Config::TUNNEL_MAC)?;
    }
    Ok(())
}

/// Routes a new connection out of the node, with a translated source if it leaves the cluster.
#[inline(always)]
fn masquerade_new<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    route: &crate::abi::Route,
) -> Outcome {
    if route.flags & route_flags::MASQUERADE == 0 || tables.config().masquerades() == 0 {
        return route::leave(tables, packet, work, route);
    }
    // The address to masquerade with is that of the device by which the packet leaves, so the kernel's route comes
    // first. Where the stack must decide, `to_netdev` does all of it.
    stage::call(Stage::Fib, tables, packet, work)?;
    if work.way != way::NEIGHBOUR {
        return Ok(());
    }
    let ifindex = work.to_ifindex;
    stack::masquerade(tables, packet, work, ifindex)?;
    if work.headers.ttl <= 1 || route::exceeds(packet, work, route.mtu) {
        return work.pass();
    }
    work.out.src = work.flow.snat;
    work.out.src_port = work.flow.snat_port;
    Ok(())
}

/// An ICMP error from a pod.
#[inline(always)]
fn related_from_pod<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    stage::call(Stage::Related, tables, packet, work)?;
    let receiver = tables.endpoint(&work.out.dst);
    forward(tables, packet, work, receiver)
}

/// What the host's stack hands to a pod: its own packets, and what another proxy or a chained plugin handled.
#[inline(always)]
pub fn to_pod<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    let config = tables.config();
    if packet.mark() & config.own_mark_mask() == config.own_mark() {
        return work.pass();
    }
    open(tables, packet, work, hook::TO_POD, direction::INGRESS)?;
    let receiver = tables.endpoint(&work.tuple.dst).ok_or(Reason::NoEndpoint)?;
    if receiver.ifindex != packet.ifindex() {
        return Err(Reason::NoEndpoint);
    }
    work.endpoint = receiver.id;
    if work.headers.icmp_error != 0 {
        stage::call(Stage::Related, tables, packet, work)?;
        return work.pass();
    }
    if let Some(found) = known(tables, packet, work) {
        advance_known(tables, packet, work, &found, receiver, true)?;
        translate(tables, packet, work)?;
        return work.pass();
    }
    work.out = work.tuple;
    conntrack::begin(packet, work);
    let from_host = packet.ingress_ifindex() == 0;
    policy::admit(tables, packet, work, None, Some(receiver), from_host)?;
    work.flow.via_forward = via::STACK;
    work.flow.via_reply = via::STACK;
    enter(tables, work)?;
    work.pass()
}

/// What arrives on a device of the node, or out of the tunnel. What is not for a pod is the stack's.
#[inline(always)]
pub fn from_netdev<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    if headers::ethertype(packet) != Ethertype::Ip {
        return work.pass();
    }
    let tunnel = packet.ifindex() == tables.config().tunnel_device();
    match open(tables, packet, work, hook::FROM_NETDEV, direction::INGRESS) {
        Ok(()) => {}
        // What cannot be read is no pod's business here: the stack judges what is its own, and `to_pod` stands before
        // every pod. Out of the tunnel nothing comes but pods' packets.
        Err(_) if !tunnel => return work.pass(),
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
            route_action::HOST => work.pass(),
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
fn arriving<T: Tables, P: Packet>(
    tables: &T,
    packet: &mut P,
    work: &mut Work,
    receiver: &Endpoint,
) -> Outcome {
    if tables.endpoint(&work.tuple.src).is_some() {
        return Err(Reason::Martian);
    }
    if work.headers.icmp_error != 0 {
        stage::call(Stage::Related, tables, packet, work)?;
        work.stack_reply = 0;
        return deliver(tables, packet, work, receiver);
    }
    if let Some(found) = known(tables, packet, work) {
        advance_known(tables, packet, work, &found, receiver, true)?;
        // It came by a device, whatever way the connection's first packet took.
        work.stack_reply = 0;
        return deliver(tables, packet, work, receiver);
    }
    let source = work.tuple.src;
    if let Ok(route) = route::lookup(tables, work, &source)
        && route.action == route_action::HOST
    {
        return Err(Reason::Martian);
    }
    work.out = work.tuple;
    conntrack::begin(packet, work);
    policy::admit(tables, packet, work, None, Some(receiver), false)?;
    work.flow.via_forward = via::PEER;
    work.flow.via_reply = if packet.ifindex() == tables.config().tunnel_device() {
        via::TUNNEL
    } else {
        via::DEVICE
    };
    enter(tables, work)?;
    work.stack_reply = 0;
    deliver(tables, packet, work, receiver)
}

/// What the host's stack sends through a device of the node, or into the tunnel.
#[inline(always)]
pub fn to_netdev<T: Tables, P: Packet>(tables: &T, packet: &mut P, work: &mut Work) -> Outcome {
    let config = tables.config();
    if packet.mark() & config.own_mark_mask() == config.own_mark()
        || headers::ethertype(packet) != Ethertype::Ip
    {
        return work.pass();
    }
    let tunnel = packet.ifindex() == config.tunnel_device();
    match open(tables, packet, work, hook::TO_NETDEV, direction::EGRESS) {
        Ok(()) => {}
        Err(_) if !tunnel => return work.pass(),
        Err(reason) => return Err(reason),
    }
    if tunnel {
        let destination = work.tuple.dst;
        let route = route::lookup(tables, work, &destination)?;
        if route.action != route_action::TUNNEL {
            return Err(Reason::NoRoute);
        }
        work.way = way::TUNNEL_KEY;
        work.gateway = route.gateway;
        return Ok(());
    }
    stack::leaving(tables, packet, work)
}
