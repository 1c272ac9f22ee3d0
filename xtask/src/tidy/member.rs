//! Rules about the packages of the workspace.

use std::fs;

use anyhow::{Context, Result};
use toml::{Table, Value};

use crate::workspace;

/// Who may depend on whom. `tests` and `xtask` stand outside and may use all.
const DIRECTION: [(&str, &[&str]); 3] = [
    ("cni-ebpf", &[]),
    ("cni-plugin", &["cni-ebpf"]),
    ("cni-agent", &["cni-ebpf", "cni-plugin"]),
];
/// Outside the BPF target they define memcpy, memmove and memset in place of libc's.
const KERNEL_SIDE: [&str; 2] = ["aya-ebpf", "aya-log-ebpf"];
const KERNEL_TARGET: &str = "cfg(target_arch = \"bpf\")";
const INHERITED: [&str; 5] = ["version", "edition", "rust-version", "license", "publish"];
const DEPENDENCIES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

/// A package, by its manifest.
pub(super) struct Member {
    name: String,
    manifest: Table,
}

impl Member {
    pub(super) fn all() -> Result<Vec<Self>> {
        let members = table("Cargo.toml")?;
        let members = members["workspace"]["members"]
            .as_array()
            .context("Cargo.toml has no list of members")?;
        let folders = members.iter().filter_map(Value::as_str);
        folders
            .map(|folder| Self::from(table(&format!("{folder}/Cargo.toml"))?))
            .collect()
    }

    fn from(manifest: Table) -> Result<Self> {
        let name = manifest
            .get("package")
            .and_then(|package| package.get("name"))
            .and_then(Value::as_str);
        let name = name
            .context("a member's Cargo.toml has no package.name")?
            .to_owned();
        Ok(Self { name, manifest })
    }

    pub(super) fn check(&self, complaints: &mut Vec<String>) {
        let mut complain = |what: String| complaints.push(format!("{}/Cargo.toml: {what}", self.name));
        if !inherits(self.manifest.get("lints")) {
            complain("write `lints.workspace = true`".to_owned());
        }
        for key in INHERITED
            .into_iter()
            .filter(|key| !inherits(self.manifest["package"].get(key)))
        {
            complain(format!("write `{key}.workspace = true`"));
        }
        for (target, name, value) in self.dependencies() {
            if !inherits(Some(value)) {
                complain(format!(
                    "`{name}`: its version belongs in the workspace's Cargo.toml"
                ));
            }
            if KERNEL_SIDE.contains(&name) && target != Some(KERNEL_TARGET) {
                complain(format!(
                    "`{name}` may stand only under [target.'{KERNEL_TARGET}'.dependencies]"
                ));
            }
            if self.must_not_know(name) {
                complain(format!(
                    "`{name}`: dependencies go cni-ebpf <- cni-plugin <- cni-agent, never back"
                ));
            }
        }
    }

    fn must_not_know(&self, other: &str) -> bool {
        let is_ours = other.starts_with("cni-") || other == "xtask";
        DIRECTION
            .iter()
            .any(|(name, allowed)| *name == self.name && is_ours && !allowed.contains(&other))
    }

    /// (target, name, value) of every dependency of every kind.
    fn dependencies(&self) -> Vec<(Option<&str>, &str, &Value)> {
        let targets = self
            .manifest
            .get("target")
            .and_then(Value::as_table)
            .into_iter()
            .flatten();
        let of_targets =
            targets.filter_map(|(target, value)| Some((Some(target.as_str()), value.as_table()?)));
        let tables = of_targets.chain([(None, &self.manifest)]);
        let mut found = Vec::new();
        for (target, table) in tables {
            for kind in DEPENDENCIES {
                let entries = table.get(kind).and_then(Value::as_table).into_iter().flatten();
                found.extend(entries.map(|(name, value)| (target, name.as_str(), value)));
            }
        }
        found
    }
}

fn inherits(value: Option<&Value>) -> bool {
    value
        .and_then(|value| value.get("workspace"))
        .and_then(Value::as_bool)
        == Some(true)
}

fn table(path: &str) -> Result<Table> {
    let text = fs::read_to_string(workspace::root().join(path)).with_context(|| format!("reading {path}"))?;
    text.parse().with_context(|| format!("parsing {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[package]\nname = \"cni-plugin\"\nversion.workspace = true\nedition.workspace = true\n\
        rust-version.workspace = true\nlicense.workspace = true\npublish.workspace = true\n[lints]\nworkspace = true\n";

    fn complaints(manifest: &str) -> Vec<String> {
        let mut complaints = Vec::new();
        Member::from(manifest.parse().unwrap())
            .unwrap()
            .check(&mut complaints);
        complaints
    }

    #[test]
    fn members_inherit_lints_package_keys_and_versions() {
        assert!(complaints(GOOD).is_empty());
        assert_eq!(
            complaints(&GOOD.replace("[lints]\nworkspace = true\n", "")).len(),
            1
        );
        assert_eq!(
            complaints(&GOOD.replace("edition.workspace = true", "edition = \"2024\"")).len(),
            1
        );
        assert_eq!(
            complaints(&format!("{GOOD}[dependencies]\nserde = \"1\"\n")).len(),
            1
        );
        assert!(complaints(&format!("{GOOD}[dependencies]\nserde.workspace = true\n")).is_empty());
    }

    #[test]
    fn kernel_side_crates_stand_under_the_bpf_target_alone() {
        assert_eq!(
            complaints(&format!("{GOOD}[dependencies]\naya-ebpf.workspace = true\n")).len(),
            1
        );
        let gated = format!("{GOOD}[target.'{KERNEL_TARGET}'.dependencies]\naya-ebpf.workspace = true\n");
        assert!(complaints(&gated).is_empty());
    }

    #[test]
    fn dependencies_point_one_way() {
        assert_eq!(
            complaints(&format!("{GOOD}[dependencies]\ncni-agent.workspace = true\n")).len(),
            1
        );
        assert!(complaints(&format!("{GOOD}[dependencies]\ncni-ebpf.workspace = true\n")).is_empty());
    }
}
