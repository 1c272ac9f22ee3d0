//! The kernel's list of connected datagram sockets (sock_diag), and the end of one of them.

use std::{io, net::Ipv6Addr};

use cni_ebpf::abi::{Addr, Port};
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Of a message's header, and of `struct inet_diag_sockid`.
const HEADER: usize = 16;
const IDENTITY: usize = 48;
/// A socket that is connected, whatever its protocol calls it.
const TCP_ESTABLISHED: u32 = 1;

/// A datagram socket that is connected, in the network namespace of the thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Connected {
    family: u8,
    /// As the kernel wrote it, and as it wants it back.
    identity: [u8; IDENTITY],
}

impl Connected {
    /// As `bpf_get_socket_cookie` has it.
    pub(super) fn cookie(&self) -> u64 {
        let half = |at: usize| {
            u64::from(u32::from_ne_bytes(
                [0, 1, 2, 3].map(|byte| self.identity[at + byte]),
            ))
        };
        half(40) | half(44) << 32
    }

    pub(super) fn peer(&self) -> (Addr, Port) {
        let port = Port::from_wire(u16::from_ne_bytes([self.identity[2], self.identity[3]]));
        let bytes: [u8; 16] = std::array::from_fn(|at| self.identity[20 + at]);
        let [a, b, c, d, ..] = bytes;
        let addr = if i32::from(self.family) == libc::AF_INET {
            Addr::v4([a, b, c, d])
        } else {
            Addr::from(std::net::IpAddr::V6(Ipv6Addr::from(bytes)))
        };
        (addr, port)
    }
}

pub(super) struct Diag(Socket);

impl Diag {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    pub(super) fn connected(&mut self) -> io::Result<Vec<Connected>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let family = u8::try_from(family).map_err(io::Error::other)?;
            self.send(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, &[0; IDENTITY])?;
            self.answers(|body| {
                // Of `struct inet_diag_msg`: the family, three bytes, the identity.
                let identity = body.get(4..4 + IDENTITY).and_then(|bytes| bytes.try_into().ok());
                if let (Some(family), Some(identity)) = (body.first(), identity) {
                    let family = *family;
                    found.push(Connected { family, identity });
                }
            })?;
        }
        Ok(found)
    }

    /// Its owner hears `ECONNABORTED`, and it is not connected any more. One that has gone meanwhile is fine.
    pub(super) fn destroy(&mut self, socket: &Connected) -> io::Result<()> {
        self.send(SOCK_DESTROY, NLM_F_ACK, socket.family, &socket.identity)?;
        match self.answers(|_| ()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    fn send(&self, kind: u16, flags: u16, family: u8, identity: &[u8; IDENTITY]) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEADER + 8 + IDENTITY);
        let length = u32::try_from(HEADER + 8 + IDENTITY).map_err(io::Error::other)?;
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend([0; 8]);
        // `struct inet_diag_req_v2`: family, protocol, what is told besides, padding, states, identity.
        message.extend([family, libc::IPPROTO_UDP as u8, 0, 0]);
        message.extend((1_u32 << TCP_ESTABLISHED).to_ne_bytes());
        message.extend(identity);
        self.0.send(&message, 0).map(drop)
    }

    fn answers(&self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        loop {
            let (datagram, _) = self.0.recv_from_full()?;
            let mut rest = &datagram[..];
            while let Some(length) = rest
                .first_chunk()
                .map(|length| u32::from_ne_bytes(*length) as usize)
            {
                let Some((head, body)) = rest
                    .get(..length)
                    .and_then(|message| message.split_at_checked(HEADER))
                else {
                    break;
                };
                let error = body.first_chunk().map(|code| i32::from_ne_bytes(*code));
                match u16::from_ne_bytes([head[4], head[5]]) {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        return match error {
                            None | Some(0) => Ok(()),
                            Some(code) => Err(io::Error::from_raw_os_error(code.saturating_abs())),
                        };
                    }
                    _ => each(body),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_connected_socket_is_found_by_its_peer_and_ended() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let (server, client) = (UdpSocket::bind(any).unwrap(), UdpSocket::bind(any).unwrap());
            client.connect(server.local_addr().unwrap()).unwrap();
            let address = server.local_addr().unwrap();
            let peer = (Addr::from(address.ip()), Port::new(address.port()));
            let mut diag = Diag::open().unwrap();
            let mine = diag
                .connected()
                .unwrap()
                .into_iter()
                .find(|one| one.peer() == peer);
            let mine = mine.expect("the kernel knows it");
            assert_ne!(mine.cookie(), 0);
            if let Err(error) = diag.destroy(&mine) {
                // Who may not end sockets sees that much.
                assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
                continue;
            }
            let error = client.send(b"x").unwrap_err();
            assert!(
                matches!(
                    error.raw_os_error(),
                    Some(libc::ECONNABORTED | libc::EDESTADDRREQ)
                ),
                "{error}"
            );
            diag.destroy(&mine).unwrap();
        }
    }
}
