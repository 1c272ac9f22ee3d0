//! A conversation with the kernel's packet filters and its connection tracking (nfnetlink).
//!
//! No crate under our licences speaks it. Blocking, as [`super::netlink`] is: the kernel answers in the system call.

pub(super) mod connections;
pub(super) mod legacy;
pub(super) mod nftables;

use std::{io, os::fd::AsRawFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Of a message, and of `struct nfgenmsg` behind it.
const HEADER: usize = 16;
const GENERIC: usize = 4;
/// `NLA_F_NESTED`, and everything of an attribute's type that is no flag.
const NESTED: u16 = 0x8000;
const KIND: u16 = 0x3fff;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Room for a batch and for all answers to it.
const BUFFER: libc::c_int = 4 << 20;

/// A socket of the network namespace in which it was opened.
pub(super) struct Netfilter {
    socket: Socket,
    sequence: u32,
}

impl Netfilter {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        for option in [libc::SO_SNDBUFFORCE, libc::SO_RCVBUFFORCE] {
            enlarge(&socket, option)?;
        }
        Ok(Self { socket, sequence: 0 })
    }

    /// Everything of a kind: the bodies, each beginning with its family.
    pub(super) fn dump(
        &mut self,
        kind: u16,
        family: u8,
        attributes: &[u8],
        mut each: impl FnMut(u8, &[u8]),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = message(
            kind,
            NLM_F_REQUEST | NLM_F_DUMP,
            self.sequence,
            [family, 0, 0, 0],
            attributes,
        );
        self.socket.send(&request, 0)?;
        self.answers(self.sequence, |body| {
            if let (Some(family), Some(attributes)) = (body.first(), body.get(GENERIC..)) {
                each(*family, attributes);
            }
        })
    }

    /// Changes of one subsystem, all of them or none.
    pub(super) fn commit(&mut self, subsystem: u8, changes: &[Change]) -> io::Result<()> {
        let Some((last, others)) = changes.split_last() else {
            return Ok(());
        };
        let bracket = [0, 0, 0, subsystem];
        let mut batch = message(BATCH_BEGIN, NLM_F_REQUEST, 0, bracket, &[]);
        let kind = |change: &Change| u16::from(subsystem) << 8 | u16::from(change.kind);
        for change in others {
            batch.extend(change.message(kind(change), 0, self.sequence));
        }
        // Errors are told of every message, success of the last alone.
        self.sequence = self.sequence.wrapping_add(1);
        batch.extend(last.message(kind(last), NLM_F_ACK, self.sequence));
        batch.extend(message(BATCH_END, NLM_F_REQUEST, 0, bracket, &[]));
        self.socket.send(&batch, 0)?;
        self.answers(self.sequence, |_| ())
    }

    /// Takes what comes until the end of the answer to `sequence`.
    fn answers(&self, sequence: u32, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while let Some(Message {
                kind,
                of,
                body,
                behind,
            }) = Message::first(rest)
            {
                rest = behind;
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = native(body.get(..4)).unwrap_or(0).cast_signed();
                        if code != 0 {
                            return Err(io::Error::from_raw_os_error(code.saturating_abs()));
                        }
                        if of == sequence {
                            return Ok(());
                        }
                    }
                    _ => each(body),
                }
            }
        }
    }
}

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Of the subsystem's messages.
    kind: u8,
    creates: bool,
    family: u8,
    attributes: Vec<u8>,
}

impl Change {
    fn message(&self, kind: u16, flags: u16, sequence: u32) -> Vec<u8> {
        let flags = flags | NLM_F_REQUEST | if self.creates { NLM_F_CREATE } else { 0 };
        message(kind, flags, sequence, [self.family, 0, 0, 0], &self.attributes)
    }
}

fn enlarge(socket: &Socket, option: libc::c_int) -> io::Result<()> {
    let size = BUFFER;
    // SAFETY: the kernel reads one `int` from `size`, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const size).cast(),
            size_of_val(&size) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn message(kind: u16, flags: u16, sequence: u32, generic: [u8; GENERIC], attributes: &[u8]) -> Vec<u8> {
    let length = HEADER + GENERIC + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(generic);
    bytes.extend(attributes);
    bytes
}

/// An attribute as it is written: padded.
fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + content.len());
    bytes.extend((4 + content.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn name(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), b"\0"].concat())
}

fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &parts.concat())
}

struct Message<'a> {
    kind: u16,
    of: u32,
    body: &'a [u8],
    behind: &'a [u8],
}

impl<'a> Message<'a> {
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let length = native(bytes.get(..4))? as usize;
        Some(Self {
            kind: u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?),
            of: native(bytes.get(8..12))?,
            body: bytes.get(HEADER..length)?,
            behind: bytes.get(length.next_multiple_of(4)..).unwrap_or_default(),
        })
    }
}

/// The attributes in `bytes`: type and content.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & KIND;
        let content = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// What an attribute holds, if it is there.
fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, content)| (kind == wanted).then_some(content))
}

fn native(bytes: Option<&[u8]>) -> Option<u32> {
    bytes?.try_into().ok().map(u32::from_ne_bytes)
}

fn big_endian(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

/// A kernel without the subsystem has nothing of it.
pub(super) fn or_absent<T: Default>(answer: io::Result<T>) -> io::Result<T> {
    match answer {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EINVAL)
            ) =>
        {
            Ok(T::default())
        }
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let inner = [name(1, "filter"), attribute(2, &7_u32.to_be_bytes())];
        let bytes = message(10 << 8, 1, 5, [2, 0, 0, 0], &nested(4, &inner));
        let message = Message::first(&bytes).unwrap();
        assert_eq!((message.kind, message.of, message.behind.len()), (10 << 8, 5, 0));
        let inside = find(&message.body[GENERIC..], 4).unwrap();
        assert_eq!(find(inside, 1).map(text).as_deref(), Some("filter"));
        assert_eq!(find(inside, 2).and_then(big_endian), Some(7));
    }

    #[test]
    fn cut_messages_are_no_panic() {
        let bytes: Vec<u8> = (0..64).collect();
        for end in 0..bytes.len() {
            let _ = Message::first(&bytes[..end]);
            let _ = attributes(&bytes[..end]).count();
        }
    }
}
