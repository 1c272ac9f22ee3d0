//! What a node's command line says.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Node, complaint};

/// Dropped packets by reason and direction (`source_address/egress`), only those that are not 0.
pub type Drops = BTreeMap<String, u64>;

impl Node {
    /// What `millrace ARGS --json` says.
    pub fn ask<const N: usize>(&self, arguments: [&str; N]) -> Result<Value> {
        let mut command = self.millrace(arguments);
        let output = command.arg("--json").output().context("start millrace")?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`millrace {}`: {}", arguments.join(" "), complaint(&output)))
    }

    /// What was dropped so far, without what every system says on its link of its own accord (multicast listener
    /// reports), which comes at any time. On a node without IPv6 that is of a family that the node does not serve.
    pub fn drops(&self) -> Result<Drops> {
        let unserved = !self.families.v6();
        let mut drops = self.all_drops()?;
        drops.retain(|reason, _| {
            let told = unserved && reason.starts_with("family_disabled/");
            !told && !reason.starts_with("link_local/")
        });
        Ok(drops)
    }

    pub fn all_drops(&self) -> Result<Drops> {
        let answer = self.ask(["drops"])?;
        let dropped = answer["dropped"]
            .as_array()
            .context("`millrace drops --json` has no list `dropped`")?;
        let mut drops = Drops::new();
        for count in dropped {
            let text = |key: &str| count[key].as_str().unwrap_or_default();
            let packets = count["packets"].as_u64().context("packets")?;
            if packets > 0 {
                drops.insert(format!("{}/{}", text("reason"), text("direction")), packets);
            }
        }
        Ok(drops)
    }

    /// The entries of a map, as `millrace dump` shows them, in a fixed order.
    pub fn dump(&self, map: &str) -> Result<Vec<String>> {
        let entries = self.ask(["dump", map])?;
        let mut lines: Vec<String> = entries
            .as_array()
            .context("a list")?
            .iter()
            .map(Value::to_string)
            .collect();
        lines.sort();
        Ok(lines)
    }

    /// Everything that the agent writes into the kernel for pods and ways: map entries, and the names of links.
    pub fn intent(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for map in [
            "addresses",
            "endpoints",
            "peers",
            "routes",
            "devices",
            "rule_sets",
            "classes",
            "cidrs",
            "settings",
        ] {
            all.extend(self.dump(map)?.into_iter().map(|entry| format!("{map} {entry}")));
        }
        all.extend(self.links()?);
        Ok(all)
    }

    /// Which programs are attached: the pinned links, or where the kernel has none for this, the filters of our name.
    pub fn links(&self) -> Result<Vec<String>> {
        let pinned = self.pinned_links();
        if pinned.is_empty() {
            self.filters()
        } else {
            Ok(pinned)
        }
    }

    fn filters(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for device in self.namespace.devices()? {
            for side in ["ingress", "egress"] {
                let mut tc = self.namespace.command("tc");
                let output = tc.args(["filter", "show", "dev", &device, side]).output()?;
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let names = text
                    .split_whitespace()
                    .filter_map(|word| word.strip_prefix("millrace:"));
                found.extend(names.map(str::to_owned));
            }
        }
        found.sort();
        Ok(found)
    }

    fn pinned_links(&self) -> Vec<String> {
        let mut found = Vec::new();
        for kind in ["endpoint", "netdev"] {
            for owner in names(&self.pins().join("links").join(kind)) {
                for program in names(&self.pins().join("links").join(kind).join(&owner)) {
                    found.push(format!("{kind}/{owner}/{program}"));
                }
            }
        }
        found
    }

    /// Connections that the programs know.
    pub fn connections(&self) -> Result<Vec<Value>> {
        let list = self.ask(["conntrack", "list"])?;
        Ok(list.as_array().context("a list")?.clone())
    }

    /// Devices with the name of a pod's host side.
    pub fn pod_devices(&self) -> Result<Vec<String>> {
        let mut devices = self.namespace.devices()?;
        devices.retain(|name| name.len() == 13 && name.starts_with("mr"));
        Ok(devices)
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
