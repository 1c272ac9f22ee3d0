//! Hears of changes of devices, addresses and default routes.

use std::io;

use super::{
    super::{netlink::Netlink, notices::Notices},
    list,
};
use crate::model::Device;

/// `RTNLGRP_LINK`, `_TC`, `_IPV4_IFADDR`, `_IPV6_IFADDR`, `_IPV4_ROUTE`, `_IPV6_ROUTE`.
const GROUPS: [u32; 6] = [1, 4, 5, 9, 7, 11];

/// The devices, whenever something about them has changed.
pub struct Watch {
    /// What they say is not looked at: a change is a reason to list anew, so a lost one loses nothing.
    notices: Notices,
    netlink: Netlink,
    last: Option<Vec<Device>>,
}

impl Watch {
    /// Hears of changes in the namespace of the calling thread from now on.
    pub fn begin() -> io::Result<Self> {
        Ok(Self {
            notices: Notices::of(&GROUPS)?,
            netlink: Netlink::open()?,
            last: None,
        })
    }

    /// All devices: at once at first, afterwards when they differ from what was said last.
    pub async fn next(&mut self) -> io::Result<Vec<Device>> {
        loop {
            if self.last.is_some() {
                self.notices.heard(|_| true).await?;
            }
            let devices = list(&mut self.netlink)?;
            if self.last.as_ref() != Some(&devices) {
                self.last = Some(devices.clone());
                return Ok(devices);
            }
        }
    }
}
