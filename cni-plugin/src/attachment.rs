//! What names one interface of one container, and the host-side name that follows from it.

use fnv::FnvHasher;
use serde::{Deserialize, Serialize};
use std::hash::Hasher;

/// One interface of one container, as CNI names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attachment {
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
}

impl Attachment {
    pub fn new(container_id: impl Into<String>, ifname: impl Into<String>) -> Self {
        Self {
            container_id: container_id.into(),
            ifname: ifname.into(),
        }
    }

    /// The name of the host's end of this attachment's veth pair.
    pub fn host_ifname(&self) -> String {
        host_ifname(&self.container_id, &self.ifname)
    }
}

/// The host-side name for interface `ifname` of container `container_id`: `mr` and 11 hex digits.
///
/// It depends on nothing else, so DEL finds the device without any state, and it is the same in every release.
pub fn host_ifname(container_id: &str, ifname: &str) -> String {
    let mut hasher = FnvHasher::default();
    hasher.write(container_id.as_bytes());
    // Neither name can contain a zero byte, so the pair cannot be split in two ways.
    hasher.write(&[0]);
    hasher.write(ifname.as_bytes());
    let hash = hasher.finish();
    let folded = (hash ^ (hash >> 44)) & 0xfff_ffff_ffff;
    format!("mr{folded:011x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_name_is_frozen() {
        assert_eq!(host_ifname("c0ffee", "eth0"), "mrfd802e5d180");
    }

    #[test]
    fn names_fit_an_interface_and_differ() {
        let names: HashSet<String> = (0..20_000)
            .map(|n| host_ifname(&format!("container-{n}"), "eth0"))
            .collect();
        assert_eq!(names.len(), 20_000);
        assert!(
            names
                .iter()
                .all(|name| name.len() == 13 && name.starts_with("mr"))
        );
        assert_ne!(host_ifname("a", "beth0"), host_ifname("ab", "eth0"));
    }
}
