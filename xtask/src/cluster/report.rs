//! What a person asks a cluster that is up.

use std::fs;
use std::io::{Write, stdout};

use anyhow::{Context, Result};

use super::control::kubectl;
use super::place::Place;
use super::up::described;
use crate::process::run;

pub(crate) fn status(place: &Place, json: bool) -> Result<()> {
    let plan = place.plan()?;
    if json {
        println!("{}", described(place, &plan));
        return Ok(());
    }
    println!("export KUBECONFIG={}", place.kubeconfig().display());
    run(kubectl(place).args(["get", "nodes", "--output=wide"]))?;
    run(kubectl(place).args(["get", "pods", "--all-namespaces", "--output=wide"]))
}

pub(crate) fn logs(place: &Place, program: Option<&str>) -> Result<()> {
    let known = names(place)?;
    let Some(program) = program else {
        for name in known {
            println!("{name}");
        }
        return Ok(());
    };
    let path = place.log(program);
    let text =
        fs::read(&path).with_context(|| format!("no log of `{program}`; there are: {}", known.join(" ")))?;
    stdout().write_all(&text).context("writing")
}

fn names(place: &Place) -> Result<Vec<String>> {
    let folder = place.logs();
    let entries = folder
        .read_dir()
        .with_context(|| format!("no logs of a cluster `{place}`"))?;
    let mut names: Vec<_> = entries
        .flatten()
        .filter_map(|entry| Some(entry.path().file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    Ok(names)
}
