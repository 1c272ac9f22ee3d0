//! A folder of ordinary Kubernetes manifests: the way to use the agent without an API server.
//!
//! Any hint that something changed leads to a look at the whole folder, so it does not matter how a change was made: by
//! writing, by renaming over a file, by exchanging a symbolic link as mounted ConfigMaps do. A file that cannot be
//! understood keeps its last good version in force.

mod folder;
mod manifest;

use std::{path::PathBuf, time::Duration};

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::model::{Event, Source};
pub use folder::Folder;
pub use manifest::{Document, ManifestError};

/// A change is rarely alone.
const SETTLE: Duration = Duration::from_millis(30);
/// Without a hint: the kernel's queue of hints can overflow, and some file systems give none.
const RESCAN: Duration = Duration::from_secs(30);
/// While the folder cannot be watched, because it does not exist, as a rule.
const UNWATCHED: Duration = Duration::from_secs(2);

/// Says what the folder holds, then what changes in it, until nobody listens.
pub async fn watch(path: PathBuf, events: mpsc::Sender<Event>) {
    let (hint, mut hints) = mpsc::channel::<()>(1);
    let mut watcher = None;
    let mut folder = Folder::new(path.clone());
    let mut synced = false;
    loop {
        // Before the look, so that nothing falls between the two.
        if watcher.is_none() {
            watcher = start(&path, &hint);
        }
        let (scanned, news) = match tokio::task::spawn_blocking(move || {
            let news = folder.scan();
            (folder, news)
        })
        .await
        {
            Ok(result) => result,
            Err(error) => {
                tracing::error!(%error, "reading the manifests ended unexpectedly");
                return;
            }
        };
        folder = scanned;
        if folder.is_missing() {
            watcher = None;
        }
        let first = (!synced).then_some(Event::Synced(Source::Files));
        synced = true;
        for event in news.into_iter().chain(first) {
            if events.send(event).await.is_err() {
                return;
            }
        }
        let pause = if watcher.is_some() { RESCAN } else { UNWATCHED };
        tokio::select! {
            _ = hints.recv() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(pause) => {}
            () = events.closed() => return,
        }
        while hints.try_recv().is_ok() {}
    }
}

fn start(path: &std::path::Path, hint: &mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let hint = hint.clone();
    let tell = move |result: notify::Result<notify::Event>| {
        // Reading is what we do ourselves.
        if result.is_ok_and(|event| !event.kind.is_access()) {
            // Full means that a look is due already.
            let _ = hint.try_send(());
        }
    };
    let mut watcher = notify::recommended_watcher(tell)
        .inspect_err(|error| tracing::warn!(%error, "file system hints are not to be had; the folder is read from time to time"))
        .ok()?;
    watcher.watch(path, RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}

#[cfg(test)]
mod tests;
