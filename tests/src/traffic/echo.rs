//! Servers that send back what they get, and remember who asked.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{crew::Crew, netns::Namespace};

const LOOK: Duration = Duration::from_millis(20);

/// Who asked, and how often somebody did.
#[derive(Debug, Default)]
struct Heard {
    peers: BTreeSet<SocketAddr>,
    times: usize,
}

/// An echo server; ends when it is dropped.
#[derive(Debug)]
pub struct Echo {
    pub address: SocketAddr,
    heard: Arc<Mutex<Heard>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub fn tcp(inside: &Namespace, ip: IpAddr, port: u16) -> Result<Self> {
        let listener = inside.run(|| listen(SocketAddr::new(ip, port)));
        let listener = listener.with_context(|| format!("listen on {ip} in {}", inside.name()))?;
        let address = listener.local_addr()?;
        Ok(Self::serve(address, move |peers, stop| {
            let mut crew = Crew::default();
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        note(&peers, peer);
                        let stop = Arc::clone(&stop);
                        crew.spawn(move || echo_stream(stream.into(), &stop));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        }))
    }

    /// One association after the other; fails where the kernel has no SCTP.
    pub fn sctp(inside: &Namespace, ip: IpAddr, port: u16) -> Result<Self> {
        let listener = super::sctp::listen(inside, SocketAddr::new(ip, port))?;
        let address = listener.local_addr()?.as_socket().context("an IP address")?;
        listener.set_nonblocking(true)?;
        Ok(Self::serve(address, move |peers, stop| {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        peer.as_socket().iter().for_each(|peer| note(&peers, *peer));
                        echo_stream(stream, &stop);
                    }
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        }))
    }

    pub fn udp(inside: &Namespace, ip: IpAddr, port: u16) -> Result<Self> {
        let socket = inside.run(|| UdpSocket::bind(SocketAddr::new(ip, port)));
        let socket = socket.with_context(|| format!("bind {ip} in {}", inside.name()))?;
        socket.set_read_timeout(Some(LOOK))?;
        let address = socket.local_addr()?;
        Ok(Self::serve(address, move |peers, stop| {
            let mut buffer = vec![0; 65_536];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                    note(&peers, peer);
                    let _ = socket.send_to(&buffer[..length], peer);
                }
            }
        }))
    }

    fn serve(
        address: SocketAddr,
        work: impl FnOnce(Arc<Mutex<Heard>>, Arc<AtomicBool>) + Send + 'static,
    ) -> Self {
        let heard = Arc::default();
        let stop = Arc::<AtomicBool>::default();
        let (seen, ended) = (Arc::clone(&heard), Arc::clone(&stop));
        let thread = Some(thread::spawn(move || work(seen, ended)));
        Self {
            address,
            heard,
            stop,
            thread,
        }
    }

    /// Who asked, as it arrived here.
    pub fn peers(&self) -> BTreeSet<SocketAddr> {
        let heard = self.heard.lock();
        let heard = heard.unwrap_or_else(std::sync::PoisonError::into_inner);
        heard.peers.clone()
    }

    /// How many connections or datagrams there were, before they were answered.
    pub fn times(&self) -> usize {
        let heard = self.heard.lock();
        heard.unwrap_or_else(std::sync::PoisonError::into_inner).times
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn note(heard: &Mutex<Heard>, peer: SocketAddr) {
    let mut heard = heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    heard.peers.insert(peer);
    heard.times += 1;
}

/// The standard library's backlog of 128 is too small for a test that opens many connections.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    // It applies to `accept` too: who serves many addresses sleeps on all of them.
    socket.set_read_timeout(Some(LOOK))?;
    Ok(socket.into())
}

fn echo_stream(mut stream: Socket, stop: &AtomicBool) {
    let _ = stream.set_read_timeout(Some(LOOK));
    // Of TCP only.
    let _ = stream.set_tcp_nodelay(true);
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}
