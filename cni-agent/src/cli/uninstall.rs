//! `millrace uninstall`.

use std::{
    fs,
    io::{self, IsTerminal, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use nix::sys::signal::{SigSet, Signal};

use super::{Context, Failure, Outcome, print_json};
use crate::{
    conflist,
    kernel::{Pins, devices, kube_proxy, links, netlink::Netlink, routes, sockets},
};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Where the CNI configuration was installed, if it is not where the setting `cni.conflist` says
    #[arg(long, value_name = "FILE")]
    cni_config: Option<PathBuf>,
    /// Where the CNI plugin was installed
    #[arg(long, value_name = "FILE", default_value = "/opt/cni/bin/millrace-cni")]
    cni_plugin: PathBuf,
    /// Having removed everything, wait for SIGTERM instead of ending: a DaemonSet starts what ends again
    #[arg(long)]
    stay: bool,
}

/// What was done, and what could not be.
#[derive(Default)]
struct Removal {
    removed: Vec<String>,
    /// What of others' had been out of their way.
    restored: Vec<String>,
    failed: Vec<String>,
}

impl Removal {
    /// Goes on past errors: what is left is less, and each of it is named.
    fn step<E: std::fmt::Display>(&mut self, what: impl Into<String>, result: Result<bool, E>) {
        let what = what.into();
        match result {
            Ok(true) => self.removed.push(what),
            Ok(false) => {}
            Err(error) => self.failed.push(format!("{what}: {error}")),
        }
    }
}

pub(crate) fn run(context: &Context, options: &Options) -> Outcome {
    if !nix::unistd::geteuid().is_root() {
        return Err("run this as root".into());
    }
    if UnixStream::connect(&context.config.paths.admin_socket).is_ok() {
        return Err(
            "an agent runs on this node and would put everything back; stop it first (delete the DaemonSet, \
                    or end the process)"
                .into(),
        );
    }
    if !options.yes && !confirmed()? {
        return Err("nothing was removed".into());
    }
    let mut removal = Removal::default();
    let sockets = sockets::detach(&context.pins());
    removal.step("links of the programs of sockets", sockets);
    remove_links(context, &mut removal);
    remove_network(context, &mut removal);
    removal.step(
        "tables for connections that kube-proxy has translated",
        kube_proxy::let_go(),
    );
    remove_files(context, options, &mut removal);
    report(context, &removal)?;
    if !removal.failed.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    if options.stay {
        wait_for_the_end()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The first process of a container is ended by no signal that it does not ask for.
fn wait_for_the_end() -> Result<(), Failure> {
    let ends = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    ends.thread_block()?;
    ends.wait()?;
    Ok(())
}

fn confirmed() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err("nobody is there to be asked; say --yes".into());
    }
    let mut out = io::stdout().lock();
    write!(
        out,
        "Pods of this node lose their network, and their addresses are forgotten. Go on? [y/N] "
    )?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn remove_links(context: &Context, removal: &mut Removal) {
    let pins = context.pins();
    let mut netlink = match Netlink::open() {
        Ok(netlink) => netlink,
        Err(error) => return removal.step("open an rtnetlink socket", Err::<bool, _>(error)),
    };
    match links::list(&pins, &mut netlink, &links::Programs::new()) {
        Ok(found) => {
            for key in found.keys() {
                removal.step(
                    format!("link {key}"),
                    links::detach(&pins, &mut netlink, key).map(|()| true),
                );
            }
        }
        Err(error) => removal.step("list the links", Err::<bool, _>(error)),
    }
}

fn remove_network(context: &Context, removal: &mut Removal) {
    let Ok(mut netlink) = Netlink::open() else { return };
    match routes::list(&mut netlink) {
        Ok(found) => {
            for key in found.keys() {
                let result = routes::remove(&mut netlink, key).map(|()| true);
                removal.step(format!("route {}", key.destination), result);
            }
        }
        Err(error) => removal.step("list the routes", Err::<bool, _>(error)),
    }
    // The pods' ends go with the host's; a pod without programs has no network anyway.
    match devices::veths(&mut netlink, None) {
        Ok(found) => {
            for name in found.keys() {
                removal.step(
                    format!("device {name}"),
                    devices::remove(&mut netlink, name).map(|()| true),
                );
            }
        }
        Err(error) => removal.step("list the devices", Err::<bool, _>(error)),
    }
    match devices::stop_pacing(&mut netlink) {
        Ok(found) => {
            for ifindex in found {
                removal.step(
                    format!("queueing discipline of device {ifindex}"),
                    Ok::<_, io::Error>(true),
                );
            }
        }
        Err(error) => removal.step(
            "give devices their queueing discipline back",
            Err::<bool, _>(error),
        ),
    }
    let tunnel = &context.config.vxlan.device;
    let ours = devices::is_tunnel(&mut netlink, tunnel);
    let result = ours.and_then(|ours| {
        if ours {
            devices::remove(&mut netlink, tunnel).map(|()| true)
        } else {
            Ok(false)
        }
    });
    removal.step(format!("device {tunnel}"), result);
}

fn remove_files(context: &Context, options: &Options, removal: &mut Removal) {
    let paths = &context.config.paths;
    remove_pins(&context.pins(), removal);
    let expedite = paths.expedite();
    removal.step("rcu_expedited, which was left on", expedite.recover());
    removal.step(
        expedite.note().display().to_string(),
        remove_file(expedite.note()),
    );
    removal.step(paths.state.display().to_string(), remove_folder(&paths.state));
    for socket in [&paths.agent_socket, &paths.admin_socket] {
        removal.step(socket.display().to_string(), remove_file(socket));
        if let Some(folder) = socket.parent().filter(|folder| folder.ends_with("millrace")) {
            // Stays while somebody else's file is in it.
            let _ = fs::remove_dir(folder);
        }
    }
    let plugin = &options.cni_plugin;
    removal.step(plugin.display().to_string(), remove_file(plugin));
    let configuration = options
        .cni_config
        .as_ref()
        .unwrap_or(&context.config.cni.conflist);
    removal.step(
        configuration.display().to_string(),
        conflist::remove(configuration),
    );
    for (other, result) in conflist::bring_back(configuration) {
        let other = other.display().to_string();
        match result {
            Ok(()) => removal.restored.push(other),
            Err(error) => removal
                .failed
                .push(format!("give {other} its name back: {error}")),
        }
    }
}

fn remove_pins(pins: &Pins, removal: &mut Removal) {
    removal.step(pins.root().display().to_string(), remove_folder(pins.root()));
}

fn remove_file(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// In a container the host's folder is a mount in a file system that is read-only: it can be emptied and not removed.
fn remove_folder(path: &Path) -> io::Result<bool> {
    let is_empty = || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => match error.kind() {
            io::ErrorKind::ResourceBusy | io::ErrorKind::ReadOnlyFilesystem if is_empty() => Ok(true),
            _ => Err(error),
        },
    }
}

fn report(context: &Context, removal: &Removal) -> Result<(), Failure> {
    if context.json {
        return print_json(&serde_json::json!({
            "removed": removal.removed, "restored": removal.restored, "failed": removal.failed,
        }));
    }
    let mut out = io::stdout().lock();
    for what in &removal.removed {
        writeln!(out, "removed {what}")?;
    }
    for what in &removal.restored {
        writeln!(out, "gave {what} its name back")?;
    }
    for what in &removal.failed {
        writeln!(out, "FAILED  {what}")?;
    }
    if removal.failed.is_empty() {
        writeln!(
            out,
            "Millrace is gone from this node (kernel settings like ip_forward stay as they are)"
        )?;
    } else {
        writeln!(
            out,
            "not everything could be removed; run this again when what is named has been seen to"
        )?;
    }
    Ok(())
}
