//! What rtnetlink says of its own accord.

use std::{io, os::fd::AsRawFd, time::Duration};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::{Interest, unix::AsyncFd};

/// A storm of changes (110 pods start) is one: after the first message this much is waited.
const SETTLE: Duration = Duration::from_millis(50);

/// Messages of some multicast groups, in the network namespace in which they were subscribed to.
pub(super) struct Notices {
    socket: AsyncFd<Socket>,
}

impl Notices {
    pub(super) fn of(groups: &[u32]) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        socket.set_non_blocking(true)?;
        // SAFETY: the socket owns its descriptor and moves into the `AsyncFd`, which outlives its registration.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }
            .map_err(io::Error::other)?;
        Ok(Self { socket })
    }

    /// Waits for messages. True if `matters` says so of one of them, or if some were lost.
    pub(super) async fn heard(&mut self, matters: impl Fn(&[u8]) -> bool) -> io::Result<bool> {
        let mut found = false;
        let mut buffer = [0_u8; 16_384];
        let mut guard = self.socket.readable().await?;
        tokio::time::sleep(SETTLE).await;
        while let Ok(read) = guard.try_io(|socket| receive(socket.get_ref(), &mut buffer)) {
            found |= read?.is_none_or(|length| buffer.get(..length).is_some_and(&matters));
        }
        Ok(found)
    }
}

/// One message. `None`: the kernel had more to say than there was room for.
fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    // SAFETY: the buffer is ours and as long as said.
    let read = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    if let Ok(length) = usize::try_from(read) {
        return Ok(Some(length));
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EINTR)) => Ok(None),
        error => Err(error),
    }
}
