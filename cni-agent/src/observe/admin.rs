//! The admin socket: what the command line asks of a running agent.
//!
//! Framed like the plugin's: a big-endian `u32` length and JSON with a protocol version. Only root is served, by the
//! socket's mode and again by the peer's credentials.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    sync::Arc,
};

use cni_plugin::{
    CniError, code,
    rpc::{Message, receive_async, send_async},
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{broadcast, mpsc, oneshot, watch},
};

use super::{
    event::{Filter, Record},
    ring::Ring,
};
use crate::{compile::service::SetName, model::NamespacedName, services::Description, status::Status};
use cni_ebpf::abi::Event;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    Status,
    /// Events, until the connection ends.
    Monitor {
        #[serde(default)]
        filter: Filter,
    },
    /// Services with their frontends and backends; all if the name is empty.
    Services {
        #[serde(default)]
        name: String,
    },
    #[serde(other)]
    Unknown,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Response {
    Status {
        status: Box<Status>,
    },
    Event {
        event: Box<Record>,
    },
    /// One of several, before [`Response::End`].
    Service {
        service: Box<Description>,
    },
    End,
    /// So many events came faster than they were read.
    Lost {
        events: u64,
    },
    Failed(CniError),
    #[serde(other)]
    Unknown,
}

/// What the socket serves from.
#[derive(Clone, Debug)]
pub struct Desk {
    pub status: watch::Receiver<Arc<Status>>,
    pub events: Arc<Ring>,
    pub services: mpsc::Sender<Inquiry>,
}

/// What somebody wants to know of Services. Whoever does not listen any more has no need of the reply.
#[derive(Debug)]
pub enum Inquiry {
    /// All about those with this name.
    Describe {
        name: String,
        reply: oneshot::Sender<Vec<Description>>,
    },
    /// Which Service's each of these numbers is, and which of its sets of endpoints.
    Owners {
        numbers: BTreeSet<u32>,
        reply: oneshot::Sender<BTreeMap<u32, (NamespacedName, SetName)>>,
    },
}

/// Binds the socket, for root alone. One that a dead agent left is replaced; where an agent answers it is an error.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let text = "another agent answers there; end it first";
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Made with no rights for others: there is no moment in which they could connect.
    let old = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(old);
    let listener = listener?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    if nix::unistd::geteuid().is_root() {
        chown(path, Some(0), Some(0))?;
    }
    Ok(listener)
}

/// Serves for ever.
pub async fn serve(listener: UnixListener, desk: Desk) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let desk = desk.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, desk).await {
                        tracing::debug!(%error, "an admin connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "an admin connection could not be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(mut stream: UnixStream, desk: Desk) -> Result<(), cni_plugin::rpc::CodecError> {
    let peer = stream.peer_cred()?;
    // The agent's own user is root, except in tests.
    if peer.uid() != 0 && peer.uid() != nix::unistd::geteuid().as_raw() {
        let refused = CniError::new(code::NOT_AVAILABLE, "only root may ask the agent");
        return send_async(&mut stream, &Message::new(Response::Failed(refused))).await;
    }
    while let Some(message) = receive_async::<Message<Request>>(&mut stream).await? {
        match message.accept() {
            Ok(Request::Monitor { filter }) => {
                return monitor(stream, desk.events.listen(), &filter).await;
            }
            Ok(Request::Status) => {
                let status = Box::new(desk.status.borrow().as_ref().clone());
                send_async(&mut stream, &Message::new(Response::Status { status })).await?;
            }
            Ok(Request::Services { name }) => {
                let (reply, answer) = oneshot::channel();
                // An agent that is ending says nothing, and nothing is what it says.
                let _ = desk.services.send(Inquiry::Describe { name, reply }).await;
                let services = answer.await.unwrap_or_default();
                for service in services.into_iter().flat_map(Description::parts) {
                    let service = Box::new(service);
                    send_async(&mut stream, &Message::new(Response::Service { service })).await?;
                }
                send_async(&mut stream, &Message::new(Response::End)).await?;
            }
            Ok(Request::Unknown) => {
                let error = CniError::new(code::PROTOCOL, "the agent does not know this operation")
                    .with_details("use the command line of the agent's release");
                send_async(&mut stream, &Message::new(Response::Failed(error))).await?;
            }
            Err(error) => send_async(&mut stream, &Message::new(Response::Failed(error))).await?,
        }
    }
    Ok(())
}

async fn monitor(
    mut stream: UnixStream,
    mut events: broadcast::Receiver<Event>,
    filter: &Filter,
) -> Result<(), cni_plugin::rpc::CodecError> {
    let (mut incoming, mut outgoing) = stream.split();
    let mut nothing = [0];
    loop {
        let response = tokio::select! {
            event = events.recv() => match event {
                Ok(event) => {
                    let event = Record::from(&event);
                    if !filter.wants(&event) {
                        continue;
                    }
                    Response::Event { event: Box::new(event) }
                }
                Err(broadcast::error::RecvError::Lagged(events)) => Response::Lost { events },
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            },
            // The command has gone: nobody would notice on a quiet node otherwise.
            _ = tokio::io::AsyncReadExt::read(&mut incoming, &mut nothing) => return Ok(()),
        };
        send_async(&mut outgoing, &Message::new(response)).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rel_14_the_socket_is_roots_and_never_taken_from_a_living_agent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/admin.sock");
        let first = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = bind(&path).unwrap_err().to_string();
        assert!(error.contains("another agent"), "{error}");
        drop(first);
        bind(&path).unwrap();
    }
}
