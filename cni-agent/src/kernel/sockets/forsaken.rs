//! Connected datagram sockets of the host whose backend serves no longer.
//!
//! A socket that is connected asks nobody when it sends, so that it would send to where nobody listens for ever. It is
//! told so: its owner hears an error, and dials anew. Where the whole Service has nobody, it stays as it is, because its
//! backend may come back. The pods' own are balanced packet by packet and need none of this.

use std::io;

use cni_ebpf::abi::{self, Backend, Dialled, Service, ServiceKey, SocketKey, service_scope};

use super::{
    super::{KernelError, maps::Map},
    diag::{Connected, Diag},
};

const UDP: u8 = libc::IPPROTO_UDP as u8;

/// Where it stands what sockets dialled, and whom that leads to.
#[derive(Debug)]
pub struct Maps<'a> {
    pub sockets: &'a Map,
    pub services: &'a Map,
    pub backends: &'a Map,
}

/// Ends those that are forsaken, and says how many.
pub fn release(maps: &Maps<'_>) -> Result<usize, KernelError> {
    end_forsaken(maps).map_err(|error| cannot(&error))
}

fn cannot(error: &io::Error) -> KernelError {
    let action = "end connected datagram sockets whose backend is gone";
    let remedy = match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => {
            "this kernel lacks CONFIG_INET_DIAG_DESTROY: their programs have to dial anew themselves, or use a kernel with it"
        }
        Some(libc::ENOENT) => "load the module udp_diag (CONFIG_INET_UDP_DIAG)",
        Some(libc::EPERM) => "the agent needs CAP_NET_ADMIN in the host's user namespace",
        _ => "",
    };
    KernelError::new(action, error).with_remedy(remedy)
}

fn end_forsaken(maps: &Maps<'_>) -> io::Result<usize> {
    let mut diag = Diag::open()?;
    let mut released = 0;
    for socket in diag.connected()? {
        if maps.looked_after(&socket)? {
            diag.destroy(&socket)?;
            released += 1;
        }
    }
    Ok(released)
}

impl Maps<'_> {
    /// Whether the socket is forsaken. If not, what it dialled is remembered anew: a connected socket that only sends asks for it
    /// never, and all that connect after it would have the map forget it.
    fn looked_after(&self, socket: &Connected) -> io::Result<bool> {
        let (addr, port) = socket.peer();
        let key = SocketKey {
            cookie: socket.cookie(),
            addr,
            port,
            proto: UDP,
            pad: 0,
            reserved: 0,
        };
        // Whoever dialled no Service goes on.
        let Some(dialled) = look_up::<_, Dialled>(self.sockets, &key)? else {
            return Ok(false);
        };
        let serves = |backend: Backend| backend.addr == addr && backend.port == port;
        if look_up::<_, Backend>(self.backends, &dialled.backend)?.is_some_and(serves) {
            // The row is there still, and is written again at the next look.
            if let Err(error) = self.sockets.put(abi::as_bytes(&key), abi::as_bytes(&dialled)) {
                tracing::debug!(%error, "what a socket dialled was not remembered anew");
            }
            return Ok(false);
        }
        let frontend = ServiceKey {
            addr: dialled.addr,
            port: dialled.port,
            proto: UDP,
            scope: service_scope::CLUSTER,
            pad: 0,
        };
        Ok(look_up::<_, Service>(self.services, &frontend)?.is_some_and(|service| service.slots > 0))
    }
}

fn look_up<K: abi::Plain, V: abi::Plain>(map: &Map, key: &K) -> io::Result<Option<V>> {
    let found = map.get(abi::as_bytes(key)).map_err(io::Error::other)?;
    Ok(found.and_then(|value| abi::from_bytes(&value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svc_55_a_kernel_that_cannot_end_sockets_is_named_by_what_it_lacks() {
        for (code, lacks) in [
            (libc::EOPNOTSUPP, "CONFIG_INET_DIAG_DESTROY"),
            (libc::ENOENT, "udp_diag"),
            (libc::EPERM, "CAP_NET_ADMIN"),
        ] {
            let text = cannot(&io::Error::from_raw_os_error(code)).to_string();
            assert!(text.contains("sockets") && text.contains(lacks), "{text}");
        }
    }
}
