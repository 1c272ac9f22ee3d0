//! VERSION: which versions of the specification are served. It works without any configuration.

use cni_plugin::SpecVersion;
use serde_json::{Value, json};

/// The configuration's version is echoed, as the specification has it; without one our newest stands in.
pub(crate) fn run(stdin: &[u8]) -> Value {
    let config: Value = serde_json::from_slice(stdin).unwrap_or_default();
    let asked = config
        .get("cniVersion")
        .and_then(Value::as_str)
        .filter(|version| !version.is_empty());
    json!({
        "cniVersion": asked.unwrap_or(SpecVersion::NEWEST.as_str()),
        "supportedVersions": SpecVersion::ALL.map(SpecVersion::as_str),
    })
}
