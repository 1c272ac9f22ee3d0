//! Load over real sockets between two namespaces, from threads bound to processors.

mod datagram;
mod stream;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::netns::Namespace;
pub use stream::{connect_by, connected_and_reset, requests_by};

/// Longer than anything but a lost packet takes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who talks to whom.
#[derive(Debug)]
pub struct Ends {
    pub client: Namespace,
    pub server: Namespace,
    /// The server's address.
    pub ip: IpAddr,
}

/// How many processors client and server have together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpus {
    One,
    Two,
}

impl Cpus {
    /// Those that this process has enough processors for.
    pub fn possible() -> &'static [Self] {
        match allowed().map_or(1, |cpus| cpus.len()) {
            0 | 1 => &[Self::One],
            _ => &[Self::One, Self::Two],
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::One => "one CPU",
            Self::Two => "two CPUs",
        }
    }

    fn bind_client(self) -> Result<()> {
        bind(0)
    }

    fn bind_server(self) -> Result<()> {
        bind(match self {
            Self::One => 0,
            Self::Two => 1,
        })
    }
}

/// The processors that the process started with; threads that were bound do not count.
pub(super) fn allowed() -> Result<Vec<usize>> {
    static CPUS: std::sync::OnceLock<Vec<usize>> = std::sync::OnceLock::new();
    if let Some(cpus) = CPUS.get() {
        return Ok(cpus.clone());
    }
    let main = i32::try_from(std::process::id())?;
    let set = sched_getaffinity(Pid::from_raw(main)).context("the processors of this process")?;
    let cpus = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false));
    Ok(CPUS.get_or_init(|| cpus.collect()).clone())
}

/// The `number`th processor of this process.
fn processor(number: usize) -> Result<CpuSet> {
    let cpus = allowed()?;
    let cpu = cpus
        .get(number)
        .with_context(|| format!("no processor {number}"))?;
    let mut set = CpuSet::new();
    set.set(*cpu)?;
    Ok(set)
}

/// Binds the calling thread to the `number`th processor of this process.
pub fn bind(number: usize) -> Result<()> {
    sched_setaffinity(Pid::from_raw(0), &processor(number)?)
        .with_context(|| format!("bind to processor {number}"))
}

/// Two machines on this one, as far as it has processors for both: they do not take each other's time.
#[derive(Clone, Copy, Debug)]
pub enum Machine {
    ControlPlane,
    Node,
}

impl Machine {
    /// Its processor among those of this process.
    fn number(self) -> Result<usize> {
        Ok(match self {
            Self::ControlPlane => 0,
            Self::Node => allowed()?.len().saturating_sub(1),
        })
    }

    /// Makes the calling thread part of the machine, and those that it will start.
    pub fn join(self) -> Result<()> {
        bind(self.number()?)
    }

    /// Makes a process part of the machine.
    pub fn take(self, process: u32) -> Result<()> {
        let set = processor(self.number()?)?;
        for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
            let number = thread?.file_name().to_string_lossy().parse()?;
            // One that has ended meanwhile needs none.
            let _ = sched_setaffinity(Pid::from_raw(number), &set);
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// One byte there and one back, on one connection.
    RequestResponse,
    /// As many bytes as go.
    Stream,
    /// Connections, one after the other; the server resets each as soon as it has it.
    Connect,
    /// Datagrams of 18 bytes (the smallest frame). On one CPU a single thread sends and receives by turns, so that no change
    /// of threads is measured; on two the sender is never more than a window ahead, so that none is lost.
    SmallPackets,
}

impl Load {
    pub const ALL: [Self; 4] = [
        Self::RequestResponse,
        Self::Stream,
        Self::Connect,
        Self::SmallPackets,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::RequestResponse => "TCP request/response",
            Self::Stream => "TCP stream",
            Self::Connect => "TCP connect rate",
            Self::SmallPackets => "small UDP packets",
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::Stream => "Gbit/s",
            _ => "1/s",
        }
    }

    /// Loads the way between the ends for `time`. What came through in a second.
    pub fn run(self, ends: &Ends, cpus: Cpus, time: Duration) -> Result<f64> {
        match self {
            Self::RequestResponse => stream::request_response(ends, cpus, time),
            Self::Stream => stream::bulk(ends, cpus, time),
            Self::Connect => stream::connect(ends, cpus, time),
            Self::SmallPackets => datagram::small(ends, cpus, time),
        }
        .with_context(|| {
            let Ends { client, server, .. } = ends;
            format!(
                "{} on {} from {} to {}",
                self.name(),
                cpus.name(),
                client.name(),
                server.name()
            )
        })
    }
}

/// Any port of the server's address.
fn server_address(ends: &Ends) -> SocketAddr {
    SocketAddr::new(ends.ip, 0)
}

/// The answer of a thread; a panic there is a panic here.
fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
