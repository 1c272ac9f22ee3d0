//! The binary `millrace`: the agent of a node and its command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni_agent::cli::run()
}
