//! The kinds of our own: group `millrace.dev`.
//!
//! A kind is a Rust type. Its schema, with rules that the API server checks (CEL), its columns and its names are derived
//! from that type, printed by `millrace crds`, and kept in `cni-agent/deploy/crds`; a test compares the two. What the
//! server cannot check, the agent does: a bad object changes nothing, the last good version stays in force, and a
//! condition in its status says why.
//!
//! # Versions
//!
//! - A kind begins as `v1alpha1`. Within a version fields are only added, always optional, and their absence means what it
//!   meant before the field was there. An unknown field is dropped by the server and so has no effect: a field must
//!   never narrow what another one allows, because an older agent would not see it.
//! - A field gets another meaning only in another version. Then both versions are served, the older one stays the stored
//!   one for a release, so that going back is possible, and the two are kept equal in what they can say: conversion
//!   is by `strategy: None` as long as only names of versions differ. Where shapes differ, a webhook would put a pod
//!   between the API server and every object, also while that pod has no network; so the newer version gets a new field
//!   beside the old one, and the agent understands both.
//! - Agents of two neighbouring releases run side by side during an update. An agent watches the oldest version that is
//!   still served, and a release that drops a version comes one release after the one that ceased to store it.
//! - CRDs older than the agent lack fields: those have their defaults, and the agent says which; CRDs that are absent are
//!   reported, and the settings of the file hold.

mod config;
mod review;
mod services;

use kube::CustomResourceExt;

pub(super) use config::{MillraceConfig, MillraceConfigObject, PLURAL};
pub(in crate::source) use review::Review;
pub(super) use review::publish;

/// All of them as YAML documents, as `kubectl apply -f` takes them. An error is one of the serialization.
pub fn yaml() -> Result<String, serde_saphyr::ser::Error> {
    let definitions = [MillraceConfig::crd()];
    let documents = definitions.iter().map(serde_saphyr::to_string);
    Ok(documents.collect::<Result<Vec<_>, _>>()?.join("---\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deployed_definitions_are_these() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/crds/millrace.dev.yaml");
        let deployed = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(
            deployed,
            yaml().unwrap(),
            "write them again with `cargo xtask crds`"
        );
    }
}
