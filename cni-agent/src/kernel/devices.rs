//! The host's devices: listed, watched, and the two kinds that are Millrace's own.

mod list;
mod own;
mod watch;

pub use list::list;
pub use own::{raise, remove, set_vxlan, veths, vxlan};
pub use watch::Watch;

/// Whether a name is that of a pod's host side: `mr` and 11 hex digits.
pub fn is_pod_device(name: &str) -> bool {
    name.strip_prefix("mr").is_some_and(|hash| {
        hash.len() == 11
            && hash
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}
