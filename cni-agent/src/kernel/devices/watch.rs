//! Hears of changes of devices, addresses and default routes.

use std::{io, os::fd::AsRawFd, time::Duration};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::{Interest, unix::AsyncFd};

use super::{super::netlink::Netlink, list};
use crate::model::Device;

/// `RTNLGRP_LINK`, `_TC`, `_IPV4_IFADDR`, `_IPV6_IFADDR`, `_IPV4_ROUTE`, `_IPV6_ROUTE`.
const GROUPS: [u32; 6] = [1, 4, 5, 9, 7, 11];

/// A storm of changes (110 pods start) is one list: after the first change this much is waited.
const SETTLE: Duration = Duration::from_millis(50);

/// The devices, whenever something about them has changed.
pub struct Watch {
    /// Its content is never parsed: a change is a reason to list anew, so a lost message (ENOBUFS) loses nothing.
    events: AsyncFd<Socket>,
    netlink: Netlink,
    last: Option<Vec<Device>>,
}

impl Watch {
    /// Hears of changes in the namespace of the calling thread from now on.
    pub fn begin() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        // SAFETY: the socket owns its descriptor and moves into the `AsyncFd`, which outlives its registration.
        let events = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }
            .map_err(io::Error::other)?;
        Ok(Self {
            events,
            netlink: Netlink::open()?,
            last: None,
        })
    }

    /// All devices: at once at first, afterwards when they differ from what was said last.
    pub async fn next(&mut self) -> io::Result<Vec<Device>> {
        loop {
            if self.last.is_some() {
                let mut guard = self.events.readable().await?;
                tokio::time::sleep(SETTLE).await;
                while let Ok(read) = guard.try_io(|socket| discard(socket.get_ref())) {
                    read?;
                }
            }
            let devices = list(&mut self.netlink)?;
            if self.last.as_ref() != Some(&devices) {
                self.last = Some(devices.clone());
                return Ok(devices);
            }
        }
    }
}

/// Reads one message and forgets it.
fn discard(socket: &Socket) -> io::Result<()> {
    let mut buffer = [0_u8; 16_384];
    // SAFETY: the buffer is ours and as long as said.
    let read = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    if read >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // The kernel had more to say than there was room for; the list makes up for it.
        error if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EINTR)) => Ok(()),
        error => Err(error),
    }
}
