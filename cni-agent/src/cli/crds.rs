//! `millrace crds`.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use super::Outcome;
use crate::source::k8s;

pub(crate) fn run() -> Outcome {
    io::stdout().write_all(k8s::crds()?.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
