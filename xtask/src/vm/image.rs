//! The initramfs of a machine.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::guest::{BUSYBOX, JOB, Job};
use super::kernel::Kernel;
use super::modules::{Dependencies, WANTED};
use crate::libraries;
use crate::process::{command, find};

/// Programs that tests call, copied in where this machine has them.
const TOOLS: &[&str] = &[
    "ip",
    "ip6tables-legacy",
    "ip6tables-nft",
    "iptables-legacy",
    "iptables-nft",
    "tc",
    "bridge",
    "ping",
    "nft",
    "ethtool",
    "conntrack",
    "bpftool",
    "tcpdump",
];
/// What iptables opens for each kind of match and target.
const XTABLES: &str = "/usr/lib/x86_64-linux-gnu/xtables";

struct Image {
    archive: Archive<BufWriter<File>>,
}

/// Writes the initramfs that does `job` on `kernel`.
pub(crate) fn write(path: &Path, kernel: &Kernel, job: &Job) -> Result<()> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mut image = Image {
        archive: Archive::new(BufWriter::new(file)),
    };
    let own = std::env::current_exe().context("finding this program")?;
    image.program(&own, Path::new("/init"))?;
    image.program(
        &find("busybox").context("busybox is not installed")?,
        Path::new(BUSYBOX),
    )?;
    for tool in TOOLS.iter().filter_map(|tool| find(tool)) {
        image.program(&tool, &tool)?;
    }
    if Path::new(XTABLES).is_dir() {
        image.data(Path::new(XTABLES), Path::new(XTABLES))?;
    }
    if let Some(program) = job.command.first().map(Path::new) {
        image.program(program, program)?;
        image.data(&job.folder, &job.folder)?;
    }
    for (_, path) in job.environment.iter().filter(|(_, path)| path.is_file()) {
        image.program(path, path)?;
    }
    let mut job = job.clone();
    job.modules = image.modules(kernel)?;
    image.archive.file(Path::new(JOB), &serde_json::to_vec(&job)?)?;
    for folder in [
        "/root", "/proc", "/sys", "/dev", "/run", "/tmp", "/var/run", "/etc",
    ] {
        image.archive.directory(Path::new(folder))?;
    }
    image
        .archive
        .finish()
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

impl Image {
    /// A program with the libraries that it links.
    fn program(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.file(from, to)?;
        for library in libraries::of(from) {
            self.file(&library, &library)?;
        }
        Ok(())
    }

    fn file(&mut self, from: &Path, to: &Path) -> Result<()> {
        if self.archive.has(to) {
            return Ok(());
        }
        let content = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.archive
            .file(to, &content)
            .with_context(|| format!("adding {}", to.display()))
    }

    /// A folder of test data, recursively. Sources are left out: no test reads them.
    fn data(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.archive.directory(to)?;
        let entries = from
            .read_dir()
            .with_context(|| format!("reading {}", from.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("reading {}", from.display()))?;
            let (path, to) = (entry.path(), to.join(entry.file_name()));
            if path.is_dir() {
                self.data(&path, &to)?;
            } else if path.extension().is_none_or(|extension| extension != "rs") {
                self.file(&path, &to)?;
            }
        }
        Ok(())
    }

    /// The wanted modules of this kernel, decompressed; gives their paths in the machine, in the order of loading.
    fn modules(&mut self, kernel: &Kernel) -> Result<Vec<PathBuf>> {
        let folder = kernel.modules();
        let list = folder.join("modules.dep");
        let text = fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?;
        let inside = Path::new("/lib/modules").join(kernel.release());
        let mut paths = Vec::new();
        for file in Dependencies::parse(&text).in_order(WANTED) {
            let to = inside.join(file.trim_end_matches(".xz"));
            self.archive.file(&to, &module(&folder.join(file))?)?;
            paths.push(to);
        }
        Ok(paths)
    }
}

/// The kernel takes a compressed module only through options that not every build has.
fn module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("reading {}", path.display()));
    }
    let output = command("xz")
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output();
    let output = output.with_context(|| format!("starting xz for {}", path.display()))?;
    anyhow::ensure!(output.status.success(), "xz cannot decompress {}", path.display());
    Ok(output.stdout)
}
