//! Services for sockets: the destination is exchanged when a socket connects or sends, and no packet is ever translated.
//!
//! Streams and datagrams of the host's own sockets are served here, because what the host sends meets no program that could
//! lead it to a backend; the kernel asks no program where an SCTP socket connects. Of pods only streams are: their datagrams
//! are balanced packet by packet, where a flow can leave a backend that serves no longer, connected or not. And what a pod
//! is to be refused, its packets are told.

use super::headers::proto;
use super::service::{self, Choice};
use super::{Tables, route};
use crate::abi::{
    Addr, AffinityKey, Dialled, Port, Prefix, Reason, SocketKey, Tuple, client_kind, route_action,
    service_scope, socket_lb,
};

/// A socket that connects, sends, receives or is asked for its peer.
pub trait Socket {
    fn cookie(&self) -> u64;
    /// The cookie of its network namespace.
    fn netns(&self) -> u64;
    fn protocol(&self) -> u8;
    fn peer(&self) -> (Addr, Port);
    fn set_peer(&mut self, addr: &Addr, port: Port);
}

/// What [`SocketKey::pad`] says.
mod kept {
    /// The key's address is a backend's, the value what the socket dialled.
    pub(super) const DIALLED: u8 = 0;
    /// The key's address is what the socket dialled, the value its backend.
    pub(super) const CHOSEN: u8 = 1;
}

#[inline(always)]
fn key<S: Socket>(socket: &S, addr: Addr, port: Port, kept: u8) -> SocketKey {
    SocketKey {
        cookie: socket.cookie(),
        addr,
        port,
        proto: socket.protocol(),
        pad: kept,
        reserved: 0,
    }
}

/// A socket connects: to a backend, if its peer is a Service.
#[inline(always)]
pub fn connect<T: Tables, S: Socket>(tables: &T, socket: &mut S) -> Result<(), Reason> {
    let (addr, port) = socket.peer();
    let Some(choice) = choose(tables, socket, &addr, port)? else {
        return Ok(());
    };
    exchange(tables, socket, &addr, port, &choice);
    Ok(())
}

/// A datagram is sent by a socket that is not connected. All that a socket sends to one frontend goes to one backend, as
/// long as that serves.
#[inline(always)]
pub fn send<T: Tables, S: Socket>(tables: &T, socket: &mut S) -> Result<(), Reason> {
    let (addr, port) = socket.peer();
    let chosen = key(socket, addr, port, kept::CHOSEN);
    if let Some(last) = tables.socket(&chosen)
        && tables
            .backend(&last.backend)
            .is_some_and(|backend| backend.addr == last.addr && backend.port == last.port)
    {
        let (addr, port) = (last.addr, last.port);
        socket.set_peer(&addr, port);
        return Ok(());
    }
    let Some(choice) = choose(tables, socket, &addr, port)? else {
        return Ok(());
    };
    exchange(tables, socket, &addr, port, &choice);
    let backend = Dialled {
        addr: choice.addr,
        port: choice.port,
        pad: 0,
        service: choice.service,
        backend: choice.backend,
        reserved: 0,
    };
    tables.remember_socket(&chosen, &backend);
    Ok(())
}

/// A peer is shown as the one that was dialled: to who received from it, and to who asks.
#[inline(always)]
pub fn show<T: Tables, S: Socket>(tables: &T, socket: &mut S) {
    if tables.config().balances_sockets() == socket_lb::OFF {
        return;
    }
    let (addr, port) = socket.peer();
    let found = tables.socket(&key(socket, addr, port, kept::DIALLED));
    if let Some(dialled) = found {
        let (addr, port) = (dialled.addr, dialled.port);
        socket.set_peer(&addr, port);
    }
}

#[inline(always)]
fn exchange<T: Tables, S: Socket>(tables: &T, socket: &mut S, addr: &Addr, port: Port, choice: &Choice) {
    let dialled = Dialled {
        addr: *addr,
        port,
        pad: 0,
        service: choice.service,
        backend: choice.backend,
        reserved: 0,
    };
    let key = key(socket, choice.addr, choice.port, kept::DIALLED);
    tables.remember_socket(&key, &dialled);
    service::count(tables, &choice.service);
    socket.set_peer(&choice.addr, choice.port);
}

/// The backend for what the socket dials; `None` if that is no Service, or if packets are to decide.
#[inline(always)]
fn choose<T: Tables, S: Socket>(
    tables: &T,
    socket: &S,
    addr: &Addr,
    port: Port,
) -> Result<Option<Choice>, Reason> {
    let config = tables.config();
    let balances = config.balances_sockets();
    let netns = socket.netns();
    let host = netns == config.netns_of_host();
    let protocol = socket.protocol();
    let streams = matches!(protocol, proto::TCP | proto::SCTP);
    let asks = if host {
        balances != socket_lb::OFF && service::serves(protocol)
    } else {
        // A pod's loopback is its own.
        balances == socket_lb::ALL && streams && !route::is_loopback(addr)
    };
    if !asks {
        return Ok(None);
    }
    let mut choice = Choice {
        scope: service_scope::CLUSTER,
        client: AffinityKey {
            client: Addr { hi: 0, lo: netns },
            kind: client_kind::NETNS,
            service: 0,
        },
        ..Choice::default()
    };
    // Who asks counts where a Service says whom it serves. Packets of pods bear their address and are asked then.
    let src = match tables.settings() {
        Some(node) if host && addr.is_v4() => node.node_v4,
        Some(node) if host => node.node_v6,
        _ => Addr::UNSPECIFIED,
    };
    let tuple = Tuple {
        src,
        dst: *addr,
        dst_port: port,
        proto: protocol,
        ..Tuple::default()
    };
    let outcome = service::choose(tables, &tuple, &mut choice, tables.now());
    if !host {
        return Ok((outcome.is_ok() && choice.found != 0).then_some(choice));
    }
    outcome?;
    if choice.found != 0 {
        return Ok(Some(choice));
    }
    // What is left of the Service range is nobody's, and must not leave the node.
    let served = tables
        .route(&Prefix::host(*addr))
        .is_some_and(|route| route.action == route_action::SERVICE);
    if !served {
        return Ok(None);
    }
    Err(if service::lives(tables, &mut choice, addr) {
        Reason::ServiceNoBackend
    } else {
        Reason::ServiceUnknown
    })
}
