//! Kubernetes' programs, compiled from Go modules by name and kept by version.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::go::{go, recipe};
use crate::oci::hex;
use crate::process::{output, run, step};
use crate::workspace;

/// A set of programs that are compiled in one go, so that what they share is compiled once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set {
    /// (name of the program, package)
    programs: &'static [(&'static str, &'static str)],
    /// A test program, which the compiler makes by another command.
    test: Option<(&'static str, &'static str)>,
    minutes: &'static str,
}

/// What a cluster is made of, and the programs in its images.
pub(crate) const CLUSTER: Set = Set {
    programs: &[
        ("etcd", "./etcd"),
        ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
        (
            "kube-controller-manager",
            "k8s.io/kubernetes/cmd/kube-controller-manager",
        ),
        ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
        ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
        ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
        ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
        ("coredns", "./coredns"),
        ("pause", "./pause"),
        ("agnhost", "k8s.io/kubernetes/test/images/agnhost"),
        (
            "regression-issue-74839",
            "k8s.io/kubernetes/test/images/regression-issue-74839",
        ),
    ],
    test: None,
    minutes: "six minutes",
};

/// Upstream's network specs and the program that runs them in parallel.
pub(crate) const E2E: Set = Set {
    programs: &[("ginkgo", "github.com/onsi/ginkgo/v2/ginkgo")],
    test: Some(("e2e.test", "./e2e")),
    minutes: "three minutes",
};

/// Where a program lies, once it is built.
pub(crate) fn program(name: &str) -> PathBuf {
    folder().join(name)
}

pub(super) fn folder() -> PathBuf {
    workspace::target().join("kubernetes").join(version())
}

/// Kubernetes' version, as the recipe has it.
pub(crate) fn version() -> &'static str {
    const RECIPE: &str = include_str!("../../../tests/kubernetes/go.mod");
    version_in(RECIPE).unwrap_or("unknown")
}

fn version_in(recipe: &str) -> Option<&str> {
    let mut words = recipe
        .lines()
        .map(str::split_whitespace)
        .map(|words| words.skip_while(|word| *word == "require"));
    words.find_map(|mut words| {
        let is_it = words.next() == Some("k8s.io/kubernetes");
        words.next().filter(|_| is_it)?.strip_prefix('v')
    })
}

/// The folder of a module among those that were fetched.
pub(crate) fn module(name: &str) -> Result<PathBuf> {
    #[derive(serde::Deserialize)]
    struct Module {
        #[serde(rename = "Dir")]
        folder: PathBuf,
    }
    // Not `list`, which names no folder of a module whose programs were kept and whose source was not.
    let about = output(go()?.args(["mod", "download", "-json", name]))?;
    let module: Module = serde_json::from_str(&about).with_context(|| format!("go mod download {name}"))?;
    Ok(module.folder)
}

impl Set {
    /// Compiles what is not there yet from this very recipe.
    pub(crate) fn build(self) -> Result<()> {
        let folder = folder();
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let recipe = fingerprint(&recipe())?;
        if self.is_built(&recipe) {
            return Ok(());
        }
        let lock = File::create(folder.join("lock")).context("creating a lock")?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
        if self.is_built(&recipe) {
            return Ok(());
        }
        let names: Vec<_> = self.names().collect();
        step(format_args!(
            "compiling Kubernetes {}: {}; {} on two cores, once",
            version(),
            names.join(" "),
            self.minutes
        ));
        let packages = self.programs.iter().map(|(_, package)| *package);
        run(go()?
            .args(["build", "-ldflags", &link_flags(version()), "-o"])
            .arg(&folder)
            .args(packages))?;
        if let Some((name, package)) = self.test {
            run(go()?
                .args(["test", "-c", "-ldflags", &link_flags(version()), "-o"])
                .arg(folder.join(name))
                .arg(package))?;
        }
        for name in names {
            fs::write(stamp(name), &recipe).with_context(|| format!("marking {name} as built"))?;
        }
        Ok(())
    }

    fn names(self) -> impl Iterator<Item = &'static str> {
        self.programs
            .iter()
            .copied()
            .chain(self.test)
            .map(|(name, _)| name)
    }

    fn is_built(self, recipe: &str) -> bool {
        self.names().all(|name| {
            program(name).exists() && fs::read_to_string(stamp(name)).is_ok_and(|of| of == recipe)
        })
    }
}

/// The recipe from which a program was built.
fn stamp(name: &str) -> PathBuf {
    folder().join(format!("{name}.recipe"))
}

/// Without symbols, which make two fifths of the file; with the version, which clients ask for.
fn link_flags(version: &str) -> String {
    let at = "k8s.io/component-base/version";
    let mut numbers = version.split('.');
    let (major, minor) = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    format!("-s -w -X {at}.gitVersion=v{version} -X {at}.gitMajor={major} -X {at}.gitMinor={minor}")
}

/// A digest of the recipe's files.
fn fingerprint(recipe: &Path) -> Result<String> {
    let mut files = Vec::new();
    let mut folders = vec![recipe.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = folder
            .read_dir()
            .with_context(|| format!("reading {}", folder.display()))?;
        for entry in entries {
            let path = entry
                .with_context(|| format!("reading {}", folder.display()))?
                .path();
            if path.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|end| ["go", "mod", "sum"].iter().any(|wanted| end == *wanted))
            {
                files.push(path);
            }
        }
    }
    files.sort();
    let mut digest = Sha256::new();
    for file in files {
        let content = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        digest.update(
            file.strip_prefix(recipe)
                .unwrap_or(&file)
                .as_os_str()
                .as_encoded_bytes(),
        );
        digest.update(content);
    }
    Ok(hex(&digest.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_recipes() {
        assert_eq!(version_in("require k8s.io/kubernetes v1.36.1\n"), Some("1.36.1"));
        assert_eq!(
            version_in("require (\n\tk8s.io/kubernetes v1.2.3\n)"),
            Some("1.2.3")
        );
        assert_eq!(version_in("tool k8s.io/kubernetes/cmd/kubelet"), None);
        assert!(version().starts_with("1.36."), "{}", version());
    }

    #[test]
    fn clients_are_told_the_version() {
        let flags = link_flags("1.36.1");
        assert!(
            flags.contains("gitVersion=v1.36.1 ") && flags.ends_with("gitMinor=36"),
            "{flags}"
        );
    }

    #[test]
    fn another_recipe_has_another_fingerprint() {
        let folder = std::env::temp_dir().join(format!("recipe-{}", std::process::id()));
        fs::create_dir_all(folder.join("etcd")).unwrap();
        fs::write(folder.join("go.mod"), "module a").unwrap();
        let first = fingerprint(&folder).unwrap();
        fs::write(folder.join("etcd/main.go"), "package main").unwrap();
        let second = fingerprint(&folder).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_ne!(first, second);
    }
}
