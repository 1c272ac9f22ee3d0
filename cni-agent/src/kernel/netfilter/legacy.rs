//! The tables of the legacy `iptables` and `ip6tables`, which nf_tables does not know, read as those programs read them.
//!
//! A table is a blob of entries. The last one of each built-in chain is its policy, and the table's head says where it is
//! (`underflow`). Asking for a table creates it, so only those that exist are asked for.

use std::{fs, io, net::UdpSocket, os::fd::AsRawFd};

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
        list: "/proc/thread-self/net/ip_tables_names",
        bind: "127.0.0.1:0",
        level: libc::IPPROTO_IP,
        target_offset: 88,
        tool: "iptables-legacy",
    },
    Family {
        list: "/proc/thread-self/net/ip6_tables_names",
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

/// One table of one family.
pub(in crate::kernel) struct Table {
    family: &'static Family,
    info: [u8; INFO],
    entries: Vec<u8>,
}

/// The tables of a name, of those families that have it.
pub(in crate::kernel) fn tables(name: &str) -> io::Result<Vec<Table>> {
    let mut tables = Vec::new();
    for family in &FAMILIES {
        // Without the module there is no such file.
        let listed = fs::read_to_string(family.list).unwrap_or_default();
        if listed.lines().any(|table| table == name) {
            tables.push(Table::read(family, name)?);
        }
    }
    Ok(tables)
}

impl Table {
    fn read(family: &'static Family, name: &str) -> io::Result<Self> {
        let socket = UdpSocket::bind(family.bind)?;
        let mut info = [0; INFO];
        info[..name.len().min(NAME - 1)].copy_from_slice(&name.as_bytes()[..name.len().min(NAME - 1)]);
        family.ask(&socket, GET_INFO, &mut info)?;
        let size = word(&info, INFO - 4).unwrap_or(0) as usize;
        let mut entries = vec![0; HEAD + size];
        entries[..NAME].copy_from_slice(&info[..NAME]);
        entries[NAME..NAME + 4].copy_from_slice(&info[INFO - 4..]);
        family.ask(&socket, GET_ENTRIES, &mut entries)?;
        entries.drain(..HEAD);
        Ok(Self {
            family,
            info,
            entries,
        })
    }

    /// The program that changes it.
    pub(in crate::kernel) fn tool(&self) -> &'static str {
        self.family.tool
    }

    /// Whether a built-in chain drops what no rule accepts: by the verdict of its last entry.
    pub(in crate::kernel) fn drops(&self, hook: u32) -> bool {
        let policy = || {
            let underflow = word(&self.info, NAME + 4 + 20 + 4 * hook as usize)? as usize;
            let entry = self.entries.get(underflow..)?;
            let target = usize::from(half(entry, self.family.target_offset)?);
            word(entry, target + TARGET).map(u32::cast_signed)
        };
        policy() == Some(DROP)
    }

    /// Chains that somebody has made: each begins with an entry whose target is the error of that name.
    pub(in crate::kernel) fn chains(&self) -> impl Iterator<Item = String> {
        let mut rest = self.entries.as_slice();
        let entries = std::iter::from_fn(move || {
            let entry = rest;
            let length = usize::from(half(entry, self.family.target_offset + 2)?);
            rest = entry.get(length..).filter(|_| length > 0)?;
            Some(entry)
        });
        entries.filter_map(|entry| {
            let target = entry.get(usize::from(half(entry, self.family.target_offset)?)..)?;
            let is_head = target.get(2..8)? == b"ERROR\0";
            is_head
                .then(|| target.get(TARGET..TARGET + 30).map(until_zero))
                .flatten()
        })
    }
}

impl Family {
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

fn until_zero(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_tables_are_no_panic() {
        for (end, family) in (0..512).flat_map(|end| FAMILIES.iter().map(move |family| (end, family))) {
            let entries: Vec<u8> = (0..end).map(|byte| byte as u8).collect();
            let info = [0xff; INFO];
            let table = Table {
                family,
                info,
                entries,
            };
            assert!(!table.drops(2));
            let _ = table.chains().count();
        }
    }
}
