//! Talk over real sockets, with bounded patience and without second tries.

mod echo;
mod load;
mod pour;
mod sctp;
mod steady;

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{netns::Namespace, patience};
pub use echo::Echo;
pub use load::{Load, Targets};
pub use pour::pour;
pub use sctp::sctp;
pub use steady::{Steady, Tally};

/// What comes this late has been lost: a machine with a load of seventy on two cores has been seen to take more than five
/// seconds for an answer.
fn limit() -> Duration {
    patience(Duration::from_secs(30))
}

/// An address to bind for a family.
pub fn any(v4: bool) -> SocketAddr {
    if v4 {
        SocketAddr::from(([0; 4], 0))
    } else {
        SocketAddr::from(([0u16; 8], 0))
    }
}

/// Connects, sends `bytes` and demands them back. Gives the connection's own address.
pub fn tcp(from: &Namespace, to: SocketAddr, bytes: usize) -> Result<SocketAddr> {
    let what = || format!("TCP from {} to {to}", from.name());
    let mut stream = connect(from, to).with_context(what)?;
    let local = stream.local_addr()?;
    let mut writer = stream.try_clone()?;
    let sent = pattern(bytes);
    let got = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let _ = writer.write_all(&sent);
            let _ = writer.shutdown(std::net::Shutdown::Write);
        });
        let mut got = Vec::with_capacity(bytes);
        let read = stream.read_to_end(&mut got).map(|_| got);
        let _ = writing.join();
        read
    })
    .with_context(what)?;
    ensure!(
        got == sent,
        "{}: {} bytes came back of {bytes}",
        what(),
        got.len()
    );
    Ok(local)
}

/// A connection with time limits, established from inside.
pub fn connect(from: &Namespace, to: SocketAddr) -> Result<TcpStream> {
    from.run(|| connect_here(to))
}

/// The same from where this thread is.
fn connect_here(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, limit())?;
    stream.set_read_timeout(Some(limit()))?;
    stream.set_write_timeout(Some(limit()))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// GET, head and body; `None` if nobody listens, or ends before it has answered.
pub fn get(from: &Namespace, to: SocketAddr, path: &str) -> Option<String> {
    let mut stream = connect(from, to).ok()?;
    let asked = write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n"
    );
    let mut answer = String::new();
    asked.and_then(|()| stream.read_to_string(&mut answer)).ok()?;
    Some(answer)
}

/// A socket with a time limit, bound inside and connected.
pub fn udp_socket(from: &Namespace, to: SocketAddr) -> Result<UdpSocket> {
    let socket = from.run(|| -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind(any(to.is_ipv4()))?;
        socket.connect(to)?;
        Ok(socket)
    })?;
    socket.set_read_timeout(Some(limit()))?;
    Ok(socket)
}

/// Sends one datagram and demands it back. Gives the socket's own address.
pub fn udp(from: &Namespace, to: SocketAddr, bytes: usize) -> Result<SocketAddr> {
    let what = || format!("UDP, {bytes} bytes, from {} to {to}", from.name());
    let socket = udp_socket(from, to).with_context(what)?;
    let sent = pattern(bytes);
    socket.send(&sent).with_context(what)?;
    let mut got = vec![0; bytes + 1];
    let length = socket.recv(&mut got).with_context(what)?;
    ensure!(
        got[..length] == sent,
        "{}: {length} other bytes came back",
        what()
    );
    Ok(socket.local_addr()?)
}

/// One ICMP echo with `bytes` of data.
pub fn ping(from: &Namespace, to: IpAddr, bytes: usize) -> Result<()> {
    let what = || format!("ping, {bytes} bytes, from {} to {to}", from.name());
    let (domain, protocol, request, reply) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = from
        .run(|| Socket::new(domain, Type::DGRAM, Some(protocol)))
        .with_context(what)?;
    socket.set_read_timeout(Some(limit()))?;
    socket
        .connect(&SocketAddr::new(to, 0).into())
        .with_context(what)?;
    // Type, code, checksum, identifier (the kernel fills these two in), sequence, data.
    let mut message = vec![request, 0, 0, 0, 0, 0, 0, 1];
    message.extend(pattern(bytes));
    socket.send(&message).with_context(what)?;
    let mut answer = vec![0; message.len() + 1];
    let length = (&socket).read(&mut answer).with_context(what)?;
    if length != message.len() || answer[0] != reply || answer[6..length] != message[6..] {
        bail!("{}: another answer of {length} bytes", what());
    }
    Ok(())
}

/// Bytes that differ from place to place.
pub fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i ^ (i >> 8)) as u8).collect()
}
