//! The layers of tests, from the cheapest to the dearest.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::lint;
use super::tally::Tally;
use crate::build::StaticBinaries;
use crate::process::{self, cargo, output, stream};
use crate::setup::Group;
use crate::{cluster, vm, workspace};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Layer {
    /// Formatting, clippy on host and BPF, documentation, licences, the house rules of `tidy`
    Lint,
    /// Unit, property and documentation tests of every package
    Unit,
    /// Every program in every configuration through this kernel's verifier
    Verifier,
    /// Packet fixtures through the host build and through the loaded programs, with equal verdicts
    Packets,
    /// In virtual machines the verifier layer on every supported kernel, and what of `netns` this machine's may lack
    Vm,
    /// Nodes and pods as network namespaces, with real sockets
    Netns,
    /// Agents and a real API server, without kubelets
    Kubernetes,
    /// The image, the manifests and the chart, as they are shipped
    Deploy,
    /// A real Kubernetes on two nodes: ordinary workloads, power cuts, upstream's network conformance specs
    Cluster,
}

impl Layer {
    /// All that belong to CI. A layer whose test target is not in the tree is left out.
    pub(crate) fn in_ci() -> Vec<Self> {
        let all = Self::value_variants().iter().copied();
        all.filter(|layer| layer.exists()).collect()
    }

    fn exists(self) -> bool {
        match self {
            Self::Lint | Self::Unit => true,
            Self::Verifier
            | Self::Packets
            | Self::Netns
            | Self::Kubernetes
            | Self::Deploy
            | Self::Cluster => {
                let tests = workspace::root().join("tests/tests");
                let name = self.to_string();
                tests.join(&name).with_extension("rs").exists() || tests.join(&name).join("main.rs").exists()
            }
            Self::Vm => Self::Verifier.exists(),
        }
    }

    pub(crate) fn needs(self) -> &'static [Group] {
        match self {
            Self::Lint => &[Group::Build, Group::Lint],
            Self::Unit => &[],
            Self::Verifier | Self::Packets | Self::Netns => &[Group::Build, Group::Test],
            Self::Kubernetes => &[Group::Build, Group::Test, Group::Cluster, Group::Deploy],
            Self::Deploy => &[Group::Build, Group::Deploy],
            Self::Cluster => &[Group::Build, Group::Cluster],
            Self::Vm => &[Group::Build, Group::Vm],
        }
    }

    pub(crate) fn needs_build(self) -> bool {
        !matches!(self, Self::Lint | Self::Unit | Self::Deploy)
    }

    pub(crate) fn needs_image(self) -> bool {
        self == Self::Deploy
    }

    /// Whether it compiles, or runs on one processor, and does not mind how quickly.
    pub(crate) fn leaves_a_processor(self) -> bool {
        matches!(
            self,
            Self::Lint | Self::Unit | Self::Verifier | Self::Packets | Self::Vm
        )
    }

    pub(crate) fn run(self, arguments: &[String]) -> Result<Tally> {
        match self {
            Self::Lint => Ok(lint::run()),
            Self::Unit => {
                let mut tests = cargo_test();
                tests.args(["--workspace", "--lib", "--bins"]);
                for name in member_tests().into_iter().chain([STAGES.to_owned()]) {
                    tests.args(["--test", &name]);
                }
                let mut tally = libtest(tests, arguments)?;
                let mut docs = cargo_test();
                docs.args(["--workspace", "--doc"]);
                tally += libtest(docs, arguments)?;
                Ok(tally)
            }
            Self::Verifier | Self::Packets | Self::Netns => self.run_with::<&str>(arguments, &[]),
            Self::Deploy => self.run_with(arguments, &shipped()),
            Self::Kubernetes => {
                let programs = cluster::programs()?;
                // They wait most of the time, for a server that comes back and for those who try it again.
                let mut arguments = arguments.to_vec();
                if !arguments
                    .iter()
                    .any(|argument| argument.starts_with("--test-threads"))
                {
                    arguments.push("--test-threads=4".to_owned());
                }
                self.run_with(&arguments, &[("MILLRACE_KUBERNETES_PROGRAMS", programs)])
            }
            Self::Cluster => cluster::test(arguments),
            Self::Vm => vm::supported_kernels(arguments),
        }
    }
}

impl Layer {
    /// Runs a layer that is a test program, with more variables.
    pub(crate) fn run_with<V: AsRef<OsStr>>(
        self,
        arguments: &[String],
        variables: &[(&str, V)],
    ) -> Result<Tally> {
        let mut tests = cargo_test();
        tests.args(["--package", "cni-tests", "--test", &self.to_string()]);
        tests.envs(variables.iter().map(|(name, value)| (name, value)));
        libtest(tests, arguments)
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("hidden", |value| value.get_name()))
    }
}

