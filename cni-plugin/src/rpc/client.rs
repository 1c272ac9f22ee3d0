//! The plugin's side: a blocking connection with one deadline for all that happens on it.

use super::{
    Allocate, Allocated, Check, Checked, CodecError, Collected, Finish, Gc, Message, Program, Release,
    Request, Response, Status, receive, send,
};
use crate::{CniError, code};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt::SendTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::{
    io::{self, Read, Write},
    os::fd::AsRawFd,
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

/// A connection to the agent. Dropping it before `finish` makes the agent undo everything.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    deadline: Instant,
}

impl Client {
    /// Connects, and gives everything on this connection until `timeout` from now.
    ///
    /// The error has code 11: without its agent the node cannot serve, and a later attempt may find it running.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, CniError> {
        let deadline = Instant::now() + timeout;
        let stream = open(path, timeout).map_err(|error| {
            CniError::new(
                code::TRY_AGAIN_LATER,
                format!("the Millrace agent cannot be reached at {}", path.display()),
            )
            .with_details(format!("{error}; is the agent running on this node?"))
        })?;
        Ok(Self { stream, deadline })
    }

    pub fn allocate(&mut self, request: Allocate) -> Result<Allocated, CniError> {
        match self.ask(Request::Allocate(Box::new(request)))? {
            Response::Allocated(allocated) => Ok(*allocated),
            other => Err(unexpected("allocate", &other)),
        }
    }

    pub fn program(&mut self, request: Program) -> Result<(), CniError> {
        self.done("program", Request::Program(request))
    }

    pub fn finish(&mut self, request: Finish) -> Result<(), CniError> {
        self.done("finish", Request::Finish(request))
    }

    pub fn release(&mut self, request: Release) -> Result<(), CniError> {
        self.done("release", Request::Release(request))
    }

    pub fn status(&mut self, request: Status) -> Result<(), CniError> {
        self.done("status", Request::Status(request))
    }

    pub fn check(&mut self, request: Check) -> Result<Checked, CniError> {
        match self.ask(Request::Check(request))? {
            Response::Checked(checked) => Ok(*checked),
            other => Err(unexpected("check", &other)),
        }
    }

    pub fn gc(&mut self, request: Gc) -> Result<Collected, CniError> {
        match self.ask(Request::Gc(request))? {
            Response::Collected(collected) => Ok(collected),
            other => Err(unexpected("gc", &other)),
        }
    }

    fn done(&mut self, operation: &str, request: Request) -> Result<(), CniError> {
        match self.ask(request)? {
            Response::Done => Ok(()),
            other => Err(unexpected(operation, &other)),
        }
    }

    fn ask(&mut self, request: Request) -> Result<Response, CniError> {
        let mut stream = Timed {
            stream: &self.stream,
            deadline: self.deadline,
        };
        send(&mut stream, &Message::new(request)).map_err(broken)?;
        let message: Message<Response> = receive(&mut stream).map_err(broken)?.ok_or_else(|| {
            CniError::new(
                code::TRY_AGAIN_LATER,
                "the Millrace agent closed the connection without an answer",
            )
            .with_details("it may be restarting")
        })?;
        match message.accept()? {
            Response::Failed(error) => Err(error),
            response => Ok(response),
        }
    }
}

/// Connecting blocks while the agent's backlog is full, so the time limit must stand on the socket before it.
fn open(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let milliseconds = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
    setsockopt(&socket, SendTimeout, &TimeVal::milliseconds(milliseconds))?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

fn broken(error: CodecError) -> CniError {
    match error {
        CodecError::Io(error) if is_timeout(&error) => {
            CniError::new(code::TRY_AGAIN_LATER, "the Millrace agent did not answer in time")
        }
        CodecError::Io(error) => CniError::new(
            code::TRY_AGAIN_LATER,
            "the connection to the Millrace agent broke",
        )
        .with_details(error),
        error => {
            CniError::new(code::PROTOCOL, "the Millrace agent could not be understood").with_details(error)
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

fn unexpected(operation: &str, response: &Response) -> CniError {
    CniError::new(
        code::PROTOCOL,
        format!("the Millrace agent answered {operation} with something else"),
    )
    .with_details(format!("{response:?}"))
}

/// A stream whose reads and writes share one deadline; a socket's own limits would start anew with each of them.
struct Timed<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Duration> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(left),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
