//! IPv6 extension headers.

use super::{EXTENSION_HEADERS, L3, Network, note_fragment, proto};
use crate::abi::Reason;
use crate::datapath::work::fragment;
use crate::datapath::{Headers, Packet, Tables};

/// Walks the extension headers (RFC 8200 section 4). `headers.l4` and `headers.next` are where the walk stands.
#[inline(always)]
pub(super) fn walk<T: Tables, P: Packet>(
    tables: &T,
    packet: &P,
    headers: &mut Headers,
    first: u8,
) -> Result<Network, Reason> {
    headers.next = first;
    headers.l4 = L3 + 40;
    headers.wrong = 0;
    // One round more than headers are allowed: it must find the transport.
    if is_extension(first) {
        tables.repeat(EXTENSION_HEADERS + 1, |round| {
            if !is_extension(headers.next) || headers.fragment == fragment::LATER {
                return false;
            }
            if round == EXTENSION_HEADERS {
                headers.wrong = Reason::ExtensionHeader as u8;
                return false;
            }
            match extension(packet, headers) {
                Ok(()) => true,
                Err(reason) => {
                    headers.wrong = reason as u8;
                    false
                }
            }
        });
    }
    match Reason::from_number(headers.wrong) {
        None => Ok(Network {
            l4: headers.l4,
            proto: headers.next,
        }),
        Some(reason) => Err(reason),
    }
}

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(
        next,
        proto::HOP_BY_HOP | proto::ROUTING | proto::DESTINATION | proto::AUTHENTICATION | proto::FRAGMENT
    )
}

/// Steps over one extension header.
#[inline(always)]
fn extension<P: Packet>(packet: &P, headers: &mut Headers) -> Result<(), Reason> {
    let offset = headers.l4;
    let head: [u8; 8] = packet.load(offset).ok_or(Reason::Truncated)?;
    let [following, length, kind, flags, i0, i1, i2, i3] = head;
    headers.l4 = if headers.next == proto::FRAGMENT {
        let word = u16::from_be_bytes([kind, flags]);
        let id = u32::from_ne_bytes([i0, i1, i2, i3]);
        note_fragment(headers, id, word >> 3, word & 1 != 0, following)?;
        offset + 8
    } else if headers.next == proto::AUTHENTICATION {
        offset + (u32::from(length) + 2) * 4
    } else {
        // RFC 5095: routing header type 0 is not to be followed by anybody. With segments left the destination that is
        // judged is not the one where the packet ends.
        if headers.next == proto::ROUTING && (kind == 0 || flags != 0) {
            return Err(Reason::ExtensionHeader);
        }
        offset + (u32::from(length) + 1) * 8
    };
    if headers.l4 > L3 + headers.length {
        return Err(Reason::Malformed);
    }
    headers.next = following;
    Ok(())
}
