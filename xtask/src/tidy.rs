//! `cargo xtask tidy`: the house rules that no compiler knows.

mod member;
mod source;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::workspace;
use member::Member;
use source::Source;

/// Check the rules of the house: sizes and names of files, what each package may depend on
///
/// The rules and their reasons are in the documentation of each check. Prints files that grow towards the limit.
#[derive(Debug, clap::Args)]
pub(crate) struct Tidy {}

impl Tidy {
    pub(crate) fn run(&self) -> Result<()> {
        for source in sources()?.iter().filter(|source| source.is_large()) {
            println!("large: {source}");
        }
        check()
    }
}

/// All complaints at once: a reader fixes them in one go.
pub(crate) fn check() -> Result<()> {
    let mut complaints = Vec::new();
    for source in sources()? {
        source.check(&mut complaints);
    }
    for member in Member::all()? {
        member.check(&mut complaints);
    }
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("rules of the house:\n  {}", complaints.join("\n  "))
}

fn sources() -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let absolute = workspace::root().join(&folder);
        let entries = absolute
            .read_dir()
            .with_context(|| format!("reading {}", absolute.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("reading {}", absolute.display()))?;
            let path = folder.join(entry.file_name());
            let name = entry.file_name();
            let is_ours = name != "target" && !name.as_encoded_bytes().starts_with(b".");
            if entry.path().is_dir() && is_ours {
                folders.push(path);
            } else if is_ours && Source::is_of_interest(&path) {
                sources.push(Source::read(path)?);
            }
        }
    }
    sources.sort();
    Ok(sources)
}
