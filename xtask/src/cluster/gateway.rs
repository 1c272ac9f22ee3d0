//! The way from this machine's loopback to the API server, which listens in a namespace.
//!
//! The listening socket is made outside and inherited; the process runs inside, where the sockets that it makes lead to the
//! API server. So neither a device nor a route of the machine is touched.

use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::thread;

use anyhow::{Context, Result};

use super::daemon::Daemon;
use super::keys::API_PORT;
use super::namespace::inside;
use super::place::Place;

/// A port of this machine's loopback that was free.
pub(crate) fn listen() -> Result<(TcpListener, u16)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening on the loopback")?;
    let port = listener.local_addr().context("the listener's port")?.port();
    Ok((listener, port))
}

/// Starts the process that carries connections.
pub(crate) fn start(place: &Place, listener: TcpListener) -> Result<()> {
    let own = std::env::current_exe().context("finding this program")?;
    let mut command = inside(&place.fabric(), own);
    command.args(["cluster", "gateway"]);
    let socket = Stdio::from(OwnedFd::from(listener));
    Daemon::with_input(place, "gateway", command, socket).map(drop)
}

/// What that process does: standard input is the listening socket.
pub(crate) fn run() -> Result<()> {
    let socket = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("the inherited socket")?;
    for client in TcpListener::from(socket).incoming() {
        let client = client.context("accepting a connection")?;
        thread::spawn(move || {
            if let Err(error) = carry(&client) {
                eprintln!("{error:#}");
            }
        });
    }
    Ok(())
}

fn carry(client: &TcpStream) -> Result<()> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, API_PORT)).context("calling the API server")?;
    thread::scope(|scope| {
        scope.spawn(|| copy(client, &server));
        copy(&server, client);
    });
    Ok(())
}

/// One direction, to its end. A connection that breaks ends both.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    if io::copy(&mut from, &mut to).is_ok() {
        let _ = to.shutdown(Shutdown::Write);
    } else {
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }
}
