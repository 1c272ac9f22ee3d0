//! DEL: nothing of the attachment stays, whatever has happened to it before.
//!
//! The namespace is never entered: the host's end has a name that follows from the attachment, and removing it
//! removes both. Then the agent releases the endpoint, or the release is queued on disk for it. Then the
//! delegated IPAM plugin frees the addresses, which by now nobody uses. Each step is taken whatever became of the
//! others.

use super::{Call, summary};
use crate::{fault, kernel};
use cni_plugin::{Attachment, CniError, code, queue, rpc::Release};
use std::time::Duration;

/// Runtimes allow a minute for the whole chain; the queue makes a long wait needless.
const MOST: Duration = Duration::from_secs(15);

pub(crate) fn run(call: &Call<'_>, attachment: &Attachment) -> Result<(), CniError> {
    let mut problems = Vec::new();
    let mut attempt = |outcome: Result<(), CniError>| problems.extend(outcome.err());
    attempt(call.remove_pair(&attachment.host_ifname()));
    attempt(fault::at("del-link"));
    attempt(release(call, attachment));
    attempt(fault::at("del-release"));
    attempt(free_addresses(call));
    summary(problems)
}

fn free_addresses(call: &Call<'_>) -> Result<(), CniError> {
    match call.delegate(&call.config.ipam()?)? {
        Some(delegate) => delegate.forward("DEL"),
        None => Ok(()),
    }
}

/// Tells the agent, or leaves word for it.
pub(crate) fn release(call: &Call<'_>, attachment: &Attachment) -> Result<(), CniError> {
    let release = Release {
        network: call.config.name.clone(),
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
    };
    match call.agent(MOST) {
        Ok(mut agent) => match agent.release(release.clone()) {
            Err(error) if is_out_of_reach(&error) => enqueue(call, &release, &error).map(drop),
            outcome => outcome,
        },
        Err(error) => {
            let queued = enqueue(call, &release, &error)?;
            // The agent may have read its queue just before: it listens first, so now it would be reached.
            if let Ok(mut agent) = call.agent(MOST)
                && agent.release(release).is_ok()
            {
                return queue::remove(&queued)
                    .map_err(|error| kernel::failed("cannot empty the queue", error));
            }
            Ok(())
        }
    }
}

/// Not there, too slow, or of a release that does not understand us: in each case its successor will.
fn is_out_of_reach(error: &CniError) -> bool {
    matches!(error.code, code::TRY_AGAIN_LATER | code::PROTOCOL)
}

fn enqueue(call: &Call<'_>, release: &Release, reason: &CniError) -> Result<std::path::PathBuf, CniError> {
    tracing::info!(%reason, container = release.container_id, "the deletion is queued for the agent");
    fault::at("del-queue")?;
    queue::push(&call.config.state_dir, release).map_err(|error| {
        let folder = queue::folder(&call.config.state_dir);
        let what = format!("the deletion cannot be queued in {}", folder.display());
        kernel::failed(
            what,
            format!("{error}; and the agent cannot carry it out: {reason}"),
        )
    })
}
