//! A blocking rtnetlink socket that sends many changes in one call.

use super::failed;
use cni_plugin::CniError;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;

/// The kernel fills a dump's datagrams up to this size.
const DATAGRAM: usize = 32 * 1024;

/// One change, with what it means to a reader of the error.
pub(crate) struct Change {
    pub(crate) what: String,
    pub(crate) message: RouteNetlinkMessage,
    pub(crate) flags: u16,
    /// Errors that mean that there was nothing to do.
    pub(crate) tolerated: &'static [i32],
}

/// A socket in the network namespace that it was opened in, wherever it is used.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

type Reply = NetlinkMessage<RouteNetlinkMessage>;

impl Netlink {
    pub(crate) fn open() -> Result<Self, CniError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Without this an error carries the whole request back.
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|error: io::Error| failed("cannot open a netlink socket", error))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(DATAGRAM),
        })
    }

    /// Sends all changes at once; the kernel carries them out in order. The first failure is returned, with the
    /// kernel's error number beside it; those after it have been attempted too.
    pub(crate) fn try_apply(&mut self, changes: Vec<Change>) -> Result<(), (i32, CniError)> {
        let first = self.sequence.wrapping_add(1);
        let mut frame = Vec::with_capacity(4096);
        let mut expectations = Vec::with_capacity(changes.len());
        let last = changes.len().saturating_sub(1);
        for (index, change) in changes.into_iter().enumerate() {
            // Errors are always reported, so one acknowledgement at the end tells of all.
            let ack = if index == last { NLM_F_ACK } else { 0 };
            self.append(&mut frame, change.message, change.flags | NLM_F_REQUEST | ack);
            expectations.push((change.what, change.tolerated));
        }
        if expectations.is_empty() {
            return Ok(());
        }
        let lost = |error: io::Error| (0, failed("netlink failed", error));
        self.socket.send(&frame, 0).map_err(lost)?;
        let mut failure = None;
        loop {
            for reply in self.receive().map_err(lost)? {
                let NetlinkPayload::Error(error) = reply.payload else {
                    continue;
                };
                let index = reply.header.sequence_number.wrapping_sub(first) as usize;
                let Some((what, tolerated)) = expectations.get(index) else {
                    continue;
                };
                let number = error.raw_code().saturating_neg();
                if number != 0 && !tolerated.contains(&number) && failure.is_none() {
                    failure = Some((number, failed(format!("cannot {what}"), error.to_io())));
                }
                if index == last {
                    return failure.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// [`Self::try_apply`] where the kind of failure does not matter.
    pub(crate) fn apply(&mut self, changes: Vec<Change>) -> Result<(), CniError> {
        self.try_apply(changes).map_err(|(_, error)| error)
    }

    /// Asks for one object; the kernel's error where there is none.
    pub(crate) fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        self.request(message, 0)?.into_iter().next().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the kernel answered without an object",
            )
        })
    }

    /// Asks for all objects of a kind.
    pub(crate) fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.request(message, NLM_F_DUMP)
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut frame = Vec::with_capacity(256);
        self.append(&mut frame, message, flags | NLM_F_REQUEST);
        self.socket.send(&frame, 0)?;
        let mut objects = Vec::new();
        loop {
            for reply in self.receive()? {
                if reply.header.sequence_number != self.sequence {
                    continue;
                }
                match reply.payload {
                    NetlinkPayload::InnerMessage(object) => objects.push(object),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    _ => return Ok(objects),
                }
                if flags & NLM_F_DUMP == 0 {
                    return Ok(objects);
                }
            }
        }
    }

    fn append(&mut self, frame: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let start = frame.len();
        // Each message begins at a multiple of four.
        frame.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut frame[start..]);
    }

    /// One datagram's messages.
    fn receive(&mut self) -> io::Result<Vec<Reply>> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0)?;
        let mut replies = Vec::new();
        let mut rest = self.buffer.as_slice();
        while !rest.is_empty() {
            let reply = Reply::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let length = (reply.header.length as usize)
                .max(1)
                .next_multiple_of(4)
                .min(rest.len());
            rest = &rest[length..];
            replies.push(reply);
        }
        Ok(replies)
    }
}
