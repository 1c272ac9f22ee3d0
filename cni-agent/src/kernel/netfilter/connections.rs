//! Connections that the kernel's own tracking translates (ctnetlink).

use std::{fs, io, path::Path};

use super::{Netfilter, big_endian, find, or_absent};

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_GET`
const GET: u16 = 1 << 8 | 1;
/// `IPS_DST_NAT`
const TRANSLATED: u32 = 1 << 5;
/// After `SYN_SENT`, which nobody has answered: its first packet is sent again, and begins a connection of ours.
const TCP_SYN_RECV: u8 = 2;
/// From this state on (`TIME_WAIT`, `CLOSE`) nobody sends anything that matters.
const TCP_TIME_WAIT: u8 = 7;

/// How many are tracked in the network namespace of whoever reads it. Absent where nothing is.
const TRACKED: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// How many live connections have another destination than the one that was dialled; at most, where the kernel tells nobody
/// of them.
pub(in crate::kernel) fn translated(netfilter: &mut Netfilter) -> io::Result<usize> {
    let mut count = 0;
    let dumped = netfilter.dump(GET, 0, &[], |_, attributes| {
        if is_translated(attributes) {
            count += 1;
        }
    });
    match or_absent(dumped.map(Some))? {
        Some(()) => Ok(count),
        None => tracked(Path::new(TRACKED)),
    }
}

fn tracked(file: &Path) -> io::Result<usize> {
    match fs::read_to_string(file) {
        Ok(text) => text.trim().parse().map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

fn is_translated(bytes: &[u8]) -> bool {
    // CTA_STATUS; CTA_PROTOINFO, in it CTA_PROTOINFO_TCP and CTA_PROTOINFO_TCP_STATE
    let status = find(bytes, 3).and_then(big_endian).unwrap_or(0);
    let state = find(bytes, 4).and_then(|info| find(find(info, 1)?, 1)?.first().copied());
    status & TRANSLATED != 0 && state.is_none_or(|state| (TCP_SYN_RECV..TCP_TIME_WAIT).contains(&state))
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    #[test]
    fn each_tracked_connection_may_be_translated_where_the_kernel_does_not_say() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("count");
        assert_eq!(tracked(&file).unwrap(), 0, "nothing is tracked");
        fs::write(&file, "12\n").unwrap();
        assert_eq!(tracked(&file).unwrap(), 12);
    }

    #[test]
    fn what_has_ended_or_not_begun_or_goes_where_it_was_sent_does_not_count() {
        let connection = |status: u32, state: u8| {
            let tcp = nested(4, &[nested(1, &[attribute(1, &[state])])]);
            [attribute(3, &status.to_be_bytes()), tcp].concat()
        };
        assert!(is_translated(&connection(TRANSLATED | 1, 3)));
        assert!(!is_translated(&connection(TRANSLATED | 1, 7)));
        assert!(!is_translated(&connection(TRANSLATED | 1, 1)));
        assert!(!is_translated(&connection(1, 3)));
        assert!(
            is_translated(&attribute(3, &TRANSLATED.to_be_bytes())),
            "a datagram's"
        );
    }
}
