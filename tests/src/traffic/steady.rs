//! Traffic that goes on while something else happens.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;

use super::{connect, connect_here, udp_socket};
use crate::netns::Namespace;

/// How it went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub exchanges: u64,
    /// What went wrong, in words.
    pub failures: Vec<String>,
}

/// Request and response, one after the other, until it is stopped.
#[derive(Debug)]
pub struct Steady {
    stop: Arc<AtomicBool>,
    exchanges: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

/// Between two exchanges: many enough for a gap of milliseconds to show, few enough to leave the CPU to others.
const PACE: Duration = Duration::from_millis(2);
/// After so many failures it gives up.
const PATIENCE: u32 = 3;

impl Steady {
    /// One TCP connection for all exchanges.
    pub fn tcp(from: &Namespace, to: SocketAddr) -> Result<Self> {
        let mut stream = connect(from, to)?;
        let mut number = 0u64;
        Ok(Self::repeat(move || {
            number += 1;
            stream.write_all(&number.to_be_bytes())?;
            let mut answer = [0; 8];
            stream.read_exact(&mut answer)?;
            anyhow::ensure!(answer == number.to_be_bytes(), "TCP: another answer");
            Ok(())
        }))
    }

    /// One UDP socket for all exchanges; a datagram that is lost is a failure.
    pub fn udp(from: &Namespace, to: SocketAddr) -> Result<Self> {
        let socket = udp_socket(from, to)?;
        let mut number = 0u64;
        Ok(Self::repeat(move || {
            number += 1;
            socket.send(&number.to_be_bytes())?;
            let mut answer = [0; 8];
            let length = socket.recv(&mut answer)?;
            anyhow::ensure!(
                length == 8 && answer == number.to_be_bytes(),
                "UDP: another answer"
            );
            Ok(())
        }))
    }

    /// A new TCP connection for each exchange, all by one thread that stays inside.
    pub fn connections(from: &Namespace, to: SocketAddr) -> Result<Self> {
        let mut outside = Some(from.duplicate()?);
        let mut number = 0u64;
        Ok(Self::repeat(move || {
            if let Some(from) = outside.take() {
                from.enter();
            }
            number += 1;
            let mut stream = connect_here(to)?;
            stream.write_all(&number.to_be_bytes())?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            anyhow::ensure!(answer == number.to_be_bytes(), "TCP: another answer");
            Ok(())
        }))
    }

    /// Repeats any exchange.
    pub fn repeat(mut exchange: impl FnMut() -> Result<()> + Send + 'static) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let exchanges = Arc::<AtomicU64>::default();
        let failures = Arc::<Mutex<Vec<String>>>::default();
        let (ended, count, failed) = (Arc::clone(&stop), Arc::clone(&exchanges), Arc::clone(&failures));
        let thread = thread::spawn(move || {
            let mut patience = PATIENCE;
            while !ended.load(Ordering::Relaxed) && patience > 0 {
                match exchange() {
                    Ok(()) => _ = count.fetch_add(1, Ordering::Relaxed),
                    Err(error) => {
                        let after = count.load(Ordering::Relaxed);
                        let failure = format!("after {after} exchanges: {error:#}");
                        failed
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(failure);
                        patience -= 1;
                    }
                }
                thread::sleep(PACE);
            }
        });
        Self {
            stop,
            exchanges,
            failures,
            thread: Some(thread),
        }
    }

    /// How many exchanges went well so far.
    pub fn exchanges(&self) -> u64 {
        self.exchanges.load(Ordering::Relaxed)
    }

    /// What went wrong so far, in words.
    pub fn failures(&self) -> Vec<String> {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until so many more exchanges went well, or the traffic has given up.
    pub fn wait_for(&self, more: u64) {
        let until = self.exchanges() + more;
        while self.exchanges() < until && self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            thread::sleep(PACE);
        }
    }

    pub fn stop(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        if !matches!(self.thread.take().map(JoinHandle::join), Some(Ok(()))) {
            failures.push("the traffic's thread panicked".to_owned());
        }
        failures.extend(self.failures());
        Tally {
            exchanges: self.exchanges(),
            failures,
        }
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
