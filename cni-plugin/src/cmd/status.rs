//! STATUS: could an ADD be served now?

use super::Call;
use cni_plugin::{CniError, SpecVersion, code, rpc::Status};
use std::time::Duration;

/// Runtimes ask every few seconds, so an agent that hangs is reported soon.
const MOST: Duration = Duration::from_secs(5);

pub(crate) fn run(call: &Call<'_>) -> Result<(), CniError> {
    call.needs(SpecVersion::V1_1_0)?;
    let ipam = call.config.ipam()?;
    let asked = call.agent(MOST).and_then(|mut agent| {
        agent.status(Status {
            network: call.config.name.clone(),
        })
    });
    asked.map_err(|mut error| {
        // Without its agent a node cannot take pods; the pods that it has need no agent.
        if !matches!(error.code, code::NOT_AVAILABLE | code::NOT_AVAILABLE_IMPAIRED) {
            error.code = code::NOT_AVAILABLE;
        }
        error
    })?;
    match call.delegate(&ipam)? {
        Some(delegate) => delegate.forward_if_known("STATUS"),
        None => Ok(()),
    }
}
