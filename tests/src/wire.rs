//! Frames put on a device and caught from it.

use std::{
    io::Read,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::libc;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{netns::Namespace, patience};

/// A packet socket on one device: sends whole frames, and hears what arrives and what is sent.
#[derive(Debug)]
pub struct Tap {
    socket: Socket,
}

impl Tap {
    pub fn open(inside: &Namespace, device: &str) -> Result<Self> {
        let ifindex = inside.ifindex(device)?;
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: the closure fills in a `sockaddr_ll`, which `sockaddr_storage` has room for, and its length.
        let ((), address) = unsafe {
            SockAddr::try_init(|storage, length| {
                let link = storage.cast::<libc::sockaddr_ll>();
                (*link).sll_family = libc::AF_PACKET as u16;
                (*link).sll_protocol = protocol;
                (*link).sll_ifindex = ifindex as i32;
                *length = size_of::<libc::sockaddr_ll>() as u32;
                Ok(())
            })
        }?;
        let socket = inside.run(|| -> std::io::Result<Socket> {
            let socket = Socket::new(
                Domain::PACKET,
                Type::RAW,
                Some(Protocol::from(i32::from(protocol))),
            )?;
            socket.bind(&address)?;
            Ok(socket)
        });
        let socket = socket.with_context(|| format!("packet socket on {device} in {}", inside.name()))?;
        socket.set_recv_buffer_size(8 << 20)?;
        Ok(Self { socket })
    }

    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.socket.send(frame).context("send a frame")?;
        Ok(())
    }

    /// The first frame that `wanted` accepts, waited for; and all frames before it.
    pub fn catch(
        &self,
        what: &str,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Result<(Vec<u8>, Vec<Vec<u8>>)> {
        let deadline = Instant::now() + patience(Duration::from_secs(30));
        self.socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut before = Vec::new();
        let mut buffer = vec![0; 65_536];
        while Instant::now() < deadline {
            let Ok(length) = (&self.socket).read(&mut buffer) else {
                continue;
            };
            let frame = buffer[..length].to_vec();
            if wanted(&frame) {
                return Ok((frame, before));
            }
            before.push(frame);
        }
        bail!("{what} did not come; {} other frames did", before.len())
    }
}

/// Whether a frame holds these bytes anywhere.
pub fn holds(frame: &[u8], bytes: &[u8]) -> bool {
    frame.windows(bytes.len()).any(|window| window == bytes)
}
