//! Ports that another proxy may have: what is written into maps does not depend on them, so they are waited for.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{mpsc, watch},
};

use crate::model::{Event, Source};

/// Between the first attempts; each pause is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// The ports that are waited for, each with what is wrong and what to do.
#[derive(Clone, Debug, Default)]
pub struct Ports(Arc<watch::Sender<BTreeMap<SocketAddr, String>>>);

impl Ports {
    /// Listens there as soon as that is possible. What stands in the way is said when it begins to, and when it is gone;
    /// meanwhile it is in the agent's status with the `remedy`.
    pub async fn listen(&self, address: SocketAddr, remedy: &str) -> TcpListener {
        let mut waits = None;
        let mut pause = FIRST_PAUSE;
        loop {
            match bind(address).await {
                Ok(listener) => {
                    if waits.is_some() {
                        tracing::info!(%address, "the port is free, and is listened on now");
                    }
                    return listener;
                }
                Err(error) => {
                    waits.get_or_insert_with(|| {
                        let problem = format!("nobody is answered on {address}: {error}; {remedy}");
                        tracing::warn!("{problem}");
                        Waits::begin(self, address, problem)
                    });
                    tokio::time::sleep(pause).await;
                    pause = (2 * pause).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Puts them into the agent's status, for as long as there is one.
    pub async fn tell(self, events: mpsc::Sender<Event>) {
        let mut ports = self.0.subscribe();
        ports.mark_unchanged();
        while ports.changed().await.is_ok() {
            let problems = ports.borrow_and_update().values().cloned().collect();
            if events
                .send(Event::Problems(Source::Ports, problems))
                .await
                .is_err()
            {
                return;
            }
        }
    }
}

/// `[::]` is every address of both families, whatever `net.ipv6.bindv6only` says, and those of IPv4 where the kernel has no
/// IPv6: as Go has it, in which others that listen on these ports are written.
async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if address.is_ipv4() || !address.ip().is_unspecified() {
        return TcpListener::bind(address).await;
    }
    let socket = match TcpSocket::new_v6() {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            return TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await;
        }
        socket => socket?,
    };
    setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Also of one that is not wanted any more.
struct Waits<'a> {
    ports: &'a Ports,
    address: SocketAddr,
}

impl<'a> Waits<'a> {
    fn begin(ports: &'a Ports, address: SocketAddr, problem: String) -> Self {
        ports.0.send_modify(|all| drop(all.insert(address, problem)));
        Self { ports, address }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.ports.0.send_modify(|all| drop(all.remove(&self.address)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the agent is told next.
    async fn told(heard: &mut mpsc::Receiver<Event>) -> Vec<String> {
        match heard.recv().await {
            Some(Event::Problems(Source::Ports, problems)) => problems,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_port_that_another_has_is_a_problem_until_it_is_free() {
        let ports = Ports::default();
        let (events, mut heard) = mpsc::channel(8);
        tokio::spawn(ports.clone().tell(events));
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = other.local_addr().unwrap();
        let waiting = ports.clone();
        let waiting = tokio::spawn(async move { waiting.listen(address, "end the other one").await });
        let problems = told(&mut heard).await;
        assert!(
            problems.len() == 1
                && problems[0].contains(&address.to_string())
                && problems[0].ends_with("; end the other one"),
            "{problems:?}"
        );
        drop(other);
        waiting.await.unwrap();
        assert_eq!(told(&mut heard).await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn the_unspecified_address_of_ipv6_answers_both_families() {
        let listener = bind("[::]:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for ip in ["127.0.0.1", "::1"] {
            let at = SocketAddr::new(ip.parse().unwrap(), port);
            tokio::net::TcpStream::connect(at).await.expect(ip);
        }
        let both = bind(SocketAddr::from(([0; 4], port))).await;
        assert_eq!(both.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn a_port_that_is_not_wanted_any_more_is_no_problem() {
        let ports = Ports::default();
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = other.local_addr().unwrap();
        let waiting = ports.listen(address, "end the other one");
        assert!(
            tokio::time::timeout(Duration::from_millis(20), waiting)
                .await
                .is_err()
        );
        assert_eq!(ports.0.borrow().len(), 0);
    }
}
