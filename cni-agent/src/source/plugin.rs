//! The CNI socket: one task a connection, one question at a time.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

use cni_plugin::{
    CniError, code,
    rpc::{
        Allocate, Check, Gc, Message, Program, Release, Request, Response, Status, receive_async, send_async,
    },
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    task::JoinSet,
};

/// What a connection asks of the agent.
#[derive(Debug)]
pub struct Question {
    pub request: Ask,
    pub answer: oneshot::Sender<Response>,
}

#[derive(Debug)]
pub enum Ask {
    Allocate(Box<Allocate>),
    Program(Program),
    Release(Release),
    Check(Check),
    Status(Status),
    Gc(Gc),
    /// The plugin is gone, and had not finished this endpoint.
    Abandon {
        endpoint_id: u32,
    },
}

/// Binds the socket: root's alone, from its first moment.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Two agents on one node would undo each other's work.
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another agent answers there; end it first",
        ));
    }
    // Made aside and renamed: at no moment is there a socket that others may open, and nobody who connects meanwhile
    // finds nothing.
    let aside = path.with_extension(format!("{}.tmp", std::process::id()));
    remove(&aside)?;
    let listener = UnixListener::bind(&aside)?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o600))?;
    fs::rename(&aside, path)?;
    Ok(listener)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Serves connections until the agent is gone.
pub async fn serve(listener: UnixListener, questions: mpsc::Sender<Question>) {
    let mut conversations = JoinSet::new();
    while !questions.is_closed() {
        while conversations.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                conversations.spawn(converse(stream, questions.clone()));
            }
            Err(error) => {
                // Out of descriptors, as a rule: others are about to be closed.
                tracing::warn!(%error, "the CNI socket could not accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

/// The mode of the socket keeps others out; this is for a descriptor that was handed on.
fn is_trusted(stream: &UnixStream) -> bool {
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw())
}

async fn converse(mut stream: UnixStream, questions: mpsc::Sender<Question>) {
    if !is_trusted(&stream) {
        tracing::warn!("a connection to the CNI socket was refused: its peer is not root");
        return;
    }
    let mut pending = None;
    loop {
        let message: Message<Request> = match receive_async(&mut stream).await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "a connection to the CNI socket broke");
                break;
            }
        };
        let (response, ends) = match message.accept() {
            Err(error) => (Response::Failed(error), false),
            Ok(request) => {
                if matches!(request, Request::Finish(_)) {
                    // The runtime has its result, whether or not the plugin waits for this answer.
                    pending = None;
                }
                let ends = match &request {
                    Request::Program(program) => !program.finishes,
                    request => matches!(request, Request::Release(_)),
                };
                (carry_out(&questions, request).await, ends)
            }
        };
        if let Response::Allocated(allocated) = &response {
            pending = Some(allocated.endpoint_id);
        }
        let done = ends && response == Response::Done;
        if let Err(error) = send_async(&mut stream, &Message::new(response)).await {
            tracing::debug!(%error, "the plugin did not wait for its answer");
            break;
        }
        if done {
            pending = None;
        }
    }
    if let Some(endpoint_id) = pending {
        tracing::info!(
            endpoint_id,
            "the plugin ended before its endpoint was finished; undoing"
        );
        ask(&questions, Ask::Abandon { endpoint_id }).await;
    }
}

async fn carry_out(questions: &mpsc::Sender<Question>, request: Request) -> Response {
    let request = match request {
        Request::Allocate(request) => Ask::Allocate(request),
        Request::Program(request) => Ask::Program(request),
        Request::Release(request) => Ask::Release(request),
        Request::Check(request) => Ask::Check(request),
        Request::Status(request) => Ask::Status(request),
        Request::Gc(request) => Ask::Gc(request),
        Request::Finish(_) => return Response::Done,
        Request::Unknown => return Response::unknown_operation(),
    };
    ask(questions, request).await
}

async fn ask(questions: &mpsc::Sender<Question>, request: Ask) -> Response {
    let (answer, response) = oneshot::channel();
    let stopping = || {
        Response::Failed(CniError::new(
            code::TRY_AGAIN_LATER,
            "the Millrace agent is stopping",
        ))
    };
    if questions.send(Question { request, answer }).await.is_err() {
        return stopping();
    }
    response.await.unwrap_or_else(|_| stopping())
}
