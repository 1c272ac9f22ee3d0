//! A container's network namespace.

use super::failed;
use cni_plugin::{CniError, code};
use nix::sched::{CloneFlags, setns};
use std::{fs::File, os::unix::fs::MetadataExt};

const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace that stays alive while this is held.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) file: File,
    own: File,
    path: String,
}

impl Namespace {
    /// Opens `CNI_NETNS`, which must not be the namespace of the plugin: its host side would be the pod's side.
    pub(crate) fn open(path: &str) -> Result<Self, CniError> {
        let file = File::open(path).map_err(|error| {
            CniError::new(code::INVALID_ENVIRONMENT, "invalid environment variables")
                .with_details(format!("CNI_NETNS \"{path}\" cannot be opened: {error}"))
        })?;
        let own = File::open(OWN)
            .map_err(|error| failed("cannot open the plugin's own network namespace", error))?;
        let identity = |file: &File| file.metadata().map(|data| (data.dev(), data.ino()));
        match (identity(&file), identity(&own)) {
            (Ok(theirs), Ok(ours)) if theirs == ours => Err(CniError::new(
                code::NETNS_IS_OWN,
                format!("CNI_NETNS \"{path}\" is the network namespace that the plugin runs in"),
            )),
            (Ok(_), Ok(_)) => Ok(Self {
                file,
                own,
                path: path.to_owned(),
            }),
            (Err(error), _) | (_, Err(error)) => Err(failed("cannot compare network namespaces", error)),
        }
    }

    /// Does `work` inside. The plugin has one thread, so nothing else changes its namespace meanwhile.
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, CniError> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|error| {
            CniError::new(code::INVALID_ENVIRONMENT, "invalid environment variables")
                .with_details(format!("CNI_NETNS \"{}\" cannot be entered: {error}", self.path))
        })?;
        let outcome = work();
        setns(&self.own, CloneFlags::CLONE_NEWNET)
            .map_err(|error| failed("cannot return from the container's network namespace", error))?;
        Ok(outcome)
    }
}
