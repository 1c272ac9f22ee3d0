//! Deletions that the agent has yet to hear of, kept on disk.
//!
//! A DEL must succeed while the agent is down, or nodes could not be drained. The plugin then removes the veth
//! itself and leaves the [`Release`] here. The agent *listens on its socket first*, then reads this queue and
//! carries it out before it does anything else, then answers. The plugin, after queueing, tries the socket once
//! more. So whichever comes first, a release is either read by the agent or received by it.
//!
//! A file is complete when it has its name: it is written aside, synced and renamed.

use crate::rpc::{Message, Release};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

const EXTENSION: &str = "json";
const UNFINISHED: &str = "tmp";

/// A release that waits in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    pub path: PathBuf,
    pub release: Release,
}

/// A queue file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the queued deletion {path} cannot be read: {reason}; remove the file if its container is gone")]
pub struct Unreadable {
    pub path: PathBuf,
    pub reason: String,
}

/// The queue's folder under the state folder.
pub fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("queue")
}

fn file_name(release: &Release) -> String {
    release.attachment().host_ifname()
}

/// Stores a release so that it survives a loss of power. Storing it again changes nothing.
pub fn push(state_dir: &Path, release: &Release) -> io::Result<PathBuf> {
    let folder = folder(state_dir);
    fs::create_dir_all(&folder)?;
    let path = folder.join(file_name(release)).with_extension(EXTENSION);
    let unfinished = path.with_extension(format!("{}.{UNFINISHED}", std::process::id()));
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .open(&unfinished)?;
    file.write_all(&serde_json::to_vec(&Message::new(release))?)?;
    file.sync_all()?;
    fs::rename(&unfinished, &path)?;
    sync_folder(&folder)?;
    Ok(path)
}

/// What is queued. The order does not matter: an attachment is queued at most once.
pub fn list(state_dir: &Path) -> io::Result<Vec<Result<Queued, Unreadable>>> {
    let entries = match fs::read_dir(folder(state_dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut queued = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            match read(&path) {
                Ok(Some(release)) => queued.push(Ok(Queued { path, release })),
                Ok(None) => {}
                Err(reason) => queued.push(Err(Unreadable { path, reason })),
            }
        } else if is_abandoned(&path) {
            remove(&path)?;
        }
    }
    Ok(queued)
}

/// The writer of a file this old is dead: no runtime lets a plugin run for so long.
fn is_abandoned(path: &Path) -> bool {
    let age = || fs::metadata(path).ok()?.modified().ok()?.elapsed().ok();
    path.extension().is_some_and(|extension| extension == UNFINISHED)
        && age().is_some_and(|age| age > Duration::from_secs(600))
}

fn read(path: &Path) -> Result<Option<Release>, String> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let message: Message<Release> = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    // Of whatever version: a release that lay here through several upgrades must still be carried out.
    Ok(Some(message.body))
}

/// Takes a carried-out release from the queue; one that is gone already is no error.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Forgets a queued release because the same attachment has been made anew.
pub fn forget(state_dir: &Path, release: &Release) -> io::Result<()> {
    remove(
        &folder(state_dir)
            .join(file_name(release))
            .with_extension(EXTENSION),
    )
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(container: &str) -> Release {
        Release {
            network: "net".into(),
            container_id: container.into(),
            ifname: "eth0".into(),
        }
    }

    fn good(state_dir: &Path) -> Vec<Release> {
        list(state_dir)
            .unwrap()
            .into_iter()
            .map(|queued| queued.unwrap().release)
            .collect()
    }

    #[test]
    fn queued_once_however_often_and_gone_when_removed() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(good(state.path()), []);
        let path = push(state.path(), &release("a")).unwrap();
        push(state.path(), &release("a")).unwrap();
        assert_eq!(good(state.path()), [release("a")]);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(good(state.path()), []);
    }

    #[test]
    fn forget_names_the_attachment() {
        let state = tempfile::tempdir().unwrap();
        push(state.path(), &release("a")).unwrap();
        push(state.path(), &release("b")).unwrap();
        forget(state.path(), &release("a")).unwrap();
        assert_eq!(good(state.path()), [release("b")]);
    }

    #[test]
    fn what_a_killed_plugin_left_unfinished_is_cleared_later() {
        let state = tempfile::tempdir().unwrap();
        push(state.path(), &release("a")).unwrap();
        let unfinished = folder(state.path()).join("mr00000000001.77.tmp");
        let file = File::create(&unfinished).unwrap();
        list(state.path()).unwrap();
        assert!(unfinished.exists());
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(3600))
            .unwrap();
        list(state.path()).unwrap();
        assert!(!unfinished.exists());
    }

    #[test]
    fn a_half_written_file_is_no_entry_and_a_bad_one_is_reported() {
        let state = tempfile::tempdir().unwrap();
        push(state.path(), &release("a")).unwrap();
        fs::write(folder(state.path()).join("mr00000000001.77.tmp"), "{\"versi").unwrap();
        assert_eq!(good(state.path()), [release("a")]);
        fs::write(folder(state.path()).join("mr00000000002.json"), "{").unwrap();
        let listed = list(state.path()).unwrap();
        assert_eq!(listed.iter().filter(|entry| entry.is_err()).count(), 1);
    }
}
