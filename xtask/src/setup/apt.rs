//! Debian's package manager.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{command, run, shown, step};

/// A file of apt's sources and its text.
struct SourceFile {
    path: PathBuf,
    text: String,
}

impl SourceFile {
    /// Every file that apt reads on this machine.
    fn of_this_machine() -> Result<Vec<Self>> {
        let parts = Path::new("/etc/apt/sources.list.d")
            .read_dir()
            .into_iter()
            .flatten()
            .flatten();
        let mut paths: Vec<_> = parts.map(|part| part.path()).collect();
        paths.push("/etc/apt/sources.list".into());
        paths.retain(|path| {
            path.extension()
                .is_some_and(|end| end == "list" || end == "sources")
        });
        paths.sort();
        let existing = paths.into_iter().filter(|path| path.exists());
        let read = |path: PathBuf| {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            Ok(Self { path, text })
        };
        existing.map(read).collect()
    }

    fn is_stanzas(&self) -> bool {
        self.path.extension().is_some_and(|end| end == "sources")
    }

    fn serves(&self, source: &str, suite: &str) -> bool {
        let suites = if self.is_stanzas() {
            stanza_suites(source)
        } else {
            line_suites(source)
        };
        suites.iter().any(|name| name == suite)
    }

    fn has(&self, suite: &str) -> bool {
        self.sources().iter().any(|source| self.serves(source, suite))
    }

    /// Each source as text, without comments.
    fn sources(&self) -> Vec<String> {
        let lines = self
            .text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'));
        let bare = lines.collect::<Vec<_>>().join("\n");
        let separator = if self.is_stanzas() { "\n\n" } else { "\n" };
        bare.split(separator)
            .map(|source| source.trim().to_owned())
            .filter(|source| !source.is_empty())
            .collect()
    }
}

/// The source of another suite, made from the machine's source of `known`: same place, same key. The second part of the
/// pair is the file name's ending.
fn derive(files: &[SourceFile], known: &str, suite: &str) -> Result<(String, &'static str)> {
    for file in files {
        let Some(source) = file
            .sources()
            .into_iter()
            .find(|source| file.serves(source, known))
        else {
            continue;
        };
        return Ok(if file.is_stanzas() {
            (stanza_with_suite(&source, suite), "sources")
        } else {
            (line_with_suite(&source, known, suite), "list")
        });
    }
    bail!(
        "apt has no source of the suite `{known}` to derive `{suite}` from; add a source of `{suite}` to apt"
    )
}

/// The source of any suite, from where this machine has its own release.
pub(crate) fn derived(suite: &str) -> Result<(String, &'static str)> {
    derive(&SourceFile::of_this_machine()?, &codename()?, suite)
}

fn stanza_suites(stanza: &str) -> Vec<String> {
    let is_binary = stanza.lines().any(|line| {
        line.strip_prefix("Types:")
            .is_some_and(|types| types.contains("deb"))
    });
    let suites = stanza
        .lines()
        .find_map(|line| line.strip_prefix("Suites:"))
        .filter(|_| is_binary);
    suites
        .unwrap_or_default()
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

fn stanza_with_suite(stanza: &str, suite: &str) -> String {
    let replaced = stanza.lines().map(|line| match line.split_once(':') {
        Some(("Types", _)) => "Types: deb".to_owned(),
        Some(("Suites", _)) => format!("Suites: {suite}"),
        Some(("Components", _)) => "Components: main".to_owned(),
        _ => line.to_owned(),
    });
    replaced.collect::<Vec<_>>().join("\n") + "\n"
}

/// The words of a line, its options in brackets as one.
fn line_words(line: &str) -> Vec<&str> {
    let Some((head, rest)) = line.split_once('[') else {
        return line.split_whitespace().collect();
    };
    let Some((options, tail)) = rest.split_once(']') else {
        return Vec::new();
    };
    head.split_whitespace()
        .chain([options])
        .chain(tail.split_whitespace())
        .collect()
}

fn line_suites(line: &str) -> Vec<String> {
    let words = line_words(line);
    let suite = if line.contains('[') {
        words.get(3)
    } else {
        words.get(2)
    };
    suite
        .filter(|_| words.first() == Some(&"deb"))
        .map(|name| (*name).to_owned())
        .into_iter()
        .collect()
}

fn line_with_suite(line: &str, known: &str, suite: &str) -> String {
    let before = line.split(&format!(" {known} ")).next().unwrap_or(line);
    format!("{} {suite} main\n", before.trim_end())
}

/// The release's codename, `bookworm` for Debian 12.
fn codename() -> Result<String> {
    let path = "/etc/os-release";
    let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name
        .with_context(|| format!("{path} has no VERSION_CODENAME"))?
        .trim_matches('"')
        .to_owned())
}

