//! Where a cluster's things lie on this machine, by the cluster's name.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};

use super::plan::{Node, Plan};
use crate::workspace;

/// Where `ip netns` looks for names.
pub(crate) const NAMESPACES: &str = "/run/netns";

/// A cluster by its name, which its namespaces and cgroups bear: clusters of other names live beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place(String);

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if (1..=12).contains(&text.len()) && text.bytes().all(good) {
            return Ok(Self(text.to_owned()));
        }
        // No dash: it separates the cluster's name from what follows.
        Err("a cluster's name is 1 to 12 lower-case letters and digits".to_owned())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Place {
    pub(crate) fn folder(&self) -> PathBuf {
        workspace::target().join("cluster").join(&self.0)
    }

    /// Keys, certificates and kubeconfigs.
    pub(crate) fn keys(&self) -> PathBuf {
        self.folder().join("keys")
    }

    /// For programs on this machine; the API server is reached through its loopback.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder().join("kubeconfig")
    }

    /// For programs in the fabric's namespace and in the nodes.
    pub(crate) fn fabric_kubeconfig(&self) -> PathBuf {
        self.keys().join("admin.kubeconfig")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.folder().join("logs")
    }

    pub(crate) fn log(&self, program: &str) -> PathBuf {
        self.logs().join(program).with_extension("log")
    }

    /// What outlives a node's power cycle.
    pub(crate) fn disk(&self, node: Node) -> PathBuf {
        self.folder().join("nodes").join(node.to_string())
    }

    /// The network namespace in which the control plane runs and to which all nodes are joined.
    pub(crate) fn fabric(&self) -> String {
        self.of("fabric")
    }

    /// The name of a node's network namespace and of its cgroup.
    pub(crate) fn node(&self, node: Node) -> String {
        self.of(&node.to_string())
    }

    fn of(&self, part: &str) -> String {
        format!("{}-{part}", self.0)
    }

    /// Whether a namespace or cgroup belongs to this cluster.
    pub(crate) fn owns(&self, name: &str) -> bool {
        name.strip_prefix(&self.0)
            .is_some_and(|rest| rest.starts_with('-'))
    }

    fn plan_file(&self) -> PathBuf {
        self.folder().join("plan.json")
    }

    /// The plan of the cluster that is up.
    pub(crate) fn plan(&self) -> Result<Plan> {
        let path = self.plan_file();
        let text = fs::read(&path).with_context(|| {
            format!("no cluster `{self}` is up; bring it up with `cargo xtask cluster up`")
        })?;
        serde_json::from_slice(&text).with_context(|| format!("parsing {}", path.display()))
    }

    pub(crate) fn write_plan(&self, plan: &Plan) -> Result<()> {
        write(&self.plan_file(), serde_json::to_vec_pretty(plan)?)
    }

    /// A node of the cluster that is up, by its name.
    pub(crate) fn find(&self, name: &str) -> Result<Node> {
        let plan = self.plan()?;
        let known = plan.nodes().map(|node| node.to_string()).collect::<Vec<_>>();
        plan.nodes()
            .find(|node| node.to_string() == name)
            .with_context(|| {
                format!(
                    "no node `{name}` in cluster `{self}`; it has: {}",
                    known.join(" ")
                )
            })
    }
}

/// Writes a file and makes the folder that it lies in.
pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_be_mistaken_is_refused() {
        assert!(Place::from_str("millrace").is_ok());
        for bad in ["", "a-b", "A", "a/b", "waytoolonganame"] {
            assert!(Place::from_str(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cluster_owns_what_bears_its_name_and_no_longer_one() {
        let place = Place::from_str("mill").unwrap();
        assert!(place.owns(&place.fabric()));
        assert!(!place.owns("millrace-n1"));
        assert!(!place.owns("mill"));
    }
}
