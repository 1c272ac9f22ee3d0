//! Debian's kernels: which there are, and fetching one without installing it.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use crate::process::{command, output, run, step};
use crate::setup::apt;
use crate::workspace;

/// A kernel series, as `--kernel` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Series {
    Of(u32, u32),
    Newest,
}

impl Series {
    /// Debian 12's own kernel is the oldest supported one, 6.12 the last long-term one, and the newest shows what comes.
    pub(crate) const SUPPORTED: [Self; 3] = [Self::Of(6, 1), Self::Of(6, 12), Self::Newest];
}

impl FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "newest" {
            return Ok(Self::Newest);
        }
        let numbers = text
            .split_once('.')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let (major, minor) = numbers.ok_or("write a series such as 6.1, or `newest`")?;
        Ok(Self::Of(major, minor))
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(major, minor) => f.pad(&format!("{major}.{minor}")),
            Self::Newest => f.pad("newest"),
        }
    }
}

/// Which of Debian's kernels of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// For virtual machines: it has no drivers of other devices, and is there sooner.
    Cloud,
    /// With the drivers of devices that are made of something.
    Full,
}

impl Flavour {
    /// How the names of its packages end.
    const fn ending(self) -> &'static str {
        match self {
            Self::Cloud => "-cloud-amd64",
            Self::Full => "-amd64",
        }
    }
}

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// `6.12.95+deb12-cloud-amd64`
    release: String,
    flavour: Flavour,
    folder: PathBuf,
}

impl Kernel {
    /// Downloads and unpacks the newest kernel of a series, unless that was done before.
    pub(crate) fn fetch(series: Series, flavour: Flavour) -> Result<Self> {
        let packages = packages(flavour)?;
        let package = choose(&packages, series, flavour)
            .with_context(|| format!("apt knows no kernel of series {series}; see `cargo xtask vm list`"))?;
        let release = package.trim_start_matches(PREFIX).to_owned();
        let kernel = Self {
            folder: folder().join("kernels").join(&release),
            release,
            flavour,
        };
        if !kernel.folder.exists() {
            kernel.unpack(package)?;
        }
        Ok(kernel)
    }

    fn unpack(&self, package: &str) -> Result<()> {
        step(format_args!("fetching {package}"));
        let partial = folder().join("kernels/partial");
        if partial.exists() {
            fs::remove_dir_all(&partial).with_context(|| format!("removing {}", partial.display()))?;
        }
        fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
        let mut download = private_apt("apt-get")?;
        run(download
            .args(["download", "-q"])
            .args(self.parts(package)?)
            .current_dir(&partial))?;
        for archive in archives(&partial)? {
            run(command("dpkg-deb").arg("--extract").arg(&archive).arg(&partial))?;
            fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))?;
        }
        run(command("depmod")
            .arg("-b")
            .arg(modules_base(&partial))
            .arg(&self.release))?;
        // Only a complete folder has the final name.
        fs::rename(&partial, &self.folder).with_context(|| format!("renaming to {}", self.folder.display()))
    }

    /// The package and, since Debian's kernels come in several, those of its parts that bear the same release.
    fn parts(&self, package: &str) -> Result<Vec<String>> {
        let text = output(private_apt("apt-cache")?.args(["depends", "--important", package]))?;
        let named = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "));
        let parts = named
            .filter(|name| name.ends_with(&self.release))
            .map(str::to_owned);
        Ok(parts.chain([package.to_owned()]).collect())
    }

    pub(crate) fn image(&self) -> PathBuf {
        // Newer packages keep the kernel beside its modules.
        let beside = self.modules().join("vmlinuz");
        if beside.exists() {
            beside
        } else {
            self.folder.join("boot").join(format!("vmlinuz-{}", self.release))
        }
    }

    /// Where `modules.dep` lies and the module files below it.
    pub(crate) fn modules(&self) -> PathBuf {
        modules_base(&self.folder).join("lib/modules").join(&self.release)
    }

    pub(crate) fn flavour(&self) -> Flavour {
        self.flavour
    }

    pub(crate) fn release(&self) -> &str {
        &self.release
    }

    /// The first two numbers of the release.
    pub(crate) fn series(&self) -> &str {
        series(&self.release)
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {}", self.release)
    }
}

/// The first two numbers.
pub(super) fn series(release: &str) -> &str {
    release
        .match_indices('.')
        .nth(1)
        .map_or(release, |(dot, _)| &release[..dot])
}

/// Newer packages have their modules under `/usr/lib`.
fn modules_base(folder: &Path) -> PathBuf {
    let merged = folder.join("usr");
    if merged.join("lib/modules").exists() {
        merged
    } else {
        folder.to_owned()
    }
}

fn archives(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = folder
        .read_dir()
        .with_context(|| format!("reading {}", folder.display()))?;
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect())
}

const PREFIX: &str = "linux-image-";

/// Every kernel package of a flavour that apt can fetch.
pub(crate) fn packages(flavour: Flavour) -> Result<Vec<String>> {
    if !lists_are_fresh() {
        step("fetching the package lists of Debian's kernels");
        run(private_apt("apt-get")?.args(["update", "-q"]))?;
        fs::write(stamp(), []).with_context(|| format!("writing {}", stamp().display()))?;
    }
    let ending = flavour.ending();
    let pattern = format!("^{PREFIX}.*{ending}$");
    let text = output(private_apt("apt-cache")?.args(["search", "--names-only", &pattern]))?;
    let names = text
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned);
    let names: Vec<_> = names.filter(|name| version(name, flavour).is_some()).collect();
    if names.is_empty() {
        bail!("apt knows no package {PREFIX}*{ending}; kernels come from Debian on x86-64");
    }
    Ok(names)
}

