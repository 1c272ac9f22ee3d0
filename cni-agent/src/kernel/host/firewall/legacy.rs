//! The built-in chains of the legacy `iptables` and `ip6tables`: table `filter`, read as those programs read it.
//!
//! A table is a blob of entries. The last one of each built-in chain is its policy, and the table's head says where it is
//! (`underflow`). Asking for a table creates it, so only those that exist are asked for.

use std::{fs, io, net::UdpSocket, os::fd::AsRawFd};

use super::Chain;

/// One family's way of asking.
struct Family {
    /// Names the tables that there are.
    list: &'static str,
    /// Any socket of the family will do.
    bind: &'static str,
    level: libc::c_int,
    /// Where an entry says how far its target is from its own beginning: behind the addresses and a word.
    target_offset: usize,
    tool: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        list: "/proc/net/ip_tables_names",
        bind: "127.0.0.1:0",
        level: libc::IPPROTO_IP,
        target_offset: 88,
        tool: "iptables-legacy",
    },
    Family {
        list: "/proc/net/ip6_tables_names",
        bind: "[::1]:0",
        level: libc::IPPROTO_IPV6,
        target_offset: 140,
        tool: "ip6tables-legacy",
    },
];

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`; IPv6 has the same.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
const NAME: usize = 32;
/// `struct ipt_getinfo`: name, hooks, beginnings and policies of five chains, count, size.
const INFO: usize = NAME + 4 + 20 + 20 + 8;
/// `struct ipt_get_entries`: name, size, padding.
const HEAD: usize = NAME + 8;
/// `struct xt_entry_target`, behind which a standard target has its verdict.
const TARGET: usize = 32;
/// The verdict of a standard target for `NF_DROP`: numbers of verdicts are negative and one less.
const DROP: i32 = -1;

const HOOKS: [(&str, u32); 2] = [("INPUT", super::HOOK_INPUT), ("FORWARD", super::HOOK_FORWARD)];

pub(super) fn chains() -> io::Result<Vec<Chain>> {
    let mut chains = Vec::new();
    for family in &FAMILIES {
        // Without the module there is no such file.
        let tables = fs::read_to_string(family.list).unwrap_or_default();
        if tables.lines().any(|table| table == "filter") {
            chains.extend(family.chains()?);
        }
    }
    Ok(chains)
}

impl Family {
    fn chains(&self) -> io::Result<Vec<Chain>> {
        let socket = UdpSocket::bind(self.bind)?;
        let mut info = [0; INFO];
        info[..6].copy_from_slice(b"filter");
        self.ask(&socket, GET_INFO, &mut info)?;
        let size = word(&info, INFO - 4).unwrap_or(0) as usize;
        let mut entries = vec![0; HEAD + size];
        entries[..NAME].copy_from_slice(&info[..NAME]);
        entries[NAME..NAME + 4].copy_from_slice(&info[INFO - 4..]);
        self.ask(&socket, GET_ENTRIES, &mut entries)?;
        let table = entries.get(HEAD..).unwrap_or_default();
        let chain = |(name, hook): (&str, u32)| Chain {
            name: format!("{} {name}", self.tool),
            hook,
            drops: self.policy(&info, table, hook) == Some(DROP),
            remedy: self.tool,
        };
        Ok(HOOKS.into_iter().map(chain).collect())
    }

    /// The verdict of a chain's last entry.
    fn policy(&self, info: &[u8], table: &[u8], hook: u32) -> Option<i32> {
        let underflow = word(info, NAME + 4 + 20 + 4 * hook as usize)? as usize;
        let entry = table.get(underflow..)?;
        let target = entry.get(self.target_offset..self.target_offset + 2)?;
        let target = usize::from(u16::from_ne_bytes(target.try_into().ok()?));
        word(entry, target + TARGET).map(u32::cast_signed)
    }

    fn ask(&self, socket: &UdpSocket, what: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
        let mut length = buffer.len() as libc::socklen_t;
        // SAFETY: the kernel reads and writes at most `length` bytes of `buffer`, which is borrowed for the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                self.level,
                what,
                buffer.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_tables_are_no_panic() {
        let info = [0xff; INFO];
        for end in 0..INFO {
            for family in &FAMILIES {
                assert_eq!(family.policy(&info[..end], &[0; 64], 2), None);
            }
        }
    }
}
