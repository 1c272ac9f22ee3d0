//! Hears of filters and routes that are taken away.

use std::io;

use cni_plugin::ROUTE_PROTOCOL;

use super::super::notices::Notices;

/// `RTNLGRP_TC`, `RTNLGRP_IPV4_ROUTE`, `_IPV6_ROUTE`.
const GROUPS: [u32; 3] = [4, 7, 11];

const RTM_DELROUTE: u16 = 25;
const RTM_DELQDISC: u16 = 37;
const RTM_DELTFILTER: u16 = 45;

/// Says when something that may be ours was removed. A pod whose filter is gone sends unfiltered; a tcx link cannot be
/// taken away from whoever holds its pin, a clsact filter by everybody.
pub struct Watch(Notices);

impl Watch {
    pub fn begin() -> io::Result<Self> {
        Notices::of(&GROUPS).map(Self)
    }

    /// Returns when something is gone. Our own removals are among it.
    pub async fn next(&mut self) -> io::Result<()> {
        while !self.0.heard(is_removal).await? {}
        Ok(())
    }
}

/// Of a message with its header.
fn is_removal(message: &[u8]) -> bool {
    let kind = message
        .get(4..6)
        .map(|kind| u16::from_ne_bytes([kind[0], kind[1]]));
    // Behind the header of 16 bytes: family, two lengths, TOS, table, protocol.
    let protocol = message.get(16 + 5);
    match kind {
        Some(RTM_DELQDISC | RTM_DELTFILTER) => true,
        Some(RTM_DELROUTE) => protocol == Some(&ROUTE_PROTOCOL),
        _ => false,
    }
}
