//! Running other programs: a clean environment, visible progress, errors that name the command.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Says which step begins. Progress goes to standard error, results to standard output.
pub(crate) fn step(what: impl std::fmt::Display) {
    if std::io::stderr().is_terminal() {
        eprintln!("\x1b[1m==> {what}\x1b[0m");
    } else {
        eprintln!("==> {what}");
    }
}

/// A command in the workspace root, without what the outer cargo left in the environment.
///
/// `cargo xtask` runs this binary with the variables of its own toolchain and package. Another toolchain's cargo would
/// take them for the user's wishes, and build scripts would see the wrong package.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(workspace::root());
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(left_by_cargo) {
            command.env_remove(&name);
        }
    }
    if let Some(path) = env::var_os("LD_LIBRARY_PATH") {
        command.env("LD_LIBRARY_PATH", without_toolchain_folders(&path));
    }
    command
}

/// The cargo that runs us, with its own toolchain.
pub(crate) fn cargo() -> Command {
    let mut command = command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    if let Some(toolchain) = env::var_os("RUSTUP_TOOLCHAIN") {
        command.env("RUSTUP_TOOLCHAIN", toolchain);
    }
    if std::io::stderr().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    command
}

fn left_by_cargo(name: &str) -> bool {
    const EXACT: [&str; 7] = [
        "CARGO",
        "RUSTC",
        "RUSTDOC",
        "RUSTUP_TOOLCHAIN",
        "RUST_RECURSION_COUNT",
        "OUT_DIR",
        "MILLRACE_BPF_OBJECT",
    ];
    const PREFIXES: [&str; 4] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
    EXACT.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// `cargo run` prepends the build's and the toolchain's library folders, which other toolchains must not load.
fn without_toolchain_folders(path: &OsStr) -> OsString {
    let foreign = |folder: &PathBuf| {
        folder.starts_with(workspace::target())
            || folder.components().any(|part| part.as_os_str() == "toolchains")
    };
    let kept = env::split_paths(path).filter(|folder| !foreign(folder));
    env::join_paths(kept).unwrap_or_default()
}

/// The command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Runs to the end with the terminal's streams; anything but success is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    check(command, status)
}

/// Standard output of a command that must succeed; its standard error is part of the error otherwise.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{}` ended with {}: {}",
            shown(command),
            output.status,
            complaint.trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of `{}`", shown(command)))
}

/// Runs a command, prints each line of its standard output as it comes and shows it to `line`.
pub(crate) fn stream(command: &mut Command, mut line: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    let stdout = child
        .stdout
        .take()
        .context("the child's standard output is not piped")?;
    for bytes in BufReader::new(stdout).split(b'\n') {
        // Tests may print anything; a stray byte must not end the run.
        let text = String::from_utf8_lossy(&bytes?).into_owned();
        println!("{text}");
        line(&text);
    }
    child
        .wait()
        .with_context(|| format!("waiting for `{}`", shown(command)))
}

fn check(command: &Command, status: ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    bail!("`{}` ended with {status}", shown(command))
}

/// The first place where a program of this name lies.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    folders()
        .into_iter()
        .map(|folder| folder.join(program))
        .find(|path| is_program(path))
}

/// `PATH` for programs that look for others as `find` does.
pub(crate) fn path() -> OsString {
    // A folder with a colon in its name cannot stand in PATH.
    env::join_paths(folders()).unwrap_or_else(|_| env::var_os("PATH").unwrap_or_default())
}

/// This tree's tools, `PATH`, the cargo home, and the `sbin` folders that a plain user's PATH often lacks.
fn folders() -> Vec<PathBuf> {
    let mut folders = vec![workspace::tools().join("bin")];
    folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    folders.extend(cargo_home().map(|home| home.join("bin")));
    folders.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders
}

/// Where cargo keeps what it fetched.
pub(crate) fn cargo_home() -> Option<PathBuf> {
    let explicit = env::var_os("CARGO_HOME").map(PathBuf::from);
    explicit.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outer_cargos_variables_are_dropped_and_the_users_stay() {
        assert!(left_by_cargo("CARGO_PKG_NAME"));
        assert!(left_by_cargo("RUSTUP_TOOLCHAIN"));
        assert!(!left_by_cargo("CARGO_HOME"));
        assert!(!left_by_cargo("CARGO_TERM_COLOR"));
        assert!(!left_by_cargo("CI"));
    }

    #[test]
    fn library_folders_of_the_build_are_dropped() {
        let build = workspace::target().join("debug/deps");
        let toolchain = Path::new("/home/me/.rustup/toolchains/stable/lib").to_path_buf();
        let path = env::join_paths([build, "/opt/lib".into(), toolchain]).unwrap();
        assert_eq!(without_toolchain_folders(&path), "/opt/lib");
    }

    #[test]
    fn a_failed_command_is_named_in_the_error() {
        let error = run(command("false").arg("--flag")).unwrap_err().to_string();
        assert!(error.starts_with("`false --flag` ended with"), "{error}");
    }

    #[test]
    fn programs_are_found_and_files_that_cannot_run_are_not() {
        assert!(find("ls").is_some());
        assert!(!is_program(Path::new("/etc/passwd")));
    }
}
