//! Hands the BPF object to the agent, which embeds it as `OUT_DIR/millrace.bpf.o`.
//!
//! `MILLRACE_BPF_OBJECT` names the object; `.cargo/config.toml` points it at where `cargo xtask build` leaves it.
//! Without an object a debug build embeds an empty file, so that checking and linting need no BPF toolchain (the
//! loader then says so); a release build, which somebody might install, fails.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

fn main() -> ExitCode {
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=MILLRACE_BPF_OBJECT");
    let out = PathBuf::from(variable("OUT_DIR")?).join("millrace.bpf.o");
    let source = PathBuf::from(variable("MILLRACE_BPF_OBJECT")?);
    if source.is_file() {
        println!("cargo::rerun-if-changed={}", source.display());
        return fs::copy(&source, &out)
            .map(drop)
            .map_err(|e| format!("cannot copy {} to {}: {e}", source.display(), out.display()));
    }
    watch_for(&source);
    if variable("PROFILE")? == "release" {
        return Err(format!(
            "no BPF object at {}: run `cargo xtask build --release`",
            source.display()
        ));
    }
    fs::write(&out, []).map_err(|e| format!("cannot write {}: {e}", out.display()))
}

/// A missing file would count as always changed and rebuild the agent each time; its folder does not.
fn watch_for(object: &Path) {
    if let Some(folder) = object.parent()
        && fs::create_dir_all(folder).is_ok()
    {
        println!("cargo::rerun-if-changed={}", folder.display());
    }
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|e| format!("{name}: {e}; build from inside the workspace, with cargo"))
}
