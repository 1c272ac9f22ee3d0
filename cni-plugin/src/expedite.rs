//! Attachments that do not wait for the kernel's clock.
//!
//! A program that is attached by a tcx link, or that goes away with its device, costs a grace period of RCU under the
//! lock of all network devices: some ticks of the clock, and a pod has two programs. While `rcu_expedited` is set, the
//! kernel asks the processors that are at work instead, as it does itself whenever a network device goes away, and has
//! its answer in a fraction of a millisecond. Processors that are idle, or that run nothing but a user's program
//! (`nohz_full`), are not disturbed.
//!
//! The setting is everybody's. So it is on for a moment only, and one that somebody else chose is left alone. The
//! agent and the plugin's processes note in one file beside the agent's socket that it was them, and hold a shared
//! lock on it for as long as they need the setting; whoever is the last takes it back. The lock of one that is killed
//! goes with it, so that the next one, or the next agent, or `millrace uninstall` finds a note that nobody stands by.
//! A reboot clears the note away as it does the setting.

use nix::fcntl::{Flock, FlockArg};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

/// Where the kernel has it.
pub const RCU_EXPEDITED: &str = "/sys/kernel/rcu_expedited";

const OFF: &str = "0\n";
const ON: &str = "1\n";

/// The kernel's switch, and where is noted that it was turned.
#[derive(Clone, Debug)]
pub struct Expedite {
    switch: PathBuf,
    note: PathBuf,
}

/// As long as this lives, the kernel hurries.
#[must_use]
#[derive(Debug)]
pub struct Expedited {
    expedite: Expedite,
    note: Flock<File>,
}

impl Expedite {
    /// With an empty `switch` nothing is ever turned on.
    pub fn new(switch: &Path, agent_socket: &Path) -> Self {
        Self {
            switch: switch.to_owned(),
            note: agent_socket.with_file_name("rcu-expedited"),
        }
    }

    pub fn note(&self) -> &Path {
        &self.note
    }

    /// `None` where the kernel hurries anyway or cannot be made to: whatever follows takes its time then.
    pub fn begin(&self) -> Option<Expedited> {
        if self.switch.as_os_str().is_empty() {
            return None;
        }
        let mut note = open(&self.note, true).ok()?;
        let was_on = is_on(&self.switch).ok()?;
        // In this order: who turns it on has noted it before.
        let noted = note.metadata().ok()?.len() != 0;
        if was_on && !noted {
            return None;
        }
        if !was_on {
            note.rewind().ok()?;
            note.write_all(self.switch.as_os_str().as_encoded_bytes()).ok()?;
        }
        let expedited = Expedited {
            expedite: self.clone(),
            note,
        };
        match was_on {
            true => Some(expedited),
            false => fs::write(&self.switch, ON).ok().map(|()| expedited),
        }
    }

