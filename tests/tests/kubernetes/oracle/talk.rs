//! Servers that tell who they are and whom they see, and their clients.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;
use cni_tests::{crew::Crew, netns::Namespace, traffic::any};
use nix::libc;
use socket2::{Domain, Socket, Type};

const LOOK: Duration = Duration::from_millis(50);

/// Answers a number with the number, its name and the client's address.
#[derive(Debug)]
pub(super) struct Witness {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Witness {
    /// Streams and datagrams at one address.
    pub(super) fn start(inside: &Namespace, name: &'static str, at: SocketAddr) -> Result<Self> {
        let (listener, socket) = inside.run(|| -> io::Result<_> {
            let listener = TcpListener::bind(at)?;
            // It applies to `accept` too.
            socket2::SockRef::from(&listener).set_read_timeout(Some(LOOK))?;
            let socket = UdpSocket::bind(at)?;
            socket.set_read_timeout(Some(LOOK))?;
            Ok((listener, socket))
        })?;
        let stop = Arc::<AtomicBool>::default();
        let [streams, datagrams] = [Arc::clone(&stop), Arc::clone(&stop)];
        let threads = vec![
            thread::spawn(move || {
                let mut crew = Crew::default();
                while !streams.load(Ordering::Relaxed) {
                    if let Ok((stream, peer)) = listener.accept() {
                        let stop = Arc::clone(&streams);
                        crew.spawn(move || serve(stream, &words(name, peer), &stop));
                    }
                }
            }),
            thread::spawn(move || {
                let mut number = [0; 4];
                while !datagrams.load(Ordering::Relaxed) {
                    if let Ok((4, peer)) = socket.recv_from(&mut number) {
                        let _ = socket.send_to(&[&number[..], words(name, peer).as_bytes()].concat(), peer);
                    }
                }
            }),
        ];
        Ok(Self { stop, threads })
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn words(name: &str, peer: SocketAddr) -> String {
    format!("{name} sees {}", peer.ip())
}

fn serve(mut stream: TcpStream, words: &str, stop: &AtomicBool) {
    let _ = stream.set_read_timeout(Some(LOOK));
    let mut number = [0; 4];
    while !stop.load(Ordering::Relaxed) {
        match stream.read_exact(&mut number) {
            Ok(()) => {
                let answer = [&number[..], words.as_bytes()].concat();
                if stream.write_all(&answer).is_err() {
                    return;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    Tcp,
    /// A connected socket, which hears of refusals.
    Udp,
    /// One that says with each datagram where it is to go.
    LooseUdp,
}

/// A client's socket.
#[derive(Debug)]
pub(super) enum Talk {
    Stream(TcpStream),
    Datagrams(UdpSocket),
    Loose(UdpSocket, SocketAddr),
}

impl Talk {
    /// From this port, which several may have towards different places.
    pub(super) fn begin(
        inside: &Namespace,
        means: Means,
        port: u16,
        to: SocketAddr,
        patience: Duration,
    ) -> io::Result<Self> {
        let kind = if means == Means::Tcp {
            Type::STREAM
        } else {
            Type::DGRAM
        };
        let mut own = any(to.is_ipv4());
        own.set_port(port);
        inside.run(|| {
            let socket = Socket::new(Domain::for_address(to), kind, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&own.into())?;
            match means {
                Means::Tcp => socket.connect_timeout(&to.into(), patience)?,
                Means::Udp => socket.connect(&to.into())?,
                Means::LooseUdp => {}
            }
            Ok(match means {
                Means::Tcp => Self::Stream(socket.into()),
                Means::Udp => Self::Datagrams(socket.into()),
                Means::LooseUdp => Self::Loose(socket.into(), to),
            })
        })
    }

    /// What the server says. Answers to earlier questions are passed over.
    pub(super) fn ask(&mut self, patience: Duration) -> io::Result<String> {
        static ASKED: AtomicU32 = AtomicU32::new(0);
        let number = ASKED.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        match self {
            Self::Stream(stream) => {
                stream.set_read_timeout(Some(patience))?;
                stream.write_all(&number)?;
            }
            Self::Datagrams(socket) => {
                socket.set_read_timeout(Some(patience))?;
                sent(socket.send(&number))?;
            }
            Self::Loose(socket, to) => {
                socket.set_read_timeout(Some(patience))?;
                sent(socket.send_to(&number, *to))?;
            }
        }
        let mut answer = [0; 256];
        loop {
            let length = match self {
                Self::Stream(stream) => stream.read(&mut answer)?,
                Self::Datagrams(socket) => socket.recv(&mut answer)?,
                Self::Loose(socket, to) => {
                    let (length, from) = socket.recv_from(&mut answer)?;
                    if from != *to {
                        return Ok(format!("an answer of {from}, not of {to}"));
                    }
                    length
                }
            };
            match answer
                .get(..length)
                .and_then(|answer| answer.strip_prefix(&number))
            {
                Some(words) => return Ok(String::from_utf8_lossy(words).into_owned()),
                None if length == 0 => return Err(ErrorKind::UnexpectedEof.into()),
                None => {}
            }
        }
    }
}

/// A sender is told what its own stack's rules stop; whether it is refused or left waiting is what it hears next.
fn sent(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        result => result.map(drop),
    }
}

/// How a client fares that is not answered.
pub(super) fn failure(error: &io::Error) -> String {
    // An ended socket says that it has nobody to go to.
    if error.raw_os_error() == Some(libc::EDESTADDRREQ) {
        return "ended".to_owned();
    }
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused".to_owned(),
        ErrorKind::HostUnreachable => "unreachable".to_owned(),
        ErrorKind::ConnectionReset => "reset".to_owned(),
        ErrorKind::ConnectionAborted => "ended".to_owned(),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "silence".to_owned(),
        _ => error.to_string(),
    }
}

/// The loopback of a family.
pub(super) fn loopback(v4: bool) -> IpAddr {
    if v4 {
        std::net::Ipv4Addr::LOCALHOST.into()
    } else {
        std::net::Ipv6Addr::LOCALHOST.into()
    }
}
