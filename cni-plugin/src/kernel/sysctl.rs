//! Per-interface IPv6 settings, which netlink cannot write. They apply to the caller's network namespace.

use super::failed;
use cni_plugin::CniError;
use std::{fs, io, path::PathBuf};

/// Keeps routers from configuring the interface, and makes sure that it can have the addresses it is to have.
pub(crate) fn prepare_ipv6(ifname: &str, has_ipv6: bool) -> Result<(), CniError> {
    for key in ["accept_ra", "autoconf"] {
        // The agent checks forwarding and router advertisements once more, so a read-only /proc/sys is not the end.
        if let Err(error) = set(ifname, key, "0") {
            tracing::warn!(ifname, key, %error, "the setting could not be written");
        }
    }
    if has_ipv6 {
        set(ifname, "disable_ipv6", "0").map_err(|error| {
            failed(
                format!("cannot enable IPv6 on {ifname}, which has an IPv6 address"),
                error,
            )
        })?;
    }
    Ok(())
}

/// Writes only a value that differs; a kernel without IPv6 has nothing to set.
fn set(ifname: &str, key: &str, value: &str) -> io::Result<()> {
    let path = PathBuf::from("/proc/sys/net/ipv6/conf").join(ifname).join(key);
    match fs::read_to_string(&path) {
        Ok(current) if current.trim() == value => Ok(()),
        Ok(_) => fs::write(&path, value),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
