//! The privileges of the agent, in one place.
//!
//! | capability | for |
//! |---|---|
//! | `CAP_BPF` | creating maps, loading programs, pins |
//! | `CAP_NET_ADMIN` | classifiers, links, devices, routes, `/proc/sys/net` |
//! | `CAP_PERFMON` | without it the verifier refuses what classifiers need: arithmetic on packet pointers |
//!
//! Everything else is given up before the first thread starts. `CAP_SYS_ADMIN` is never needed: the BPF file system is
//! mounted by the host, links are found by their pins and not by ids, and pods' namespaces are the plugin's business.

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};

/// What the agent keeps.
pub const NEEDED: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
];

/// Why privileges could not be reduced.
#[derive(Debug, thiserror::Error)]
pub enum CapabilityError {
    #[error("the agent lacks {0}; add it to securityContext.capabilities, or run as root")]
    Missing(String),
    #[error("capabilities cannot be read or set: {0}")]
    Failed(#[from] CapsError),
}

/// Gives up everything but [`NEEDED`], for this thread and all that it will start.
pub fn reduce() -> Result<(), CapabilityError> {
    let held = caps::read(None, CapSet::Permitted)?;
    let missing: Vec<String> = NEEDED
        .iter()
        .filter(|needed| !held.contains(needed))
        .map(ToString::to_string)
        .collect();
    if !missing.is_empty() {
        return Err(CapabilityError::Missing(missing.join(", ")));
    }
    let needed: CapsHashSet = NEEDED.into_iter().collect();
    // The bounding set first: dropping from it takes a capability (SETPCAP) that is about to go.
    if held.contains(&Capability::CAP_SETPCAP) {
        caps::set(None, CapSet::Effective, &held)?;
        for capability in caps::all().difference(&needed) {
            // A capability that this kernel does not know is not in its bounding set.
            let _ = caps::drop(None, CapSet::Bounding, *capability);
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::set(None, CapSet::Effective, &needed)?;
    caps::set(None, CapSet::Permitted, &needed)?;
    caps::clear(None, CapSet::Inheritable)?;
    Ok(())
}