/// The newest package of a series.
pub(crate) fn choose(packages: &[String], series: Series, flavour: Flavour) -> Option<&String> {
    let versions = packages
        .iter()
        .filter_map(|name| Some((version(name, flavour)?, name)));
    let fitting = versions.filter(|(version, _)| match series {
        Series::Newest => true,
        Series::Of(major, minor) => version.starts_with(&[major, minor]),
    });
    fitting.max().map(|(_, name)| name)
}

/// The numbers in a package's name, which order as its versions do; `None` for meta-packages and other flavours.
fn version(package: &str, flavour: Flavour) -> Option<Vec<u32>> {
    let text = package.strip_prefix(PREFIX)?.strip_suffix(flavour.ending())?;
    let numbers = text
        .split(['.', '-', '+'])
        .map(|part| part.trim_start_matches(|c: char| c.is_ascii_alphabetic()));
    let numbers: Option<Vec<u32>> = numbers.map(|part| part.parse().ok()).collect();
    numbers.filter(|numbers| numbers.len() >= 4)
}

fn folder() -> PathBuf {
    workspace::target().join("vm")
}

fn stamp() -> PathBuf {
    folder().join("apt/fetched")
}

/// Lists of a day ago may name packages that are gone.
fn lists_are_fresh() -> bool {
    let age = stamp()
        .metadata()
        .and_then(|meta| meta.modified())
        .ok()
        .and_then(|time| time.elapsed().ok());
    age.is_some_and(|age| age.as_secs() < 24 * 60 * 60)
}

/// apt with sources and lists of its own: the machine's apt does not get to know other releases, and root is not needed.
fn private_apt(program: &str) -> Result<Command> {
    let apt_folder = folder().join("apt");
    let (sources, lists, cache) = (
        apt_folder.join("sources"),
        apt_folder.join("lists"),
        apt_folder.join("cache"),
    );
    for folder in [&sources, &lists.join("partial"), &cache.join("archives/partial")] {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    for suite in ["bookworm", "bookworm-backports", "trixie-backports"] {
        let (text, ending) = apt::derived(suite)?;
        let path = sources.join(format!("{suite}.{ending}"));
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    let mut apt = command(program);
    let options = [
        ("Dir::Etc::sourcelist", Path::new("/dev/null")),
        ("Dir::Etc::sourceparts", &sources),
        ("Dir::State::lists", &lists),
        ("Dir::Cache", &cache),
        // apt's own user cannot read a build folder that lies in somebody's home.
        ("APT::Sandbox::User", Path::new("root")),
        (
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled",
            Path::new("false"),
        ),
        ("Acquire::Languages", Path::new("none")),
    ];
    for (name, value) in options {
        apt.arg("-o").arg(format!("{name}={}", value.display()));
    }
    Ok(apt)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(versions: &[&str]) -> Vec<String> {
        versions
            .iter()
            .map(|version| format!("{PREFIX}{version}-cloud-amd64"))
            .collect()
    }

    #[test]
    fn the_newest_of_a_series_is_chosen_by_number() {
        let all = names(&[
            "6.1.0-9",
            "6.1.0-50",
            "6.12.95+deb12",
            "6.12.9+deb12",
            "7.2.13+deb14",
            "7.3.4+deb13",
        ]);
        assert_eq!(choose(&all, Series::Of(6, 1), Flavour::Cloud), Some(&all[1]));
        assert_eq!(choose(&all, Series::Of(6, 12), Flavour::Cloud), Some(&all[2]));
        assert_eq!(choose(&all, Series::Newest, Flavour::Cloud), Some(&all[5]));
        assert_eq!(choose(&all, Series::Of(5, 10), Flavour::Cloud), None);
    }

    #[test]
    fn meta_packages_are_no_kernels() {
        let version = |name: &str| version(name, Flavour::Cloud);
        assert_eq!(version("linux-image-cloud-amd64"), None);
        assert_eq!(version("linux-image-6.12-cloud-amd64"), None);
        assert_eq!(
            version("linux-image-6.12.90+deb12.1-cloud-amd64"),
            Some(vec![6, 12, 90, 12, 1])
        );
    }

    #[test]
    fn the_full_kernel_is_no_other_flavour() {
        let version = |name: &str| version(name, Flavour::Full);
        assert_eq!(
            version("linux-image-6.12.95+deb12-amd64"),
            Some(vec![6, 12, 95, 12])
        );
        for other in ["6.12.95+deb12-cloud", "6.12.95+deb12-rt", "6.12"] {
            let name = format!("linux-image-{other}-amd64");
            assert_eq!(version(&name), None, "{name}");
        }
    }

    #[test]
    fn a_release_belongs_to_a_series() {
        assert_eq!(series("6.12.95+deb12-cloud-amd64"), "6.12");
        assert_eq!(series("7.3"), "7.3");
    }

    #[test]
    fn a_series_is_two_numbers_or_newest() {
        assert_eq!("6.12".parse(), Ok(Series::Of(6, 12)));
        assert_eq!("newest".parse(), Ok(Series::Newest));
        assert!("6".parse::<Series>().is_err());
        assert!("six.one".parse::<Series>().is_err());
    }
}
