//! UDP.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Cpus, Ends, PATIENCE, joined, server_address};

/// Payload of the smallest Ethernet frame.
const BYTES: usize = 18;
/// Datagrams on the way; a socket's default buffer holds twice as many.
const WINDOW: u64 = 128;

/// Two sockets, connected to each other.
fn pair(ends: &Ends) -> Result<(UdpSocket, UdpSocket)> {
    let any: SocketAddr = match ends.ip.is_ipv4() {
        true => ([0; 4], 0).into(),
        false => ([0u16; 8], 0).into(),
    };
    let server = ends
        .server
        .run(|| UdpSocket::bind(server_address(ends)))
        .context("bind")?;
    let client = ends.client.run(|| UdpSocket::bind(any)).context("bind")?;
    client.connect(server.local_addr()?)?;
    client.set_read_timeout(Some(PATIENCE))?;
    server.set_read_timeout(Some(PATIENCE))?;
    // Both sides are heard, so the flow is an established one before the clock starts.
    let mut buffer = [0; BYTES];
    client.send(&buffer)?;
    let (_, from) = server.recv_from(&mut buffer).context("the first datagram")?;
    server.connect(from)?;
    server.send(&buffer)?;
    client.recv(&mut buffer).context("the first answer")?;
    Ok((client, server))
}

pub(super) fn small(ends: &Ends, cpus: Cpus, time: Duration) -> Result<f64> {
    let (client, server) = pair(ends)?;
    match cpus {
        // A thread of its own: it is bound to a processor for good.
        Cpus::One => thread::scope(|scope| joined(scope.spawn(|| by_turns(&client, &server, time)))),
        Cpus::Two => side_by_side(&client, &server, time),
    }
}

fn by_turns(client: &UdpSocket, server: &UdpSocket, time: Duration) -> Result<f64> {
    Cpus::One.bind_client()?;
    let mut buffer = [0; BYTES];
    let begin = Instant::now();
    let mut count = 0;
    while begin.elapsed() < time {
        for _ in 0..WINDOW {
            ensure!(client.send(&buffer)? == BYTES, "a shorter datagram was sent");
        }
        for _ in 0..WINDOW {
            server.recv(&mut buffer).context("a datagram was lost")?;
        }
        count += WINDOW;
    }
    Ok(count as f64 / begin.elapsed().as_secs_f64())
}

/// Neither side ever sleeps: waking the other costs more than the packet.
fn side_by_side(client: &UdpSocket, server: &UdpSocket, time: Duration) -> Result<f64> {
    let received = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    server.set_nonblocking(true)?;
    thread::scope(|scope| {
        let (received, over) = (&received, &over);
        let receiving = scope.spawn(move || count(server, received, over));
        let sending = scope.spawn(move || {
            let rate = send_ahead(client, received, time);
            over.store(true, Ordering::Relaxed);
            rate
        });
        let rate = joined(sending);
        joined(receiving)?;
        rate
    })
}

fn count(server: &UdpSocket, received: &AtomicU64, over: &AtomicBool) -> Result<()> {
    Cpus::Two.bind_server()?;
    let mut buffer = [0; BYTES];
    while !over.load(Ordering::Relaxed) {
        match server.recv(&mut buffer) {
            Ok(_) => {
                received.fetch_add(1, Ordering::Release);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("receive"),
        }
    }
    Ok(())
}

/// Sends with at most a window on the way.
fn send_ahead(client: &UdpSocket, received: &AtomicU64, time: Duration) -> Result<f64> {
    Cpus::Two.bind_client()?;
    let arrived = || received.load(Ordering::Acquire);
    let begin = Instant::now();
    let mut sent = 0;
    while begin.elapsed() < time {
        for _ in 0..WINDOW {
            let mut since = None;
            while sent - arrived() >= WINDOW {
                if since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                    bail!("of {sent} datagrams {} arrived", arrived());
                }
                std::hint::spin_loop();
            }
            client.send(&[0; BYTES])?;
            sent += 1;
        }
    }
    Ok(arrived() as f64 / begin.elapsed().as_secs_f64())
}
