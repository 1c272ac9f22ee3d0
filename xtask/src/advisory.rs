//! Known vulnerabilities of what is linked in, from a copy of the RustSec database on this machine.
//!
//! Nothing is fetched: a check that needs the network says something else every day. Without the tool or a copy of the
//! database the check says that it was not done, and how it could be.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::process::{cargo, cargo_home, find, run, step};

/// A way to look the advisories up.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// cargo-audit over this folder.
    Audit(PathBuf),
    /// cargo-deny, which knows its folders itself.
    Deny,
}

/// `Err`: what is missing to check them.
pub(crate) fn check() -> Result<Result<()>, String> {
    let has = |tool: &str| find(tool).is_some();
    let way = choose(&cargo_home().unwrap_or_default(), &has);
    let way = way.inspect_err(|missing| step(format_args!("advisories: NOT CHECKED, {missing}")))?;
    step("advisories");
    Ok(run(&mut way.command()))
}

fn choose(home: &Path, has: &dyn Fn(&str) -> bool) -> Result<Way, String> {
    let database = home.join("advisory-db");
    let filled = |folder: &Path| {
        folder
            .read_dir()
            .is_ok_and(|mut entries| entries.next().is_some())
    };
    if has("cargo-audit") && filled(&database) {
        return Ok(Way::Audit(database));
    }
    if has("cargo-deny") && filled(&home.join("advisory-dbs")) {
        return Ok(Way::Deny);
    }
    Err(if has("cargo-audit") || has("cargo-deny") {
        format!(
            "there is no copy of the database in {}: `git clone https://github.com/RustSec/advisory-db` there",
            database.display()
        )
    } else {
        "neither cargo-audit nor cargo-deny is installed: `cargo install cargo-audit`".to_owned()
    })
}

impl Way {
    fn command(&self) -> Command {
        let mut cargo = cargo();
        match self {
            // An old copy is better than none.
            Self::Audit(database) => cargo
                .args(["audit", "--no-fetch", "--stale", "--db"])
                .arg(database),
            Self::Deny => cargo.args(["deny", "--offline", "check", "--disable-fetch", "advisories"]),
        };
        cargo
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_tool_and_a_database_are_both_needed() {
        let home = tempfile::tempdir().unwrap();
        let (none, audit, deny) = (
            |_: &str| false,
            |tool: &str| tool == "cargo-audit",
            |tool: &str| tool == "cargo-deny",
        );
        assert!(choose(home.path(), &none).unwrap_err().contains("cargo install"));
        assert!(choose(home.path(), &audit).unwrap_err().contains("git clone"));
        let database = home.path().join("advisory-db");
        fs::create_dir_all(database.join("crates")).unwrap();
        assert!(choose(home.path(), &none).is_err());
        assert_eq!(choose(home.path(), &audit), Ok(Way::Audit(database)));
        fs::create_dir_all(home.path().join("advisory-dbs/github")).unwrap();
        assert_eq!(choose(home.path(), &deny), Ok(Way::Deny));
    }
}
