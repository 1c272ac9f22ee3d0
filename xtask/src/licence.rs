//! The licences and origins of everything that is linked in.

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::process::{cargo, output};

/// What may be linked into binaries that are distributed under MIT or Apache-2.0.
const ALLOWED: [&str; 9] = [
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

const PLATFORM: &str = "x86_64-unknown-linux-gnu";

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// `None` for a package of this workspace.
    source: Option<String>,
}

/// Every dependency has an allowed licence and comes from the registry.
pub(crate) fn check() -> Result<()> {
    let metadata = ["metadata", "--format-version", "1", "--locked"];
    // What only other systems need is never linked in.
    let text = output(cargo().args(metadata).args(["--filter-platform", PLATFORM]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("parsing the output of `cargo metadata`")?;
    let complaints: Vec<_> = metadata.packages.iter().filter_map(complaint).collect();
    if complaints.is_empty() {
        return Ok(());
    }
    bail!(
        "dependencies that cannot be shipped:\n  {}",
        complaints.join("\n  ")
    )
}

fn complaint(package: &Package) -> Option<String> {
    let Package {
        name,
        version,
        license,
        source,
    } = package;
    if source
        .as_ref()
        .is_some_and(|source| !source.starts_with("registry+"))
    {
        return Some(format!(
            "{name} {version} does not come from the registry; depend on a release"
        ));
    }
    let Some(license) = license else {
        return Some(format!("{name} {version} names no licence"));
    };
    match permitted(license) {
        Ok(true) => None,
        Ok(false) => Some(format!(
            "{name} {version}: `{license}` is not among {}",
            ALLOWED.join(", ")
        )),
        Err(error) => Some(format!("{name} {version}: `{license}`: {error}")),
    }
}

/// Does one way of reading the expression need allowed licences only? `/` is how old crates wrote OR.
fn permitted(expression: &str) -> Result<bool> {
    let expression = spdx::Expression::parse_mode(expression, spdx::ParseMode::LAX)?;
    // An exception such as LLVM's only adds permissions.
    Ok(expression.evaluate(|wanted| wanted.license.id().is_some_and(|id| ALLOWED.contains(&id.name))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_allowed_alternative_is_enough_and_each_part_of_an_and_is_needed() {
        for allowed in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-2.0-only OR MIT",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(permitted(allowed).unwrap(), "{allowed}");
        }
        for refused in ["GPL-2.0-only", "MIT AND MPL-2.0", "SSPL-1.0"] {
            assert!(!permitted(refused).unwrap(), "{refused}");
        }
        assert!(permitted("no licence at all").is_err());
    }

    #[test]
    fn a_dependency_says_its_licence_and_comes_from_the_registry() {
        let package = |license: Option<&str>, source: &str| Package {
            name: "thing".into(),
            version: "1.0.0".into(),
            license: license.map(str::to_owned),
            source: Some(source.into()),
        };
        assert_eq!(complaint(&package(Some("MIT"), "registry+x")), None);
        assert!(
            complaint(&package(None, "registry+x"))
                .unwrap()
                .contains("names no licence")
        );
        assert!(
            complaint(&package(Some("MIT"), "git+x"))
                .unwrap()
                .contains("registry")
        );
    }
}
