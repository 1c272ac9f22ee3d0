//! A conversation with rtnetlink: one request, all of its answers.
//!
//! Blocking on purpose. The kernel answers rtnetlink in the system call itself, so there is nothing to wait for, and
//! the command line can use the same code without a runtime.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// What a request may do to what exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Fail if there is none (set and delete).
    Change,
    /// Fail if there is one.
    Create,
    /// Create or replace.
    Replace,
    /// Create, or change in place without the strict checks of a replacement.
    Ensure,
}

/// An rtnetlink socket of the network namespace in which it was opened.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// A dump that the kernel calls inconsistent is begun anew this many times.
const DUMP_ATTEMPTS: usize = 8;

impl Netlink {
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Dumps are filtered by the kernel where it can; without this option it ignores what is asked for.
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Changes something.
    pub fn change(&mut self, message: RouteNetlinkMessage, mode: Mode) -> io::Result<()> {
        let flags = match mode {
            Mode::Change => 0,
            Mode::Create => NLM_F_CREATE | NLM_F_EXCL,
            Mode::Replace => NLM_F_CREATE | NLM_F_REPLACE,
            Mode::Ensure => NLM_F_CREATE,
        };
        self.exchange(message, NLM_F_ACK | flags).map(drop)
    }

    /// Asks for one object. `None` if there is no such thing.
    pub fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        match self.exchange(message, NLM_F_ACK) {
            Ok((answers, _)) => Ok(answers.into_iter().next()),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENODEV | libc::ENOENT | libc::ESRCH)
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Asks for all objects of a kind.
    pub fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut last = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            let (answers, interrupted) = self.exchange(message.clone(), NLM_F_DUMP)?;
            if !interrupted {
                return Ok(answers);
            }
            last = answers;
        }
        // Everything changes all the time: the caller looks again anyway.
        Ok(last)
    }

    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut buffer = vec![0; request.buffer_len()];
        request.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;
        self.answers()
    }

    fn answers(&mut self) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        let (mut answers, mut interrupted) = (Vec::new(), false);
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for message in messages(&datagram) {
                let message = message?;
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok((answers, interrupted)),
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok((answers, interrupted)),
                        Some(code) => return Err(io::Error::from_raw_os_error(code.get().saturating_abs())),
                    },
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
        }
    }
}

/// The messages of a datagram. One that cannot be parsed (a newer kernel's attribute) is an error of its own; the
/// others are unaffected.
pub(super) fn messages(
    datagram: &[u8],
) -> impl Iterator<Item = io::Result<NetlinkMessage<RouteNetlinkMessage>>> + '_ {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let message = rest.get(..length).filter(|message| message.len() >= 16)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(NetlinkMessage::deserialize(message).map_err(io::Error::other))
    })
}
