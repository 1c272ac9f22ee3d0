//! Frames put on a device and caught from it.

use std::{
    io::Read,
    os::fd::AsRawFd,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};
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
        // Beyond what others may ask for: a frame that finds no room is as one that never came.
        setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20))?;
        Ok(Self { socket })
    }

    pub fn send(&self, frame: &[u8]) -> Result<()> {
        self.socket.send(frame).context("send a frame")?;
        Ok(())
    }

    /// The next frame, and when the kernel had it by the clock on the wall; `None` if there is none for `wait`.
    pub fn next(&self, wait: Duration) -> Result<Option<(Vec<u8>, SystemTime)>> {
        self.socket.set_read_timeout(Some(wait))?;
        let mut buffer = vec![0; 65_536];
        let Ok(length) = (&self.socket).read(&mut buffer) else {
            return Ok(None);
        };
        buffer.truncate(length);
        Ok(Some((buffer, self.arrived()?)))
    }

    /// When the frame that was read last arrived. The kernel notes it from the first question on.
    pub fn arrived(&self) -> Result<SystemTime> {
        const SIOCGSTAMPNS: libc::c_ulong = 0x8907;
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the kernel writes one `timespec`.
        let failed = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCGSTAMPNS as _, &raw mut time) };
        if failed != 0 {
            let error = std::io::Error::last_os_error();
            // None was read yet.
            ensure!(
                error.raw_os_error() == Some(libc::ENOENT),
                "a frame's time: {error}"
            );
        }
        Ok(SystemTime::UNIX_EPOCH + Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
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
