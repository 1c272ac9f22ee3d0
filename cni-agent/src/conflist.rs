//! The CNI configuration on the host: that it is there tells the container runtime, and by it the kubelet, that pods can be
//! started on this node.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    future::ready,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cni_plugin::SpecVersion;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::{
    config::{CniConfig, Config, OnExit, Paths},
    model::{Event, Source},
    source::inspect,
    status::Status,
};

/// Others write to the folder too.
const LOOK: Duration = Duration::from_secs(30);
/// For everybody to read, for nobody to run.
const MODE: u32 = 0o644;
/// What a configuration is called that was moved aside.
const ASIDE: &str = "millrace-aside";

/// The configuration and where it goes.
#[derive(Clone, Debug)]
pub struct Conflist {
    settings: CniConfig,
    install: bool,
    text: String,
}

impl Conflist {
    pub fn new(config: &Config) -> Self {
        Self {
            settings: config.cni.clone(),
            install: config.cni.install.unwrap_or(config.kubernetes.is_enabled()),
            text: format!("{:#}\n", content(&config.cni, &config.paths)),
        }
    }

    /// Keeps the configuration in place from the moment on that pods can be served, until nobody listens. That the agent
    /// cannot serve for a while afterwards withdraws nothing: runtimes ask by STATUS, and an ADD is tried again.
    pub async fn keep(self, mut status: watch::Receiver<Arc<Status>>, events: mpsc::Sender<Event>) {
        if !self.install || status.wait_for(|status| status.ready).await.is_err() {
            return;
        }
        inspect(Source::Runtime, LOOK, events, || ready(self.put())).await;
    }

    /// Puts it there; what is wrong, if something is.
    fn put(&self) -> Vec<String> {
        let path = &self.settings.conflist;
        let mut problems = Vec::new();
        match write(path, &self.text) {
            Ok(true) => tracing::info!(path = %path.display(), "the CNI configuration is installed; pods can start"),
            Ok(false) => {}
            Err(error) => problems.push(format!(
                "the CNI configuration {} cannot be written, no pod starts: {error}; mount its folder writable, or set cni.conflist",
                path.display()
            )),
        }
        for other in others(path) {
            if self.settings.move_others_aside {
                if let Err(error) = fs::rename(&other, aside(&other)) {
                    problems.push(format!(
                        "{} cannot be moved aside: {error}; remove it",
                        other.display()
                    ));
                }
            } else if other.file_name() < path.file_name() {
                problems.push(format!(
                    "the CNI configuration {} comes before ours, and pods get that network; remove it, or set cni.moveOthersAside",
                    other.display()
                ));
            }
        }
        problems
    }

    /// When the agent ends.
    pub fn leave(&self) {
        if self.install && self.settings.on_exit == OnExit::Withdraw {
            match fs::remove_file(&self.settings.conflist) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, "the CNI configuration could not be withdrawn");
                }
                _ => tracing::info!("the CNI configuration is withdrawn"),
            }
        }
    }
}

fn content(settings: &CniConfig, paths: &Paths) -> Value {
    let mut ours = json!({ "type": "millrace-cni" });
    let usual = Paths::default();
    for (key, path, usual) in [
        ("agentSocket", &paths.agent_socket, &usual.agent_socket),
        ("stateDir", &paths.state, &usual.state),
    ] {
        if path != usual {
            ours[key] = json!(path);
        }
    }
    if paths.rcu_expedited.as_os_str().is_empty() {
        ours["rcuExpedited"] = json!("");
    }
    if !settings.chained.is_empty() {
        ours["viaStack"] = json!(true);
    }
    let chained = settings.chained.iter().cloned().map(Value::Object);
    let mut list = json!({
        "cniVersion": settings.version(),
        "name": "millrace",
        "plugins": std::iter::once(ours).chain(chained).collect::<Vec<_>>(),
    });
    if let Some(versions) = settings.versions() {
        list["cniVersions"] = json!(versions.map(SpecVersion::as_str));
    }
    list
}

/// By rename, so that no runtime reads a half. False: it is there already.
fn write(path: &Path, text: &str) -> io::Result<bool> {
    let is_there = fs::symlink_metadata(path)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o7777 == MODE)
        && fs::read(path).is_ok_and(|found| found == text.as_bytes());
    if is_there {
        return Ok(false);
    }
    let unfinished = unfinished(path);
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(MODE)
        .open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    // Whatever this process's umask is.
    file.set_permissions(Permissions::from_mode(MODE))?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(true)
}

/// What a configuration is called while it is written: no runtime takes a file of this name for one.
fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("millrace-unfinished")
}

/// Takes the configuration away. False if there was none.
pub fn remove(path: &Path) -> io::Result<bool> {
    let mut removed = false;
    for file in [unfinished(path), path.to_owned()] {
        match fs::remove_file(file) {
            Ok(()) => removed = true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

/// Gives the configurations of other networks that were moved aside their names back, and says of each what came of it.
pub fn bring_back(path: &Path) -> Vec<(PathBuf, io::Result<()>)> {
    let moved = neighbours(path, &[ASIDE]).into_iter();
    moved
        .map(|aside| {
            let back = aside.with_extension("");
            let result = match back.try_exists() {
                Ok(true) => Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!(
                        "there is another one of this name by now; remove it or {}",
                        aside.display()
                    ),
                )),
                Ok(false) => fs::rename(aside, &back),
                Err(error) => Err(error),
            };
            (back, result)
        })
        .collect()
}

/// What a runtime would also take for a configuration.
fn others(path: &Path) -> Vec<PathBuf> {
    neighbours(path, &["conf", "conflist", "json"])
}

/// Files beside this one that end in one of these.
fn neighbours(path: &Path, ends: &[&str]) -> Vec<PathBuf> {
    let entries = path
        .parent()
        .and_then(|folder| fs::read_dir(folder).ok())
        .into_iter()
        .flatten();
    let files = entries.flatten().map(|entry| entry.path());
    let ends_so = |file: &PathBuf| {
        file.extension()
            .is_some_and(|end| ends.iter().any(|known| end == *known))
    };
    let mut found: Vec<PathBuf> = files.filter(|file| file != path && ends_so(file)).collect();
    found.sort();
    found
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{ASIDE}"));
    name.into()
}

#[cfg(test)]
mod tests;
