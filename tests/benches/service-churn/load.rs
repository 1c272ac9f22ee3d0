//! Clients of the Services, and what they notice.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    ops::RangeInclusive,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use cni_tests::lab::{Lab, Pod};
use cni_tests::netns::Namespace;
use cni_tests::traffic::any;

use super::deployment::{Deployment, PORT};

/// What comes later has been lost.
const LIMIT: Duration = Duration::from_secs(2);
/// Between two exchanges of a client.
const PACE: Duration = Duration::from_millis(4);
/// Of a connection through the Service whose pods are exchanged.
const SHORT: u64 = 4;
/// What the kernel gives to sockets that do not choose.
const PORTS: RangeInclusive<u16> = 32_768..=60_999;
/// For all clients, so that none comes back to one within the minutes for which a flow is remembered.
static NEXT_PORT: AtomicU16 = AtomicU16::new(*PORTS.start());
/// Descriptions of what went wrong, for a reader.
const WORDS: usize = 3;

#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) connections: u64,
    pub(crate) exchanges: u64,
    /// That were not made, or ended before their last exchange, otherwise than by a reset.
    pub(crate) failed: u64,
    pub(crate) resets: u64,
    /// By the clients' kernel: a segment, or its acknowledgement, did not arrive in time.
    pub(crate) retransmitted: u64,
    /// Datagrams without an answer.
    pub(crate) lost: u64,
    pub(crate) words: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.connections += other.connections;
        self.exchanges += other.exchanges;
        self.failed += other.failed;
        self.resets += other.resets;
        self.retransmitted += other.retransmitted;
        self.lost += other.lost;
        self.words.extend(other.words);
    }

    fn fault(&mut self, to: SocketAddr, error: &io::Error) {
        match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused | ErrorKind::BrokenPipe => {
                self.resets += 1
            }
            _ => self.failed += 1,
        }
        self.say(format!("{to}: {error}"));
    }

    fn say(&mut self, words: String) {
        if self.words.len() < WORDS {
            self.words.push(words);
        }
    }
}

/// Clients at work.
pub(crate) struct Load {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Tally>>,
    client: Pod,
}

impl Load {
    /// Connections that last a moment to the one, that stay to the other: from a pod, from a process of the node (whose sockets
    /// are connected to endpoints), and from outside.
    pub(crate) fn begin(lab: &Lab, rolling: &Deployment<'_>, staying: &Deployment<'_>) -> Result<Self> {
        let node = lab.nodes.first().context("a node")?;
        let client = node.add_pod("client")?;
        let ended = Arc::<AtomicBool>::default();
        let mut threads = Vec::new();
        for (service, exchanges) in [(rolling, SHORT), (staying, u64::MAX)] {
            let vip = SocketAddr::new(service.address, PORT);
            let node_port = SocketAddr::new(node.address(true), service.node_port);
            for (from, to) in [(&client.namespace, vip), (&lab.outside, node_port)] {
                threads.extend(clients(from, to, exchanges, &ended)?);
            }
            // A thread keeps the cgroup in which it began.
            let of_node = node.with_sockets(|| clients(&node.namespace, vip, exchanges, &ended))?;
            threads.extend(of_node);
        }
        Ok(Self {
            ended,
            threads,
            client,
        })
    }

    pub(crate) fn end(self, lab: &Lab) -> Result<Tally> {
        self.ended.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for thread in self.threads {
            match thread.join() {
                Ok(tally) => all.add(tally),
                Err(_) => all.say("a client panicked".to_owned()),
            }
        }
        lab.nodes.first().context("a node")?.delete_pod(self.client)?;
        Ok(all)
    }
}

/// One of TCP and one of UDP.
fn clients(
    from: &Namespace,
    to: SocketAddr,
    exchanges: u64,
    ended: &Arc<AtomicBool>,
) -> Result<Vec<JoinHandle<Tally>>> {
    let kinds: [Kind; 2] = [Client::stream, Client::datagrams];
    let start = |kind| {
        let (from, ended) = (from.duplicate()?, Arc::clone(ended));
        let client = Client {
            from,
            to,
            exchanges,
            ended,
        };
        Ok(thread::spawn(move || client.work(kind)))
    };
    kinds.into_iter().map(start).collect()
}

struct Client {
    from: Namespace,
    to: SocketAddr,
    /// Of each connection.
    exchanges: u64,
    ended: Arc<AtomicBool>,
}

type Kind = fn(&Client, &mut Tally) -> io::Result<()>;

impl Client {
    fn work(&self, connection: Kind) -> Tally {
        let mut tally = Tally::default();
        while !self.is_ended() {
            tally.connections += 1;
            if let Err(error) = connection(self, &mut tally) {
                tally.fault(self.to, &error);
                thread::sleep(PACE);
            }
        }
        tally
    }

    fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// What is sent, one after the other.
    fn numbers(&self) -> impl Iterator<Item = [u8; 8]> {
        let numbers = (0..self.exchanges).take_while(|_| !self.is_ended());
        numbers.map(u64::to_be_bytes)
    }

    fn stream(&self, tally: &mut Tally) -> io::Result<()> {
        let mut stream = self.from.run(|| TcpStream::connect_timeout(&self.to, LIMIT))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let result = self.numbers().try_for_each(|number| {
            stream.write_all(&number)?;
            let mut answer = [0; 8];
            stream.read_exact(&mut answer)?;
            if answer != number {
                return Err(io::Error::other("another answer"));
            }
            tally.exchanges += 1;
            thread::sleep(PACE);
            Ok(())
        });
        let again = retransmitted(&stream)?;
        if again > 0 {
            tally.retransmitted += u64::from(again);
            tally.say(format!("{}: {again} segments sent again", self.to));
        }
        result
    }

    /// A socket from a port that was not used for long: datagrams from the same one go on to the endpoint that it was given,
    /// also when that is about to end.
    fn fresh_socket(&self) -> io::Result<UdpSocket> {
        loop {
            let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
            if !PORTS.contains(&port) {
                NEXT_PORT.store(*PORTS.start(), Ordering::Relaxed);
                continue;
            }
            match UdpSocket::bind((any(true).ip(), port)) {
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                result => return result,
            }
        }
    }

    fn datagrams(&self, tally: &mut Tally) -> io::Result<()> {
        let socket = self.from.run(|| self.fresh_socket())?;
        socket.connect(self.to)?;
        socket.set_read_timeout(Some(LIMIT))?;
        for number in self.numbers() {
            socket.send(&number)?;
            let mut answer = [0; 8];
            match socket.recv(&mut answer) {
                Ok(_) if answer == number => tally.exchanges += 1,
                Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(error);
                }
                // What comes after that belongs to nobody.
                got => {
                    tally.lost += 1;
                    let (number, from) = (u64::from_be_bytes(number), socket.local_addr()?);
                    tally.say(format!("{from} to {}: datagram {number} got {got:?}", self.to));
                    return Ok(());
                }
            }
            thread::sleep(PACE);
        }
        Ok(())
    }
}

/// Segments of a connection that were sent more than once.
fn retransmitted(stream: &TcpStream) -> io::Result<u32> {
    // SAFETY: all fields are numbers, for which zeros are values.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `info`, which is borrowed for the call.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(info.tcpi_total_retrans)
    } else {
        Err(io::Error::last_os_error())
    }
}
