//! One contender's client, which dials, and servers, which note when they were reached.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use cni_tests::bench::cluster::{Editor, MILLRACE, Place};
use cni_tests::bench::load::Machine;
use cni_tests::netns::Namespace;
use cni_tests::wire::Tap;
use nix::sys::prctl::set_timerslack;
use socket2::{Domain, SockRef, Socket, Type};

/// For a peer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between connections: who dials without rest takes the agent's processor from it, and whoever has rules to walk is flooded
/// with flows that it must remember. A peer's is longer, and nothing beside what it takes.
const PAUSE: Duration = Duration::from_micros(50);
const PAUSE_OF_PEER: Duration = Duration::from_millis(1);
/// Nanoseconds by which a thread may sleep longer than it asked for.
const SLACK: u64 = 1;
const API: u16 = 6443;
/// An event of a slice is larger than what keeps a connection alive, also as protobuf.
const EVENT: usize = 200;

/// Nanoseconds by the clock on the wall of the first connection since it was last set to 0.
type First = Arc<AtomicU64>;

pub(crate) struct Dial<'a> {
    place: &'a Place,
    tap: Tap,
    firsts: Vec<First>,
    current: usize,
    stop: Arc<AtomicBool>,
    dialling: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

impl<'a> Dial<'a> {
    pub(crate) fn new(place: &'a Place, host: &Namespace) -> Result<Self> {
        let tap = Tap::open(host, "eth0")?;
        // From now on frames bear times.
        tap.arrived()?;
        let mut dial = Self {
            place,
            tap,
            firsts: Vec::new(),
            current: 0,
            stop: Arc::default(),
            dialling: Arc::default(),
            threads: Vec::new(),
        };
        for server in &place.servers {
            let listener = server
                .inside
                .run(|| TcpListener::bind((server.ip, Place::port())))?;
            SockRef::from(&listener).set_read_timeout(Some(Duration::from_millis(100)))?;
            let first = First::default();
            dial.firsts.push(Arc::clone(&first));
            let stop = Arc::clone(&dial.stop);
            dial.threads.push(thread::spawn(move || {
                let _ = Machine::Node.join();
                accept(&listener, &first, &stop);
            }));
        }
        let client = place.client.duplicate()?;
        let (stop, dialling, to) = (
            Arc::clone(&dial.stop),
            Arc::clone(&dial.dialling),
            place.dialled(),
        );
        let pause = if place.name == MILLRACE {
            PAUSE
        } else {
            PAUSE_OF_PEER
        };
        dial.threads.push(thread::spawn(move || {
            let _ = (Machine::Node.join(), set_timerslack(SLACK));
            // netfilter remembers for ten seconds where a port's last connection went, and sends the next one there too.
            let mut ports = (1024..=u16::MAX).cycle();
            client.run(|| {
                while !stop.load(Ordering::Relaxed) {
                    if dialling.load(Ordering::Relaxed) {
                        let _ = ports.next().map(|port| connect(to, port));
                        thread::sleep(pause);
                    } else {
                        thread::sleep(Duration::from_millis(1));
                    }
                }
            });
        }));
        Ok(dial)
    }

    pub(crate) fn name(&self) -> &'static str {
        self.place.name
    }

    /// Changes the slice to the other server. The time from the event to the first connection there.
    pub(crate) fn change(&mut self, editor: &Editor) -> Result<Duration> {
        self.dialling.store(true, Ordering::Relaxed);
        let changed = self.changed(editor);
        self.dialling.store(false, Ordering::Relaxed);
        changed
    }

    fn changed(&mut self, editor: &Editor) -> Result<Duration> {
        self.reached(self.current).context("before the change")?;
        while self.tap.next(Duration::from_millis(2))?.is_some() {}
        let next = (self.current + 1) % self.firsts.len();
        self.firsts[next].store(0, Ordering::SeqCst);
        let (path, change) = self.place.change(next)?;
        editor.patch(&path, &change)?;
        let event = self.event()?;
        let first = loop {
            let first = self.firsts[next].load(Ordering::SeqCst);
            if first != 0 {
                break first;
            }
            ensure!(
                event.elapsed()? < PATIENCE,
                "nobody reached the new endpoint through {}",
                self.name()
            );
            thread::sleep(Duration::from_micros(200));
        };
        self.current = next;
        let took = first.checked_sub(nanoseconds(event));
        let took = took.context("a connection to the new endpoint came before the event")?;
        Ok(Duration::from_nanos(took))
    }

    /// Waits until somebody is connected to this server.
    fn reached(&self, server: usize) -> Result<()> {
        self.firsts[server].store(0, Ordering::SeqCst);
        let begin = Instant::now();
        while self.firsts[server].load(Ordering::SeqCst) == 0 {
            ensure!(
                begin.elapsed() < PATIENCE,
                "nobody reaches the endpoint through {}",
                self.name()
            );
            thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// When the bytes of the event came.
    fn event(&self) -> Result<SystemTime> {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if let Some((frame, arrived)) = self.tap.next(Duration::from_millis(100))?
                && from_api_server(&frame)
            {
                return Ok(arrived);
            }
        }
        bail!("no event came to the node")
    }
}

impl Drop for Dial<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn from_api_server(frame: &[u8]) -> bool {
    let ipv4 = frame.get(12..14) == Some(&[0x08, 0x00]);
    let tcp = frame.get(23) == Some(&6);
    ipv4 && tcp && frame.get(34..36) == Some(&API.to_be_bytes()) && frame.len() > EVENT
}

/// Until it is told to stop.
fn accept(listener: &TcpListener, first: &AtomicU64, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if let Ok((stream, _)) = listener.accept() {
            let now = nanoseconds(SystemTime::now());
            let _ = first.compare_exchange(0, now, Ordering::SeqCst, Ordering::SeqCst);
            // A reset leaves no TIME_WAIT.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// One connection, which is given up soon: what it was sent to may be gone.
fn connect(to: SocketAddr, port: u16) -> std::io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.connect_timeout(&to.into(), Duration::from_millis(20))
}
