//! Attachments that do not wait for the kernel's clock.
//!
//! A program that is attached by a tcx link, or taken off, costs a grace period of RCU under the lock of all network
//! devices: some ticks of the clock, and a pod has two programs. While `rcu_expedited` is set, the kernel asks the
//! processors that are at work instead, as it does whenever a network device goes away, and has its answer in a
//! fraction of a millisecond. Processors that are idle, or that run nothing but a user's program (`nohz_full`), are
//! not disturbed.
//!
//! The setting is everybody's. So it is set for one change at a time and taken back, and one that somebody else chose
//! is left alone. Should the process be killed in between, a note lies beside its socket, where a reboot clears it
//! away as it does the setting; the next agent and `millrace uninstall` see to it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::config::Paths;

const OFF: &str = "0\n";
const ON: &str = "1\n";

/// The kernel's switch, and where is noted that it was turned.
#[derive(Clone, Debug)]
pub struct Expedite {
    /// Empty: not to be touched.
    switch: PathBuf,
    note: PathBuf,
}

/// As long as this lives, the kernel hurries.
#[must_use]
#[derive(Debug)]
pub struct Expedited(Expedite);

impl Expedite {
    pub fn new(paths: &Paths) -> Self {
        Self {
            switch: paths.rcu_expedited.clone(),
            note: paths.agent_socket.with_file_name("rcu-expedited"),
        }
    }

    /// `None` where the kernel hurries anyway or cannot be made to: whatever follows takes its time then.
    pub fn begin(&self) -> Option<Expedited> {
        if self.switch.as_os_str().is_empty() || fs::read_to_string(&self.switch).ok()?.trim() != OFF.trim() {
            return None;
        }
        // Without a note nobody could put right what a killed process leaves.
        fs::write(&self.note, self.switch.as_os_str().as_encoded_bytes()).ok()?;
        if fs::write(&self.switch, ON).is_err() {
            let _ = fs::remove_file(&self.note);
            return None;
        }
        super::fault::while_expedited();
        Some(Expedited(self.clone()))
    }

    /// Takes back what a killed process left; true if there was something.
    pub fn recover(&self) -> io::Result<bool> {
        let switch = match fs::read_to_string(&self.note) {
            Ok(switch) => switch,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        // The note that is not whole was not followed by anything.
        if !switch.is_empty() {
            fs::write(Path::new(&switch), OFF)?;
        }
        fs::remove_file(&self.note)?;
        Ok(true)
    }
}

impl Drop for Expedited {
    fn drop(&mut self) {
        if let Err(error) = self.0.recover() {
            let switch = self.0.switch.display();
            tracing::warn!(%error, "grace periods stay expedited; write 0 to {switch}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        folder: tempfile::TempDir,
        expedite: Expedite,
    }

    fn host(value: &str) -> Host {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths {
            rcu_expedited: folder.path().join("switch"),
            agent_socket: folder.path().join("agent.sock"),
            ..Paths::default()
        };
        fs::write(&paths.rcu_expedited, value).unwrap();
        let expedite = Expedite::new(&paths);
        Host { folder, expedite }
    }

    impl Host {
        fn value(&self) -> String {
            fs::read_to_string(&self.expedite.switch).unwrap()
        }

        fn files(&self) -> usize {
            fs::read_dir(self.folder.path()).unwrap().count()
        }
    }

    #[test]
    fn the_switch_is_on_for_as_long_as_somebody_hurries() {
        let host = host(OFF);
        let expedited = host.expedite.begin();
        assert!(expedited.is_some());
        assert_eq!(host.value(), ON);
        drop(expedited);
        assert_eq!((host.value().as_str(), host.files()), (OFF, 1));
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
        assert_eq!((host.value().as_str(), host.files()), (OFF, 1));
    }

    #[test]
    fn what_somebody_else_chose_stays() {
        let host = host(ON);
        assert!(host.expedite.begin().is_none());
        assert!(!host.expedite.recover().unwrap());
        assert_eq!((host.value().as_str(), host.files()), (ON, 1));
    }

    #[test]
    fn the_next_one_takes_back_what_a_killed_one_left() {
        let host = host(OFF);
        std::mem::forget(host.expedite.begin());
        assert_eq!((host.value().as_str(), host.files()), (ON, 2));
        // Also if it is not to touch the switch itself.
        let off = Expedite {
            switch: PathBuf::new(),
            ..host.expedite.clone()
        };
        assert!(off.recover().unwrap());
        assert!(!off.recover().unwrap());
        assert_eq!((host.value().as_str(), host.files()), (OFF, 1));
    }

    #[test]
    fn a_switch_that_cannot_be_turned_leaves_no_note() {
        let host = host(OFF);
        // It reads 0 and takes nothing.
        let fixed = Expedite {
            switch: "/sys/class/net/lo/addr_assign_type".into(),
            ..host.expedite.clone()
        };
        assert!(fixed.begin().is_none());
        assert_eq!(host.files(), 1);
    }

    #[test]
    fn nothing_is_touched_where_it_is_switched_off_or_could_not_be_put_right() {
        let host = host(OFF);
        let off = Expedite {
            switch: PathBuf::new(),
            ..host.expedite.clone()
        };
        let without_a_place_for_notes = Expedite {
            note: host.folder.path().join("missing/note"),
            ..host.expedite.clone()
        };
        assert!(off.begin().is_none());
        assert!(without_a_place_for_notes.begin().is_none());
        assert_eq!((host.value().as_str(), host.files()), (OFF, 1));
    }
}
