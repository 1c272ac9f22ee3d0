//! The CNI configuration that the agent writes for the container runtime.

use std::path::PathBuf;

use cni_plugin::SpecVersion;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::check::Problems;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct CniConfig {
    /// The agent writes the configuration as soon as it can serve pods. Otherwise somebody else does. Left out: where an API
    /// server says what the cluster is.
    pub install: Option<bool>,
    /// Where the runtime finds it. The first one of its folder, in the order of names, counts.
    pub conflist: PathBuf,
    pub on_exit: OnExit,
    /// Configurations of other networks in that folder get another name, so that the runtime does not see them.
    pub move_others_aside: bool,
    /// The version of the specification that the configuration follows. Empty: the newest that the runtime and the chained
    /// plugins are sure to understand.
    pub cni_version: String,
    /// Plugins after ours, each as its own configuration has it. Pods' packets pass the host's stack if there are any.
    pub chained: Vec<Map<String, Value>>,
}

impl Default for CniConfig {
    fn default() -> Self {
        Self {
            install: None,
            conflist: "/etc/cni/net.d/05-millrace.conflist".into(),
            on_exit: OnExit::default(),
            move_others_aside: false,
            cni_version: String::new(),
            chained: Vec::new(),
        }
    }
}

/// What becomes of the configuration when the agent ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExit {
    /// Pods that start meanwhile wait for the next agent.
    #[default]
    Keep,
    /// The runtime says that the node has no network.
    Withdraw,
}

impl CniConfig {
    /// containerd before 2.0 refuses 1.1.0, and so do the reference plugins before their release 1.5.
    pub fn version(&self) -> &str {
        match self.cni_version.as_str() {
            "" => SpecVersion::V1_0_0.as_str(),
            chosen => chosen,
        }
    }

    /// What a runtime that knows how to choose, as all that know 1.1.0 do, may take instead.
    pub fn versions(&self) -> Option<[SpecVersion; 2]> {
        let free = self.cni_version.is_empty() && self.chained.is_empty();
        free.then_some([SpecVersion::V1_0_0, SpecVersion::NEWEST])
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        let is_list = self.conflist.extension().is_some_and(|end| end == "conflist");
        if self.conflist.is_relative() || !is_list {
            problems.add(
                "cni.conflist",
                format!("{} cannot be found by a runtime", self.conflist.display()),
                "write it like /etc/cni/net.d/05-millrace.conflist",
            );
        }
        if let Err(error) = SpecVersion::of_config(Some(self.version())) {
            problems.add("cni.cniVersion", error.msg, error.details);
        }
        let nameless = |plugin: &Map<String, Value>| !plugin.get("type").is_some_and(Value::is_string);
        if self.chained.iter().any(nameless) {
            problems.add(
                "cni.chained",
                "a plugin has no type",
                "write each like {type: portmap, capabilities: {portMappings: true}}",
            );
        }
    }
}
