//! The BPF toolchain: a rustc that accepts `-Z build-std=core`, that version's library source, and a bpf-linker that
//! reads the bitcode that this rustc writes.
//!
//! Two are known: rustup's nightly, and what Debian 12 has as packages (`rustc-web` and its companions, a stable release
//! told by `RUSTC_BOOTSTRAP` to accept unstable options). A candidate counts only after it has carried a small function
//! through rustc and the linker: versions do not tell, because a bpf-linker does not say which LLVM it was built on.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{self, command, output};
use crate::workspace;

pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// Where a compiler comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Nightly,
    Debian,
}

/// A toolchain that was seen to work.
pub(crate) struct Toolchain {
    origin: Origin,
    version: Version,
    linker: PathBuf,
}

impl Toolchain {
    /// The first that works. The error lists what each candidate lacks.
    pub(crate) fn find() -> Result<Self> {
        let mut complaints = Vec::new();
        for origin in [Origin::Debian, Origin::Nightly] {
            match Self::from(origin) {
                Ok(found) => return Ok(found),
                Err(error) => complaints.push(format!("  {origin}: {error:#}")),
            }
        }
        bail!(
            "no BPF toolchain; `cargo xtask setup` installs one\n{}",
            complaints.join("\n")
        )
    }

    fn from(origin: Origin) -> Result<Self> {
        let version = origin.version()?;
        origin.library_source()?;
        let linker = process::find("bpf-linker").context("bpf-linker is not installed")?;
        let toolchain = Self {
            origin,
            version,
            linker,
        };
        toolchain.probe()?;
        Ok(toolchain)
    }

    /// `cargo build` for the BPF target, with flags, linker and target directory set.
    pub(crate) fn cargo_build(&self) -> Command {
        let mut cargo = self.origin.cargo();
        cargo.arg("build");
        self.configure(&mut cargo);
        cargo
    }

    /// `cargo clippy` for the BPF target.
    pub(crate) fn clippy(&self) -> Result<Command> {
        let mut clippy = match self.origin {
            Origin::Nightly => self.origin.cargo(),
            // Named by path: `cargo clippy` would take the one in the cargo home, which is rustup's.
            Origin::Debian => {
                let mut clippy = command(DEBIAN_CLIPPY);
                clippy
                    .env("CARGO", DEBIAN_CARGO)
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("RUSTC", DEBIAN_RUSTC);
                clippy
            }
        };
        if !self.has_clippy() {
            bail!("{} have no clippy; `cargo xtask setup` installs it", self.origin);
        }
        clippy.arg("clippy");
        self.configure(&mut clippy);
        Ok(clippy)
    }

    pub(crate) fn has_clippy(&self) -> bool {
        match self.origin {
            Origin::Nightly => output(self.origin.cargo().args(["clippy", "--version"])).is_ok(),
            Origin::Debian => Path::new(DEBIAN_CLIPPY).exists(),
        }
    }

    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    fn configure(&self, cargo: &mut Command) {
        // BTF is made of the debug info, which the profile asks for.
        let mut flags = workspace::nameless_paths();
        flags.push("-Clink-arg=--btf".to_owned());
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker);
        cargo.env("CARGO_TARGET_DIR", workspace::bpf_target());
        cargo.args(["-Z", "build-std=core", "--target", TARGET]);
    }

    /// Carries one function through the compiler and the linker.
    fn probe(&self) -> Result<()> {
        let folder = workspace::target().join("probe");
        std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let path = |name: &str| folder.join(format!("{}-{name}", std::process::id()));
        let (source, bitcode, object) = (path("probe.rs"), path("probe.bc"), path("probe.o"));
        let code = "#![no_std]\n#[unsafe(no_mangle)]\npub extern \"C\" fn probe(a: u64) -> u64 { a ^ 1 }\n";
        std::fs::write(&source, code).with_context(|| format!("writing {}", source.display()))?;
        let mut compile = self.origin.rustc();
        compile
            .args(["--crate-type=lib", "--emit=llvm-bc", "-Cpanic=abort", "-o"])
            .arg(&bitcode)
            .arg(&source);
        let mut link = command(&self.linker);
        link.args(["--target", TARGET, "--export", "probe", "-o"])
            .arg(&object)
            .arg(&bitcode);
        let result = output(&mut compile).and_then(|_| output(&mut link));
        for file in [&source, &bitcode, &object] {
            // Leftovers lie in `target` and cannot change a later probe.
            let _ = std::fs::remove_file(file);
        }
        result.map(drop).with_context(|| {
            format!(
                "{} cannot link what rustc {} compiles",
                self.linker.display(),
                self.version.release
            )
        })
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Version { release, llvm, .. } = &self.version;
        write!(
            f,
            "{}: rustc {release} (LLVM {llvm}), {}",
            self.origin,
            self.linker.display()
        )
    }
}

