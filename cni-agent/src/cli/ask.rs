//! Asking a running agent.

use std::{io, os::unix::net::UnixStream, path::Path, time::Duration};

use cni_plugin::rpc::{Message, receive, send};

use super::Failure;
use crate::{
    observe::admin::{Request, Response},
    status::Status,
};

/// A conversation with the agent.
pub(crate) struct Conversation(UnixStream);

impl Conversation {
    pub(crate) fn begin(socket: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(socket).map_err(|error| {
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => "run this as root",
                _ => "no agent runs on this node, or it has another socket: see its log, or name it with --admin-socket",
            };
            format!("connect to {}: {error}; {remedy}", socket.display())
        })?;
        Ok(Self(stream))
    }

    pub(crate) fn ask(&mut self, request: Request) -> Result<(), Failure> {
        Ok(send(&mut self.0, &Message::new(request))?)
    }

    /// The next answer; `None` when the agent has ended.
    pub(crate) fn answer(&mut self) -> Result<Option<Response>, Failure> {
        let Some(message) = receive::<Message<Response>>(&mut self.0)? else {
            return Ok(None);
        };
        match message.accept()? {
            Response::Failed(error) => Err(error.into()),
            response => Ok(Some(response)),
        }
    }
}

/// What the agent says of itself.
pub(crate) fn status(socket: &Path) -> Result<Status, Failure> {
    let mut conversation = Conversation::begin(socket)?;
    conversation.0.set_read_timeout(Some(Duration::from_secs(5)))?;
    conversation.ask(Request::Status)?;
    match conversation.answer()? {
        Some(Response::Status { status }) => Ok(*status),
        Some(_) => Err("the agent answered something else; use the command line of its release".into()),
        None => Err("the agent ended the connection; see its log".into()),
    }
}
