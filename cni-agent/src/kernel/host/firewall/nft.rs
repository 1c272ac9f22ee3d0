//! The base chains of nf_tables, asked for over netlink.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::Chain;

/// Asks nf_tables for its chains and keeps the base chains.
pub(super) fn chains() -> io::Result<Vec<Chain>> {
    const NLM_F_REQUEST_DUMP: u16 = 0x301;
    // NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN
    const GET_CHAIN: u16 = 10 << 8 | 4;
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = Vec::with_capacity(20);
    request.extend(20_u32.to_ne_bytes());
    request.extend(GET_CHAIN.to_ne_bytes());
    request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    // Sequence number and port, then nfgenmsg: any family, version 0, resource 0.
    request.extend([0; 12]);
    socket.send(&request, 0)?;
    let mut chains = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while let Some((kind, payload, behind)) = message(rest) {
            rest = behind;
            match kind {
                // NLMSG_DONE
                3 => return Ok(chains),
                // NLMSG_ERROR
                2 => {
                    let code = number(payload.get(..4)).unwrap_or(0).cast_signed();
                    return if code == 0 {
                        Ok(chains)
                    } else {
                        Err(io::Error::from_raw_os_error(-code))
                    };
                }
                _ => chains.extend(chain(payload)),
            }
        }
    }
}

fn number(bytes: Option<&[u8]>) -> Option<u32> {
    bytes?.try_into().ok().map(u32::from_ne_bytes)
}

fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = number(bytes.get(..4))? as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let payload = bytes.get(16..length)?;
    Some((
        kind,
        payload,
        bytes.get(length.next_multiple_of(4)..).unwrap_or_default(),
    ))
}

/// The attributes in `bytes`: type and content.
fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let Some(header) = bytes.get(..4) {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let Some(content) = bytes.get(4..length) else {
            break;
        };
        found.push((kind, content));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

fn chain(payload: &[u8]) -> Option<Chain> {
    const NF_DROP: u32 = 0;
    let big_endian = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_be_bytes);
    let (mut table, mut name, mut hook, mut drops) = (String::new(), String::new(), None, false);
    for (kind, content) in attributes(payload.get(4..)?) {
        match kind {
            1 => table = text(content),
            3 => name = text(content),
            // NFTA_CHAIN_HOOK, in it NFTA_HOOK_HOOKNUM
            4 => {
                let number = attributes(content).into_iter().find(|(kind, _)| *kind == 1);
                hook = number.and_then(|(_, number)| big_endian(number));
            }
            5 => drops = big_endian(content) == Some(NF_DROP),
            _ => {}
        }
    }
    let family = family(*payload.first()?);
    Some(Chain {
        name: format!("{family} {table} {name}"),
        hook: hook?,
        drops,
        remedy: if family == "ip6" { "ip6tables" } else { "iptables" },
    })
}

fn family(number: u8) -> &'static str {
    match number {
        1 => "inet",
        2 => "ip",
        7 => "bridge",
        10 => "ip6",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_messages_are_no_panic() {
        let bytes: Vec<u8> = (0..64).collect();
        for end in 0..bytes.len() {
            let _ = message(&bytes[..end]);
            let _ = attributes(&bytes[..end]);
            let _ = chain(&bytes[..end]);
        }
    }
}