/// One thing that only root may do.
enum Action {
    Write { path: String, text: String },
    Run(Command),
}

impl Action {
    fn perform(&mut self) -> Result<()> {
        match self {
            Self::Write { path, text } => {
                step(format_args!("writing {path}"));
                fs::write(&path, text).with_context(|| format!("writing {path}"))
            }
            Self::Run(command) => run(command),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { path, text } => write!(f, "write this to {path}:\n{text}"),
            Self::Run(command) => f.write_str(&shown(command)),
        }
    }
}

/// Installs packages, those of the second list from the backports because the release's own version will not do.
///
/// Without root nothing is done and the error says all that is to be done.
pub(super) fn install(release: &[&str], backports: &[&str]) -> Result<()> {
    let mut actions = plan(release, backports)?;
    if !actions.is_empty() && !is_root()? {
        let steps: Vec<_> = actions.iter().map(ToString::to_string).collect();
        bail!("installing packages needs root; as root:\n{}", steps.join("\n"));
    }
    actions.iter_mut().try_for_each(Action::perform)
}

fn plan(release: &[&str], backports: &[&str]) -> Result<Vec<Action>> {
    let mut actions = Vec::new();
    let suite = if backports.is_empty() {
        String::new()
    } else {
        format!("{}-backports", codename()?)
    };
    if !backports.is_empty() && !SourceFile::of_this_machine()?.iter().any(|file| file.has(&suite)) {
        let (text, ending) = derived(&suite)?;
        actions.push(Action::Write {
            path: format!("/etc/apt/sources.list.d/millrace-backports.{ending}"),
            text,
        });
    }
    if !release.is_empty() || !backports.is_empty() {
        actions.push(Action::Run(apt_get(&["update", "-q"])));
    }
    const INSTALL: [&str; 6] = [
        "install",
        "-q",
        "-y",
        "--no-install-recommends",
        "-o",
        "Dpkg::Use-Pty=0",
    ];
    if !release.is_empty() {
        actions.push(Action::Run(apt_get(&[&INSTALL[..], release].concat())));
    }
    if !backports.is_empty() {
        actions.push(Action::Run(apt_get(
            &[&INSTALL[..], &["-t", &suite], backports].concat(),
        )));
    }
    Ok(actions)
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut apt = command("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
    apt
}

fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    // The owner of our own entry in /proc is the effective user.
    Ok(fs::metadata("/proc/self").context("/proc is not mounted")?.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZAS: &str = "# the release\nTypes: deb deb-src\nURIs: http://mirror.example/debian\n\
        Suites: bookworm bookworm-updates\nComponents: main contrib\nSigned-By:\n -----BEGIN-----\n .\n\n\
        Types: deb\nURIs: http://mirror.example/security\nSuites: bookworm-security\nComponents: main\n";

    fn file(path: &str, text: &str) -> SourceFile {
        SourceFile {
            path: path.into(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn backports_come_from_the_same_place_with_the_same_key() {
        let (text, ending) = derive(
            &[file("debian.sources", STANZAS)],
            "bookworm",
            "bookworm-backports",
        )
        .unwrap();
        assert_eq!(ending, "sources");
        assert_eq!(
            text,
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-backports\nComponents: main\n\
             Signed-By:\n -----BEGIN-----\n .\n"
        );
    }

    #[test]
    fn one_line_sources_keep_their_options() {
        let list = "deb-src http://x/debian bookworm main\n\
                    deb [signed-by=/a.gpg arch=amd64] http://x/debian bookworm main contrib\n";
        let (text, ending) = derive(&[file("sources.list", list)], "bookworm", "sid").unwrap();
        assert_eq!(
            text,
            "deb [signed-by=/a.gpg arch=amd64] http://x/debian sid main\n"
        );
        assert_eq!(ending, "list");
    }

    #[test]
    fn a_suite_that_is_there_already_is_seen() {
        let extra = file("b.list", "deb http://x/debian bookworm-backports main");
        assert!(extra.has("bookworm-backports"));
        assert!(!file("a.sources", STANZAS).has("bookworm-backports"));
    }

    #[test]
    fn without_a_source_of_the_release_the_error_says_what_to_add() {
        let error = derive(
            &[file("a.list", "deb http://x/y nodistro main")],
            "bookworm",
            "sid",
        )
        .unwrap_err();
        assert!(error.to_string().contains("add a source of `sid`"), "{error}");
    }

    #[test]
    fn the_plan_reads_as_what_a_person_would_do() {
        let shown: Vec<_> = plan(&["jq", "tcpdump"], &[])
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(shown[0], "apt-get update -q");
        assert!(
            shown[1].starts_with("apt-get install ") && shown[1].ends_with(" jq tcpdump"),
            "{}",
            shown[1]
        );
        assert!(plan(&[], &[]).unwrap().is_empty());
    }
}