const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CLIPPY: &str = "/usr/bin/cargo-clippy";

impl Origin {
    /// The first whose compiler and library source are here, whatever the linker.
    pub(crate) fn installed() -> Result<Self> {
        let here = |origin: &Self| origin.version().is_ok() && origin.library_source().is_ok();
        let found = [Self::Debian, Self::Nightly].into_iter().find(here);
        found.context(
            "neither Debian's rustc-web with rust-web-src nor rustup's nightly with rust-src is installed",
        )
    }

    fn rustc(self) -> Command {
        match self {
            Self::Nightly => {
                let mut rustc = command("rustup");
                rustc.args(["run", "nightly", "rustc"]);
                rustc
            }
            Self::Debian => command(DEBIAN_RUSTC),
        }
    }

    fn cargo(self) -> Command {
        match self {
            Self::Nightly => {
                let mut cargo = command("rustup");
                cargo.args(["run", "nightly", "cargo"]);
                cargo
            }
            Self::Debian => {
                let mut cargo = command(DEBIAN_CARGO);
                cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTC", DEBIAN_RUSTC);
                cargo
            }
        }
    }

    fn version(self) -> Result<Version> {
        let version = Version::parse(&output(self.rustc().arg("-vV"))?)?;
        if version.minor < OLDEST_MINOR {
            bail!(
                "rustc {} is older than 1.{OLDEST_MINOR}, which the workspace needs",
                version.release
            );
        }
        Ok(version)
    }

    fn library_source(self) -> Result<()> {
        let sysroot = output(self.rustc().args(["--print", "sysroot"]))?;
        let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
        if !core.is_file() {
            bail!("the library source is not at {}", core.display());
        }
        Ok(())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nightly => "rustup nightly",
            Self::Debian => "Debian packages",
        })
    }
}

/// `rust-version` of the workspace.
const OLDEST_MINOR: u32 = 95;

#[derive(Debug, PartialEq, Eq)]
struct Version {
    release: String,
    minor: u32,
    llvm: String,
}

impl Version {
    fn parse(verbose: &str) -> Result<Self> {
        let field = |name: &str| {
            let found = verbose
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            found
                .map(str::to_owned)
                .with_context(|| format!("`rustc -vV` prints no {name}"))
        };
        let release = field("release")?;
        let minor = release.split('.').nth(1).and_then(|minor| minor.parse().ok());
        let minor = minor.with_context(|| format!("rustc release `{release}` has no minor number"))?;
        Ok(Self {
            minor,
            llvm: field("LLVM version")?,
            release,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_of_a_compiler_are_read() {
        let text = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nhost: x86_64-unknown-linux-gnu\n\
                    release: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        let version = Version::parse(text).unwrap();
        assert_eq!(
            version,
            Version {
                release: "1.97.0-nightly".into(),
                minor: 97,
                llvm: "22.1.4".into()
            }
        );
    }

    #[test]
    fn output_that_is_not_rustcs_is_an_error() {
        assert!(
            Version::parse("gcc 12")
                .unwrap_err()
                .to_string()
                .contains("release")
        );
    }
}