/// A test program, built.
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    /// The folder that its tests run in, as under `cargo test`.
    pub(crate) folder: PathBuf,
}

impl Layer {
    /// Builds the layer's test program and says where it is.
    pub(crate) fn program(self) -> Result<Program> {
        let name = self.to_string();
        let mut build = cargo();
        build.args(["test", "--package", "cni-tests", "--test", &name, "--no-run"]);
        build
            .args(["--message-format", "json-render-diagnostics"])
            .stderr(Stdio::inherit());
        let messages = output(&mut build).with_context(|| format!("building the tests of layer `{name}`"))?;
        let path = messages.lines().find_map(|line| executable(line, &name));
        let path = path.with_context(|| format!("cargo names no test program of layer `{name}`"))?;
        Ok(Program {
            path,
            folder: workspace::root().join("tests"),
        })
    }
}

/// The path in cargo's message about the wanted test program.
fn executable(message: &str, test: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let is_it = message["target"]["name"] == test && message["profile"]["test"] == true;
    message["executable"]
        .as_str()
        .filter(|_| is_it)
        .map(PathBuf::from)
}

/// What every test program is told: where the built binaries are, so that it starts the real ones.
pub(crate) fn environment() -> [(&'static str, PathBuf); 5] {
    [
        ("MILLRACE_BIN", workspace::host_binary("millrace", false)),
        ("MILLRACE_CNI_BIN", workspace::host_binary("millrace-cni", false)),
        ("MILLRACE_NEXT_BIN", workspace::next_binary("millrace")),
        ("MILLRACE_NEXT_CNI_BIN", workspace::next_binary("millrace-cni")),
        ("MILLRACE_BPF_OBJECT", workspace::bpf_object()),
    ]
}

/// The image, and the binaries that are in it instead of those built for debugging.
fn shipped() -> [(&'static str, PathBuf); 3] {
    let binaries = StaticBinaries::built();
    [
        ("MILLRACE_IMAGE", workspace::image_archive()),
        ("MILLRACE_BIN", binaries.agent),
        ("MILLRACE_CNI_BIN", binaries.plugin),
    ]
}

pub(crate) fn cargo_test() -> Command {
    let mut command = cargo();
    command.args(["test", "--no-fail-fast"]);
    command.envs(environment()).env("PATH", process::path());
    command
}

pub(crate) fn libtest(mut command: Command, arguments: &[String]) -> Result<Tally> {
    command.arg("--").args(arguments);
    let mut tally = Tally::default();
    let status = stream(&mut command, |line| tally.read(line))?;
    if !status.success() && tally.failed == 0 {
        tally += Tally::failure(format!(
            "`cargo test` ended with {status} before or outside a test"
        ));
    }
    Ok(tally)
}

/// The one program of `tests` that needs no layer of its own: properties of pure code, over its world in memory.
const STAGES: &str = "stages";

/// Integration tests of the members other than `tests`, which are layers of their own.
fn member_tests() -> Vec<String> {
    let members = workspace::root().read_dir().into_iter().flatten().flatten();
    let folders = members
        .filter(|member| member.file_name() != "tests")
        .map(|member| member.path().join("tests"));
    let files = folders
        .filter_map(|folder| folder.read_dir().ok())
        .flatten()
        .flatten();
    let mut names: Vec<_> = files.filter_map(|file| test_name(file.path())).collect();
    names.sort();
    names
}

fn test_name(path: PathBuf) -> Option<String> {
    let is_test =
        path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").exists();
    is_test
        .then(|| path.file_stem().map(|stem| stem.to_string_lossy().into_owned()))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_run_from_the_cheapest_to_the_dearest() {
        assert!(Layer::Lint < Layer::Unit && Layer::Unit < Layer::Netns);
        assert_eq!(Layer::in_ci()[..2], [Layer::Lint, Layer::Unit]);
    }

    #[test]
    fn what_a_person_types_is_what_the_table_shows() {
        assert_eq!(Layer::Netns.to_string(), "netns");
    }

    #[test]
    fn the_test_program_is_read_from_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"verifier"},"profile":{"test":true},"executable":"/t/v"}"#;
        assert_eq!(executable(line, "verifier"), Some("/t/v".into()));
        assert_eq!(executable(line, "netns"), None);
        assert_eq!(executable("   Compiling", "verifier"), None);
    }

    #[test]
    fn a_test_is_a_file_or_a_folder_with_a_root() {
        assert_eq!(test_name("a/tests/wire.rs".into()).as_deref(), Some("wire"));
        assert_eq!(test_name("a/tests/data.json".into()), None);
        assert_eq!(test_name(workspace::root().join("xtask/Cargo.toml")), None);
    }
}
