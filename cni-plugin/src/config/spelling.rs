//! Keys that are nearly, but not quite, keys of ours.

use super::invalid;
use crate::CniError;

const OURS: [&str; 7] = [
    "agentSocket",
    "agentTimeout",
    "stateDir",
    "rcuExpedited",
    "viaStack",
    "mtu",
    "logLevel",
];

/// The specification's own, none of which is a misspelling of anything.
const RESERVED: [&str; 12] = [
    "cniVersion",
    "name",
    "type",
    "args",
    "ipam",
    "dns",
    "capabilities",
    "runtimeConfig",
    "prevResult",
    "ipMasq",
    "plugins",
    "disableCheck",
];

pub(super) fn check<'a>(keys: impl Iterator<Item = &'a String>) -> Result<(), CniError> {
    for key in keys.filter(|key| !OURS.contains(&key.as_str()) && !RESERVED.contains(&key.as_str())) {
        if let Some(meant) = OURS.into_iter().find(|ours| is_near(key, ours)) {
            return Err(invalid(
                key,
                &format!("is not a key of millrace-cni; do you mean `{meant}`?"),
            ));
        }
    }
    Ok(())
}

/// Equal but for case and separators, or, where a key is long enough for that to mean something, two letters away.
fn is_near(key: &str, ours: &str) -> bool {
    let plain = |text: &str| {
        text.replace(|letter: char| !letter.is_ascii_alphanumeric(), "")
            .to_ascii_lowercase()
    };
    let (key, ours) = (plain(key), plain(ours));
    // Keys come from outside and may be huge; only those of a near length are compared letter by letter.
    key == ours
        || (ours.len() >= 8 && key.len().abs_diff(ours.len()) <= 2 && strsim::levenshtein(&key, &ours) <= 2)
}
