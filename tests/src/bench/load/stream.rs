//! TCP.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use socket2::SockRef;

use super::{Cpus, Ends, PATIENCE, joined, server_address};

/// Before the clock starts.
const WARM_UP: u64 = 50;
const CHUNK: usize = 128 << 10;

fn listener(ends: &Ends) -> Result<(TcpListener, SocketAddr)> {
    listener_at(ends, server_address(ends))
}

fn listener_at(ends: &Ends, address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let listener = ends
        .server
        .run(|| TcpListener::bind(address))
        .with_context(|| format!("listen at {address}"))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Both ends of a connection.
fn pair(ends: &Ends) -> Result<(TcpStream, TcpStream)> {
    let (listener, to) = listener(ends)?;
    pair_by(ends, &listener, to)
}

fn pair_by(ends: &Ends, listener: &TcpListener, to: SocketAddr) -> Result<(TcpStream, TcpStream)> {
    let client = ends
        .client
        .run(|| TcpStream::connect_timeout(&to, PATIENCE))
        .context("connect")?;
    let (server, _) = listener.accept().context("accept")?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((client, server))
}

pub(super) fn request_response(ends: &Ends, cpus: Cpus, time: Duration) -> Result<f64> {
    let (client, server) = pair(ends)?;
    requests(client, server, cpus, time)
}

/// Requests a second on one connection to an address that leads to the server's port.
pub fn requests_by(ends: &Ends, port: u16, dialled: SocketAddr, cpus: Cpus, time: Duration) -> Result<f64> {
    let (listener, _) = listener_at(ends, SocketAddr::new(ends.ip, port))?;
    let (client, server) = pair_by(ends, &listener, dialled)?;
    requests(client, server, cpus, time).with_context(|| format!("ask {dialled} on {}", cpus.name()))
}

fn requests(client: TcpStream, server: TcpStream, cpus: Cpus, time: Duration) -> Result<f64> {
    thread::scope(|scope| {
        let answering = scope.spawn(move || answer(server, cpus));
        let asking = scope.spawn(move || ask(client, cpus, time));
        let rate = joined(asking);
        joined(answering).context("server")?;
        rate
    })
}

fn answer(mut server: TcpStream, cpus: Cpus) -> Result<()> {
    cpus.bind_server()?;
    let mut byte = [0];
    while server.read(&mut byte)? > 0 {
        server.write_all(&byte)?;
    }
    Ok(())
}

fn ask(mut client: TcpStream, cpus: Cpus, time: Duration) -> Result<f64> {
    cpus.bind_client()?;
    let mut once = |number: u64| -> Result<()> {
        let sent = [number as u8];
        let mut got = [0];
        client.write_all(&sent)?;
        client.read_exact(&mut got)?;
        ensure!(got == sent, "another byte came back");
        Ok(())
    };
    rate(time, &mut once)
}

/// How often `once` goes through in a second.
fn rate(time: Duration, once: &mut dyn FnMut(u64) -> Result<()>) -> Result<f64> {
    (0..WARM_UP).try_for_each(&mut *once)?;
    let begin = Instant::now();
    let mut count = 0;
    while begin.elapsed() < time {
        once(count)?;
        count += 1;
    }
    Ok(count as f64 / begin.elapsed().as_secs_f64())
}

pub(super) fn bulk(ends: &Ends, cpus: Cpus, time: Duration) -> Result<f64> {
    let (client, server) = pair(ends)?;
    thread::scope(|scope| {
        let sending = scope.spawn(move || send(client, cpus, time));
        let receiving = scope.spawn(move || receive(server, cpus));
        let rate = joined(receiving);
        joined(sending).context("client")?;
        rate
    })
}

fn send(mut client: TcpStream, cpus: Cpus, time: Duration) -> Result<()> {
    cpus.bind_client()?;
    let chunk = vec![0; CHUNK];
    let begin = Instant::now();
    while begin.elapsed() < time {
        client.write_all(&chunk)?;
    }
    Ok(())
}

/// Gigabits a second, from the end of the first chunk to the end of the stream.
fn receive(mut server: TcpStream, cpus: Cpus) -> Result<f64> {
    cpus.bind_server()?;
    let mut chunk = vec![0; CHUNK];
    server.read_exact(&mut chunk)?;
    let begin = Instant::now();
    let mut bytes = 0;
    loop {
        match server.read(&mut chunk)? {
            0 => return Ok(bytes as f64 * 8.0 / 1e9 / begin.elapsed().as_secs_f64()),
            length => bytes += length,
        }
    }
}

pub(super) fn connect(ends: &Ends, cpus: Cpus, time: Duration) -> Result<f64> {
    let (listener, to) = listener(ends)?;
    connect_to(&listener, to, ends, cpus, time)
}

/// Connections a second to an address that leads to the server's port.
pub fn connect_by(ends: &Ends, port: u16, dialled: SocketAddr, cpus: Cpus, time: Duration) -> Result<f64> {
    let (listener, _) = listener_at(ends, SocketAddr::new(ends.ip, port))?;
    connect_to(&listener, dialled, ends, cpus, time)
        .with_context(|| format!("connect to {dialled} on {}", cpus.name()))
}

fn connect_to(
    listener: &TcpListener,
    to: SocketAddr,
    ends: &Ends,
    cpus: Cpus,
    time: Duration,
) -> Result<f64> {
    thread::scope(|scope| {
        let accepting = scope.spawn(move || accept(listener, cpus));
        let connecting = ends.client.run(move || -> Result<f64> {
            cpus.bind_client()?;
            rate(time, &mut |_| connected_and_reset(to))
        });
        // Whoever waits in accept() must see the end, also where the measured path is broken.
        let last = listener
            .local_addr()
            .map_err(anyhow::Error::from)
            .and_then(|own| ends.server.run(|| connected_and_reset(own)));
        joined(accepting).context("server")?;
        last.context("the last connection").and(connecting)
    })
}

/// Until a connection comes from the server's own address.
fn accept(listener: &TcpListener, cpus: Cpus) -> Result<()> {
    cpus.bind_server()?;
    let own = listener.local_addr()?.ip();
    loop {
        let (stream, from) = listener.accept()?;
        // A reset leaves no TIME_WAIT on either side, so ports do not run out.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        drop(stream);
        if from.ip() == own {
            return Ok(());
        }
    }
}

pub fn connected_and_reset(to: SocketAddr) -> Result<()> {
    // No time limit: with one, a connection would cost four more system calls. The kernel's own ends it.
    let mut stream = match TcpStream::connect(to) {
        // The reset was quicker than the return of connect().
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
        stream => stream?,
    };
    match stream.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => bail!("{other:?} instead of a reset"),
    }
}
