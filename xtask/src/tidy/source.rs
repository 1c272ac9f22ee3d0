//! Rules about single files.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace;

/// A file that fits in a reader's head.
const GOOD_LINES: usize = 300;
const MOST_LINES: usize = 500;
/// Names that say nothing: whatever has no place ends up there. A module is a noun of the domain.
const EMPTY_NAMES: [&str; 7] = ["util", "utils", "common", "helper", "helpers", "misc", "manager"];
/// Unfinished work and tests that do not run. In two parts, so that this list does not match itself.
const UNFINISHED: [&str; 3] = [
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("#[ig", "nore"),
];

/// Where time decides something: connections, addresses that rest, attempts that wait. A clock that somebody sets must
/// change nothing there.
const TIMED: [&str; 7] = [
    "cni-ebpf/src",
    "cni-agent/src/agent",
    "cni-agent/src/compile",
    "cni-agent/src/ipam",
    "cni-agent/src/kernel",
    "cni-agent/src/ledger",
    "cni-agent/src/reconcile",
];
const WALL_CLOCKS: [&str; 4] = [
    "SystemTime",
    "CLOCK_REALTIME",
    "bpf_ktime_get_tai",
    "bpf_jiffies64",
];
/// When a pod began, for people to read.
const FOR_PEOPLE: &str = "cni-agent/src/agent/allocation.rs";

#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source {
    /// From the root of the tree.
    path: PathBuf,
    text: String,
}

impl Source {
    pub(super) fn is_of_interest(path: &Path) -> bool {
        path.extension()
            .is_some_and(|extension| extension == "rs" || extension == "sh")
    }

    pub(super) fn read(path: PathBuf) -> Result<Self> {
        let absolute = workspace::root().join(&path);
        let text =
            fs::read_to_string(&absolute).with_context(|| format!("reading {}", absolute.display()))?;
        Ok(Self { path, text })
    }

    fn lines(&self) -> usize {
        self.text.lines().count()
    }

    pub(super) fn is_large(&self) -> bool {
        self.lines() > GOOD_LINES
    }

    pub(super) fn check(&self, complaints: &mut Vec<String>) {
        let mut complain = |what: &str| complaints.push(format!("{}: {what}", self.path.display()));
        if self.path.extension().is_some_and(|extension| extension == "sh") {
            complain("shell scripts cannot be tested; write a command of xtask");
        }
        if self.lines() > MOST_LINES {
            complain(&format!(
                "{} lines; {MOST_LINES} at most, near {GOOD_LINES} is good: split it",
                self.lines()
            ));
        }
        for part in self.path.components() {
            let name = Path::new(&part)
                .file_stem()
                .and_then(|stem| stem.to_str())
                .unwrap_or_default();
            if EMPTY_NAMES.contains(&name) {
                complain(&format!("`{name}` names nothing; use a noun of the domain"));
            }
        }
        for word in UNFINISHED.into_iter().filter(|word| self.text.contains(word)) {
            complain(&format!("`{word}`: finish it, or leave it out"));
        }
        if self.keeps_time() && WALL_CLOCKS.iter().any(|clock| self.text.contains(clock)) {
            complain("reads a clock that can be set; take the monotonic one");
        }
        if self.must_compile_on_the_host()
            && ["aya_ebpf", "aya_log_ebpf"]
                .iter()
                .any(|name| self.text.contains(name))
        {
            complain("names aya_ebpf; only src/bpf and src/main.rs may, the rest is tested on the host");
        }
    }

    fn keeps_time(&self) -> bool {
        let path = self.path.to_string_lossy();
        path != FOR_PEOPLE && TIMED.iter().any(|part| path.starts_with(part))
    }

    fn must_compile_on_the_host(&self) -> bool {
        let ebpf = Path::new("cni-ebpf/src");
        let is_program = self.path.starts_with(ebpf.join("bpf")) || self.path == ebpf.join("main.rs");
        self.path.starts_with(ebpf) && !is_program
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} lines)", self.path.display(), self.lines())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(path: &str, text: &str) -> Vec<String> {
        let mut complaints = Vec::new();
        Source {
            path: path.into(),
            text: text.into(),
        }
        .check(&mut complaints);
        complaints
    }

    #[test]
    fn a_file_has_five_hundred_lines_at_most() {
        assert!(complaints("a/src/b.rs", &"x\n".repeat(MOST_LINES)).is_empty());
        assert!(complaints("a/src/b.rs", &"x\n".repeat(MOST_LINES + 1))[0].contains("501 lines"));
    }

    #[test]
    fn files_and_folders_are_named_after_something() {
        assert_eq!(complaints("a/src/utils/b.rs", "").len(), 1);
        assert_eq!(complaints("a/src/manager.rs", "").len(), 1);
        assert!(complaints("a/src/service.rs", "").is_empty());
    }

    #[test]
    fn unfinished_work_and_shell_scripts_are_refused() {
        for word in UNFINISHED {
            assert_eq!(complaints("a/src/b.rs", word).len(), 1, "{word}");
        }
        assert_eq!(complaints("a/b.sh", "").len(), 1);
    }

    #[test]
    fn rel_42_nothing_that_times_out_reads_a_clock_that_can_be_set() {
        for path in [
            "cni-ebpf/src/bpf/tables.rs",
            "cni-agent/src/ipam.rs",
            "cni-agent/src/agent/round.rs",
        ] {
            assert_eq!(complaints(path, "SystemTime::now()").len(), 1, "{path}");
        }
        assert!(complaints(FOR_PEOPLE, "SystemTime::now()").is_empty());
        assert!(complaints("cni-agent/src/ipam.rs", "Instant::now()").is_empty());
    }

    #[test]
    fn the_pure_datapath_never_names_the_kernel_side() {
        assert_eq!(
            complaints("cni-ebpf/src/datapath/nat.rs", "use aya_ebpf::maps;").len(),
            1
        );
        assert!(complaints("cni-ebpf/src/bpf/maps.rs", "use aya_ebpf::maps;").is_empty());
        assert!(complaints("cni-ebpf/src/main.rs", "use aya_ebpf::macros;").is_empty());
    }
}