    /// Takes back what a killed process left; true if there was something.
    pub fn recover(&self) -> io::Result<bool> {
        match open(&self.note, false) {
            Ok(note) => self.take_back(&note),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn take_back(&self, note: &Flock<File>) -> io::Result<bool> {
        if note.relock(FlockArg::LockExclusiveNonblock).is_err() {
            // Somebody still needs it, and takes it back.
            return Ok(false);
        }
        let mut turned = String::new();
        let mut file: &File = note;
        file.rewind()?;
        file.read_to_string(&mut turned)?;
        if turned.is_empty() {
            return Ok(false);
        }
        // In a container the same switch has another path.
        let left_on = turn_off(Path::new(&turned)).or_else(|_| turn_off(&self.switch))?;
        note.set_len(0)?;
        Ok(left_on)
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        if let Err(error) = self.expedite.take_back(&self.note) {
            let switch = self.expedite.switch.display();
            tracing::warn!(%error, "grace periods stay expedited; write 0 to {switch}");
        }
    }
}

fn open(path: &Path, create: bool) -> io::Result<Flock<File>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .open(path)?;
    // Held against others only by one that takes the setting back at this moment.
    Flock::lock(file, FlockArg::LockSharedNonblock).map_err(|(_, errno)| errno.into())
}

/// Whether it was on.
fn turn_off(switch: &Path) -> io::Result<bool> {
    let was_on = is_on(switch)?;
    if was_on {
        fs::write(switch, OFF)?;
    }
    Ok(was_on)
}

fn is_on(switch: &Path) -> io::Result<bool> {
    Ok(fs::read_to_string(switch)?.trim() != OFF.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        _folder: tempfile::TempDir,
        expedite: Expedite,
    }

    fn host(value: &str) -> Host {
        let folder = tempfile::tempdir().unwrap();
        let switch = folder.path().join("switch");
        fs::write(&switch, value).unwrap();
        let expedite = Expedite::new(&switch, &folder.path().join("agent.sock"));
        Host {
            _folder: folder,
            expedite,
        }
    }

    impl Host {
        fn value(&self) -> String {
            fs::read_to_string(&self.expedite.switch).unwrap()
        }

        fn with_switch(&self, switch: &str) -> Expedite {
            Expedite {
                switch: switch.into(),
                ..self.expedite.clone()
            }
        }

        /// The same seen from where it has another path.
        fn noted_elsewhere(&self) {
            fs::write(self.expedite.note(), "/nonexistent/switch").unwrap();
        }

        /// As a process that is killed leaves it: its lock is gone.
        fn killed(&self) {
            fs::write(self.expedite.note(), self.expedite.switch.to_str().unwrap()).unwrap();
            fs::write(&self.expedite.switch, ON).unwrap();
        }

        fn noted(&self) -> bool {
            fs::metadata(self.expedite.note()).is_ok_and(|note| note.len() != 0)
        }
    }

    #[test]
    fn the_switch_is_on_for_as_long_as_somebody_needs_it() {
        let host = host(OFF);
        let first = host.expedite.begin();
        assert!(first.is_some());
        let second = host.expedite.begin();
        assert!(second.is_some());
        drop(first);
        assert!(!host.expedite.recover().unwrap(), "somebody needs it");
        assert_eq!(host.value(), ON);
        drop(second);
        assert_eq!((host.value().as_str(), host.noted()), (OFF, false));
    }

    #[test]
    fn many_at_once_leave_it_off() {
        let host = host(OFF);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..200).for_each(|_| drop(host.expedite.begin())));
            }
        });
        assert_eq!((host.value().as_str(), host.noted()), (OFF, false));
    }

    #[test]
    fn a_panic_takes_it_back() {
        let host = host(OFF);
        let expedite = host.expedite.clone();
        let panic = std::thread::spawn(move || {
            let _expedited = expedite.begin();
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        assert!(panic.join().is_err());
        assert_eq!((host.value().as_str(), host.noted()), (OFF, false));
    }

    #[test]
    fn what_somebody_else_chose_stays() {
        let host = host(ON);
        assert!(host.expedite.begin().is_none());
        assert!(!host.expedite.recover().unwrap());
        assert_eq!((host.value().as_str(), host.noted()), (ON, false));
    }

    #[test]
    fn what_a_killed_one_left_is_taken_back_by_the_next_and_at_a_start() {
        let host = host(OFF);
        host.killed();
        drop(host.expedite.begin());
        assert_eq!((host.value().as_str(), host.noted()), (OFF, false));
        host.killed();
        host.noted_elsewhere();
        assert!(host.expedite.recover().unwrap());
        assert_eq!((host.value().as_str(), host.noted()), (OFF, false));
        host.killed();
        // Also by one that is not to turn it on.
        assert!(host.with_switch("").recover().unwrap());
        assert!(!host.with_switch("").recover().unwrap());
        assert_eq!((host.value().as_str(), host.noted()), (OFF, false));
    }

    #[test]
    fn nothing_is_touched_where_it_is_not_to_be_or_could_not_be_taken_back() {
        let host = host(OFF);
        let without_a_place_for_notes = Expedite {
            note: "/nonexistent/note".into(),
            ..host.expedite.clone()
        };
        assert!(host.with_switch("").begin().is_none());
        assert!(without_a_place_for_notes.begin().is_none());
        // It reads 0 and takes nothing.
        assert!(
            host.with_switch("/sys/class/net/lo/addr_assign_type")
                .begin()
                .is_none()
        );
        assert_eq!((host.value().as_str(), host.noted()), (OFF, false));
    }
}
