//! Go programs: one recipe for all of them, so that what two share is compiled once.
//!
//! The recipe is the module `tests/kubernetes`: its `go.mod` names the versions of Kubernetes and of the tools that Debian
//! does not have, and its folders hold those programs that are put together here.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{command, find};
use crate::workspace;

pub(crate) fn recipe() -> PathBuf {
    workspace::root().join("tests/kubernetes")
}

/// `go` in the recipe's folder, with its caches in this tree.
pub(crate) fn go() -> Result<Command> {
    let mut go = command(find("go").context("go is not installed; run `cargo xtask setup cluster`")?);
    let caches = workspace::tools().join("go");
    go.current_dir(recipe())
        .env("GOPATH", &caches)
        .env("GOCACHE", caches.join("cache"));
    // The module cache is read-only by default, and `cargo clean` would fail on it. Nobody debugs these programs.
    go.env(
        "GOFLAGS",
        "-modcacherw -mod=readonly -trimpath -buildvcs=false -gcflags=all=-dwarf=false",
    );
    // A fifth of the compiler's time is its own collector's.
    go.env("GOGC", "400");
    // Static programs, so that they run in any image; the compiler that the recipe asks for, if Debian's is older.
    go.env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "auto");
    Ok(go)
}
