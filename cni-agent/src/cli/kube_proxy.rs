//! `millrace kube-proxy`.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Args, Subcommand};

use super::{Context, Failure, Outcome, ask, print_json};
use crate::{
    config::Proxy,
    kernel::kube_proxy::{Leftovers, running},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Remove the rules that a kube-proxy has left on this node, those that `kube-proxy --cleanup` would remove
    ///
    /// Connections that it has translated go on: a table of nftables stays for them, which does nothing else. Run this
    /// again when they have ended, and it is removed too.
    ///
    /// Exit status: 1 if it refuses (with --dry-run that is a note on standard error), and while there are leftovers that
    /// it cannot remove (chains of legacy iptables, IPVS) and `kube-proxy --cleanup` can.
    Cleanup(Options),
}

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only say what would be removed, and what would make it refuse
    #[arg(long)]
    dry_run: bool,
    /// Also end the connections that kube-proxy has translated
    #[arg(long)]
    cut: bool,
    /// Also while a kube-proxy runs, or while Millrace does not serve Services here
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(context: &Context, command: &Command) -> Outcome {
    let Command::Cleanup(options) = command;
    if !nix::unistd::geteuid().is_root() {
        return Err("run this as root".into());
    }
    match obstacle(context) {
        Some(reason) if options.force => eprintln!("warning: {reason}"),
        Some(reason) if options.dry_run => eprintln!("note: it would refuse: {reason}, or say --force"),
        Some(reason) => return Err(format!("{reason}, or say --force").into()),
        None => {}
    }
    let found = Leftovers::find()?;
    let hold = found.connections > 0 && !options.cut;
    if !options.dry_run {
        found.remove(hold).map_err(|error| {
            format!("remove kube-proxy's rules: {error}; somebody changes rules meanwhile: run this again")
        })?;
    }
    report(context, &found, options.dry_run, hold)?;
    Ok(if found.foreign().is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Why its rules should stay, and what to do.
fn obstacle(context: &Context) -> Option<String> {
    if let Some(mode) = running() {
        return Some(format!(
            "a kube-proxy runs on this node ({}) and would put everything back; end it first",
            if mode.is_empty() {
                "it does not say its mode"
            } else {
                &mode
            }
        ));
    }
    if context.config.services.proxy != Proxy::Millrace {
        return Some(
            "Services are the stack's business on this node (services.proxy: stack); set services.proxy to millrace and \
             restart the agent first"
                .to_owned(),
        );
    }
    let served = match ask::status(&context.config.paths.admin_socket) {
        Ok(status) => status.services.is_some_and(|services| services.synced.is_some()),
        Err(error) => return Some(error.to_string()),
    };
    (!served).then(|| "the agent has not written all Services yet; see `millrace status`".to_owned())
}

fn report(context: &Context, found: &Leftovers, dry_run: bool, hold: bool) -> Result<(), Failure> {
    if context.json {
        let removed: Vec<String> = found.removable().map(|found| found.to_string()).collect();
        let shared: Vec<String> = found.shared().collect();
        return print_json(&serde_json::json!({
            "dryRun": dry_run, "removed": removed, "shared": shared, "left": found.foreign(),
            "connections": found.connections, "held": hold,
        }));
    }
    let mut out = io::stdout().lock();
    let verb = if dry_run { "would remove" } else { "removed" };
    for what in found.removable() {
        writeln!(out, "{verb} {what}")?;
    }
    for chain in found.shared() {
        writeln!(out, "kept chain {chain}: somebody else's rule leads to it")?;
    }
    for what in found.foreign() {
        writeln!(
            out,
            "LEFT {what}: only `kube-proxy --cleanup`, with kube-proxy's own image, removes it"
        )?;
    }
    let connections = found.connections;
    match (hold, found.is_held()) {
        (true, _) => writeln!(
            out,
            "{connections} connections that it has translated go on; run this again when they have ended"
        )?,
        (false, true) => writeln!(out, "{verb} what was kept for its connections")?,
        (false, false) if found.is_empty() => writeln!(out, "nothing of a kube-proxy is on this node")?,
        (false, false) => {}
    }
    Ok(())
}
