//! `cargo xtask manifests`: the kustomize base, rendered from the chart.
//!
//! The chart is the one source. What `kubectl apply -k` applies is what `helm install` installs with default values. Only
//! the kinds come from elsewhere, from the agent's types, and the chart gets a copy.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process::{command, find, output};
use crate::workspace;

/// Write cni-agent/deploy/base from the chart in cni-agent/deploy/helm/millrace, and the kinds into the chart
#[derive(Debug, clap::Args)]
pub(crate) struct Manifests {
    /// Only compare; the exit status is 0 if the files are what the chart gives
    #[arg(long)]
    check: bool,
}

impl Manifests {
    pub(crate) fn run(&self) -> Result<()> {
        let files = rendered()?;
        if !self.check {
            return files.iter().try_for_each(File::write);
        }
        let stale: Vec<_> = files
            .iter()
            .filter(|file| !file.is_current())
            .map(|file| file.path.display().to_string())
            .collect();
        if stale.is_empty() {
            return Ok(());
        }
        bail!(
            "not what the chart gives: {}; change the chart and run `cargo xtask manifests`",
            stale.join(", ")
        )
    }
}

fn deploy() -> PathBuf {
    workspace::root().join("cni-agent/deploy")
}

/// Templates that the base takes over. Its ConfigMap is kustomize's own, which adds a hash to the name.
const TEMPLATES: [&str; 4] = [
    "serviceaccount.yaml",
    "rbac.yaml",
    "admission.yaml",
    "daemonset.yaml",
];

/// As `millrace crds` prints them.
const KINDS: &str = "crds/millrace.dev.yaml";

struct File {
    path: PathBuf,
    text: String,
}

impl File {
    fn write(&self) -> Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        fs::write(&self.path, &self.text).with_context(|| format!("writing {}", self.path.display()))
    }

    fn is_current(&self) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|text| text == self.text)
    }
}

fn rendered() -> Result<Vec<File>> {
    let helm = find("helm").context("helm is not installed; run `cargo xtask setup`")?;
    let chart = deploy().join("helm/millrace");
    let kinds = deploy().join(KINDS);
    let text = fs::read_to_string(&kinds).with_context(|| format!("reading {}", kinds.display()))?;
    let mut files = vec![File {
        path: chart.join(KINDS),
        text,
    }];
    for name in TEMPLATES {
        let mut template = command(&helm);
        template
            .args(["template", "millrace"])
            .arg(&chart)
            .args(["--namespace", "kube-system", "--show-only"])
            .arg(Path::new("templates").join(name));
        files.push(File {
            path: deploy().join("base").join(name),
            text: file(name, &output(&mut template)?),
        });
    }
    Ok(files)
}

/// What helm says of the origin gives way to what a reader should know.
fn file(name: &str, rendered: &str) -> String {
    let mut text = format!("# Rendered from ../helm/millrace/templates/{name} by `cargo xtask manifests`.\n");
    let documents = rendered
        .split("---\n")
        .filter(|document| !document.trim().is_empty());
    for (i, document) in documents.enumerate() {
        if i > 0 {
            text += "---\n";
        }
        let lines = document
            .trim_end()
            .lines()
            .filter(|line| !line.starts_with("# Source: "));
        lines.for_each(|line| {
            text += line;
            text += "\n";
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helms_marks_are_replaced() {
        let rendered = "---\n# Source: millrace/templates/a.yaml\na: 1\n---\n# Source: millrace/templates/a.yaml\nb: 2\n";
        assert_eq!(
            file("a.yaml", rendered),
            "# Rendered from ../helm/millrace/templates/a.yaml by `cargo xtask manifests`.\na: 1\n---\nb: 2\n"
        );
    }
}
