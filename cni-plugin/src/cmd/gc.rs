//! GC: release every attachment of this network that the runtime does not list.

use super::{Call, summary};
use crate::kernel::host;
use cni_plugin::{CniError, SpecVersion, rpc::Gc};
use std::time::Duration;

const MOST: Duration = Duration::from_secs(60);

pub(crate) fn run(call: &Call<'_>) -> Result<(), CniError> {
    call.needs(SpecVersion::V1_1_0)?;
    let valid = call.config.valid_attachments()?;
    let ipam = call.config.ipam()?;
    let mut problems = Vec::new();
    let request = Gc {
        network: call.config.name.clone(),
        valid,
    };
    match call.agent(MOST).and_then(|mut agent| agent.gc(request)) {
        Ok(collected) => {
            let removals = collected
                .released
                .iter()
                .map(|attachment| host::remove_pair(&attachment.host_ifname()));
            problems.extend(removals.filter_map(Result::err));
        }
        Err(error) => problems.push(error),
    }
    let forwarded = call.delegate(&ipam).and_then(|delegate| match delegate {
        Some(delegate) => delegate.forward_if_known("GC"),
        None => Ok(()),
    });
    problems.extend(forwarded.err());
    summary(problems)
}
