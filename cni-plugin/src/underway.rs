//! ADDs that are under way, on disk: what tells an agent that begins which of the endpoints it finds are complete.
//!
//! The end of the plugin's connection tells a running agent that an ADD was cut short. If the agent ends too, before it
//! has noticed, the endpoint is on disk and in the kernel, and the runtime believes that there is none. So the plugin
//! keeps a file here, named after the attachment, from before it asks for an endpoint until after its result is printed,
//! and holds a lock on it. The lock goes with the process. A file that somebody has locked is an ADD that goes on, whose
//! agent was merely replaced; one that nobody has locked is of a plugin that died; and an endpoint without a file is
//! complete, or of a release that kept none.
//!
//! Nothing is synced to the disk: after a loss of power the devices are gone, and that tells the same.

use crate::Attachment;
use nix::fcntl::{Flock, FlockArg};
use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// Whoever looks at a file of a dead plugin has it locked for a moment.
const ATTEMPTS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(5);

/// The folder under the state folder.
pub fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("adding")
}

fn path(state_dir: &Path, attachment: &Attachment) -> PathBuf {
    folder(state_dir).join(attachment.host_ifname())
}

/// The file of one ADD, locked.
#[derive(Debug)]
struct Held {
    path: PathBuf,
    _file: Flock<File>,
}

impl Held {
    /// The file goes before the lock.
    fn remove(self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// An ADD that goes on. Dropped without [`Underway::end`], it counts as cut short.
#[derive(Debug)]
pub struct Underway(Held);

impl Underway {
    /// Begins an ADD. What an earlier one of the same attachment has left is taken over.
    ///
    /// The error is of kind `WouldBlock` if another ADD of the attachment goes on.
    pub fn begin(state_dir: &Path, attachment: &Attachment) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder(state_dir))?;
        let path = path(state_dir, attachment);
        let mut busy = io::Error::from(io::ErrorKind::WouldBlock);
        for _ in 0..ATTEMPTS {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)?;
            match lock(file) {
                Ok(file) if is_at(&file, &path)? => return Ok(Self(Held { path, _file: file })),
                // Whoever had it locked has removed it.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    busy = error;
                    thread::sleep(PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
        Err(busy)
    }

    /// The runtime has its result, or nothing is left that an agent would have to take back.
    pub fn end(self) -> io::Result<()> {
        self.0.remove()
    }
}

/// An ADD whose plugin died. Nobody can begin another one of the same attachment while this lives.
#[derive(Debug)]
pub struct CutShort(Held);

impl CutShort {
    /// It has been taken back.
    pub fn forget(self) -> io::Result<()> {
        self.0.remove()
    }
}

/// How far an ADD is that has a file.
#[derive(Debug)]
pub enum Progress {
    GoesOn,
    CutShort(CutShort),
}

/// The ADDs that have a file, by the names of their host's ends.
pub fn list(state_dir: &Path) -> io::Result<BTreeMap<String, Progress>> {
    let entries = match fs::read_dir(folder(state_dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let entry = entry?;
        if let Some(progress) = look(&entry.path())? {
            found.insert(entry.file_name().to_string_lossy().into_owned(), progress);
        }
    }
    Ok(found)
}

/// The ADD of this attachment, if its plugin died.
pub fn cut_short(state_dir: &Path, attachment: &Attachment) -> io::Result<Option<CutShort>> {
    match look(&path(state_dir, attachment))? {
        Some(Progress::CutShort(cut_short)) => Ok(Some(cut_short)),
        _ => Ok(None),
    }
}

fn look(path: &Path) -> io::Result<Option<Progress>> {
    let file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match lock(file) {
        // Otherwise it has ended since the file was opened: the file goes before the lock.
        Ok(file) if is_at(&file, path)? => Ok(Some(Progress::CutShort(CutShort(Held {
            path: path.to_owned(),
            _file: file,
        })))),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Some(Progress::GoesOn)),
        Err(error) => Err(error),
    }
}

fn lock(file: File) -> io::Result<Flock<File>> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}

/// Whether the path still leads to this file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(there) => {
            let ours = file.metadata()?;
            Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment::new("a", "eth0")
    }

    /// The names, and whether each goes on.
    fn names(state: &Path) -> Vec<(String, bool)> {
        let found = list(state).unwrap().into_iter();
        found
            .map(|(name, progress)| (name, matches!(progress, Progress::GoesOn)))
            .collect()
    }

    #[test]
    fn an_add_goes_on_until_it_ends_and_is_cut_short_if_it_does_not() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(names(state.path()), []);
        let name = attachment().host_ifname();
        let add = Underway::begin(state.path(), &attachment()).unwrap();
        assert_eq!(names(state.path()), [(name.clone(), true)]);
        assert!(cut_short(state.path(), &attachment()).unwrap().is_none());
        add.end().unwrap();
        assert_eq!(names(state.path()), []);
        drop(Underway::begin(state.path(), &attachment()).unwrap());
        assert_eq!(names(state.path()), [(name, false)]);
        cut_short(state.path(), &attachment())
            .unwrap()
            .unwrap()
            .forget()
            .unwrap();
        assert_eq!(names(state.path()), []);
    }

    #[test]
    fn the_next_add_takes_over_what_one_has_left_and_two_at_a_time_are_refused() {
        let state = tempfile::tempdir().unwrap();
        drop(Underway::begin(state.path(), &attachment()).unwrap());
        let add = Underway::begin(state.path(), &attachment()).unwrap();
        let error = Underway::begin(state.path(), &attachment()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        add.end().unwrap();
        Underway::begin(state.path(), &attachment())
            .unwrap()
            .end()
            .unwrap();
    }

    #[test]
    fn an_add_that_begins_while_another_is_taken_back_waits_and_has_a_file_of_its_own() {
        let state = tempfile::tempdir().unwrap();
        drop(Underway::begin(state.path(), &attachment()).unwrap());
        let taken_back = cut_short(state.path(), &attachment()).unwrap().unwrap();
        thread::scope(|scope| {
            let add = scope.spawn(|| Underway::begin(state.path(), &attachment()).unwrap());
            thread::sleep(10 * PAUSE);
            taken_back.forget().unwrap();
            let add = add.join().unwrap();
            assert_eq!(names(state.path()), [(attachment().host_ifname(), true)]);
            add.end().unwrap();
        });
    }
}
