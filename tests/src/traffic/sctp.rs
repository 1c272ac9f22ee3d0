//! SCTP, one association a socket. Each end is bound to one address: what an association may use besides, the far side
//! would learn and try.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use nix::libc::IPPROTO_SCTP;
use socket2::{Domain, Protocol, Socket, Type};

use super::{limit, pattern};
use crate::netns::Namespace;

fn socket(inside: &Namespace, ip: IpAddr, port: u16) -> Result<Socket> {
    let address = SocketAddr::new(ip, port);
    let bound = inside.run(|| -> std::io::Result<Socket> {
        let protocol = Some(Protocol::from(IPPROTO_SCTP));
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, protocol)?;
        socket.bind(&address.into())?;
        Ok(socket)
    });
    bound.with_context(|| format!("SCTP socket on {ip} in {}", inside.name()))
}

pub(super) fn listen(inside: &Namespace, address: SocketAddr) -> Result<Socket> {
    let socket = socket(inside, address.ip(), address.port())?;
    socket.listen(16)?;
    Ok(socket)
}

/// Associates from address `own` with `to`, sends `bytes` and demands them back. Gives the association's own end.
pub fn sctp(from: &Namespace, own: IpAddr, to: SocketAddr, bytes: usize) -> Result<SocketAddr> {
    let what = || format!("SCTP from {own} to {to}");
    let mut socket = socket(from, own, 0)?;
    socket.connect_timeout(&to.into(), limit()).with_context(what)?;
    socket.set_read_timeout(Some(limit()))?;
    let sent = pattern(bytes);
    socket.write_all(&sent).with_context(what)?;
    let mut got = vec![0; bytes];
    socket.read_exact(&mut got).with_context(what)?;
    ensure!(got == sent, "{}: other bytes came back", what());
    socket.local_addr()?.as_socket().context("an IP address")
}
