//! The endpoints on disk: what a restart, and for addresses a reboot, must not forget.
//!
//! One file an endpoint, complete when it has its name. An endpoint that was released moves to another folder until its
//! addresses have rested, so that a restart does not shorten the quarantine.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::model::{Endpoint, Phase};

const EXTENSION: &str = "json";
/// How many numbers are set aside at a time: a write for each would be one more for every pod.
const NUMBERS: u32 = 1024;

/// Reads and writes the records.
#[derive(Debug)]
pub struct Ledger {
    active: PathBuf,
    resting: PathBuf,
    /// Addresses that keep a file in `resting`.
    rests: BTreeMap<u32, Vec<IpAddr>>,
    /// Holds `set_aside`.
    numbers: PathBuf,
    /// No endpoint has had a number above.
    set_aside: u32,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Restored {
    pub endpoints: Vec<Endpoint>,
    /// Addresses that had been given back.
    pub resting: Vec<IpAddr>,
    /// No endpoint, whose record may be gone, has had a number above: connections and grants in the kernel bear the
    /// numbers of their endpoints, so a number is not given twice.
    pub last_id: u32,
    pub problems: Vec<String>,
}

impl Ledger {
    /// Makes the folders and reads what is in them.
    pub fn open(state_dir: &Path) -> io::Result<(Self, Restored)> {
        let mut ledger = Self {
            active: state_dir.join("endpoints"),
            resting: state_dir.join("addresses"),
            rests: BTreeMap::new(),
            numbers: state_dir.join("numbers"),
            set_aside: 0,
        };
        let mut restored = Restored::default();
        for folder in [&ledger.active, &ledger.resting] {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        match fs::read_to_string(&ledger.numbers) {
            Ok(text) => match text.trim().parse() {
                Ok(number) => ledger.set_aside = number,
                Err(error) => restored.problems.push(format!(
                    "{}: {error}; numbers of endpoints may be given twice. `millrace conntrack flush`, then restart the agent",
                    ledger.numbers.display()
                )),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        restored.last_id = ledger.set_aside;
        for endpoint in read(&ledger.active, &mut restored.problems)? {
            restored.last_id = restored.last_id.max(endpoint.id);
            // One that was only reserved has a plugin that lost its agent: it fails, and cleans up.
            if endpoint.phase != Phase::Reserved {
                restored.endpoints.push(endpoint);
            }
        }
        for endpoint in read(&ledger.resting, &mut restored.problems)? {
            restored.last_id = restored.last_id.max(endpoint.id);
            restored.resting.extend(&endpoint.addresses);
            ledger.rests.insert(endpoint.id, endpoint.addresses);
        }
        Ok((ledger, restored))
    }

    /// Sees to it that number `id` is not given again, whatever becomes of its record.
    pub fn claim_number(&mut self, id: u32) -> io::Result<()> {
        if id <= self.set_aside {
            return Ok(());
        }
        let bound = id.saturating_add(NUMBERS - 1);
        write(&self.numbers, bound.to_string().as_bytes())?;
        self.set_aside = bound;
        Ok(())
    }

    /// Writes records, also from another thread.
    pub fn writer(&self) -> Writer {
        Writer {
            folder: self.active.clone(),
        }
    }

    /// Notes that an endpoint is gone. If this is lost with the power, its device is too, and the record is collected.
    /// `rests`: its addresses must not be given again at once.
    pub fn release(&mut self, endpoint: &Endpoint, rests: bool) -> io::Result<()> {
        let from = file(&self.active, endpoint.id);
        let result = if rests {
            fs::rename(from, file(&self.resting, endpoint.id))
        } else {
            fs::remove_file(from)
        };
        match result {
            Ok(()) => {
                if rests {
                    self.rests.insert(endpoint.id, endpoint.addresses.clone());
                }
                Ok(())
            }
            // Never saved, or released before.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Forgets what has rested: everything but `resting`.
    pub fn wake(&mut self, resting: impl Fn(&IpAddr) -> bool) -> io::Result<()> {
        let awake: Vec<u32> = self
            .rests
            .iter()
            .filter(|(_, addresses)| !addresses.iter().any(&resting))
            .map(|(id, _)| *id)
            .collect();
        for id in awake {
            match fs::remove_file(file(&self.resting, id)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            self.rests.remove(&id);
        }
        Ok(())
    }
}

/// Writes records.
#[derive(Clone, Debug)]
pub struct Writer {
    folder: PathBuf,
}

impl Writer {
    /// Returns when all of them are on the disk.
    pub fn save(&self, endpoints: &[Endpoint]) -> io::Result<()> {
        for endpoint in endpoints {
            write(
                &file(&self.folder, endpoint.id),
                &serde_json::to_vec_pretty(endpoint)?,
            )?;
        }
        if !endpoints.is_empty() {
            File::open(&self.folder)?.sync_all()?;
        }
        Ok(())
    }
}

/// The file has its name when it is complete.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("tmp");
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(content)?;
    file.sync_data()?;
    fs::rename(&unfinished, path)
}

fn file(folder: &Path, id: u32) -> PathBuf {
    folder.join(format!("{id}.{EXTENSION}"))
}

fn read(folder: &Path, problems: &mut Vec<String>) -> io::Result<Vec<Endpoint>> {
    let mut endpoints = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != EXTENSION) {
            // Of an agent that was ended in the middle of a write.
            if path.extension().is_some_and(|extension| extension == "tmp") {
                fs::remove_file(&path)?;
            }
            continue;
        }
        let parsed = fs::read(&path)
            .map_err(|error| error.to_string())
            .and_then(|bytes| serde_json::from_slice::<Endpoint>(&bytes).map_err(|error| error.to_string()));
        match parsed {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(error) => problems.push(format!(
                "{}: {error}; the endpoint is treated as gone. Delete its pod and the file",
                path.display()
            )),
        }
    }
    endpoints.sort_by_key(|endpoint| endpoint.id);
    Ok(endpoints)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Rates;
    use cni_plugin::{Attachment, Mac};

    fn endpoint(id: u32) -> Endpoint {
        Endpoint {
            id,
            network: "net".into(),
            attachment: Attachment::new(format!("c{id}"), "eth0"),
            pod: None,
            pod_uid: String::new(),
            confirmed: false,
            addresses: vec![format!("10.0.0.{id}").parse().unwrap()],
            delegated: false,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            host_mac: Mac([2, 0, 0, 0, 0, 2]),
            mtu: 1450,
            via_stack: false,
            rates: Rates::default(),
            created: 1,
            phase: Phase::Programmed { ifindex: 7 },
        }
    }

    #[test]
    fn rel_33_endpoints_and_resting_addresses_outlive_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ledger, restored) = Ledger::open(folder.path()).unwrap();
        assert!(restored.endpoints.is_empty());
        ledger
            .writer()
            .save(&[endpoint(1), endpoint(2), endpoint(9)])
            .unwrap();
        ledger.release(&endpoint(9), true).unwrap();
        ledger.release(&endpoint(9), true).unwrap();
        let (mut ledger, restored) = Ledger::open(folder.path()).unwrap();
        assert_eq!(restored.endpoints, [endpoint(1), endpoint(2)]);
        assert_eq!(restored.resting, endpoint(9).addresses);
        assert_eq!(restored.last_id, 9);
        ledger.release(&endpoint(2), false).unwrap();
        ledger.wake(|_| true).unwrap();
        assert_eq!(Ledger::open(folder.path()).unwrap().1.resting.len(), 1);
        ledger.wake(|_| false).unwrap();
        assert_eq!(Ledger::open(folder.path()).unwrap().1.resting.len(), 0);
    }

    #[test]
    fn rel_38_a_number_is_not_given_twice() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ledger, restored) = Ledger::open(folder.path()).unwrap();
        assert_eq!(restored.last_id, 0);
        ledger.claim_number(1).unwrap();
        ledger.writer().save(&[endpoint(1)]).unwrap();
        ledger.release(&endpoint(1), false).unwrap();
        let (mut ledger, restored) = Ledger::open(folder.path()).unwrap();
        assert_eq!(restored.last_id, NUMBERS, "numbers may be left out");
        ledger.claim_number(NUMBERS).unwrap();
        assert_eq!(Ledger::open(folder.path()).unwrap().1.last_id, NUMBERS);
        ledger.claim_number(NUMBERS + 1).unwrap();
        assert_eq!(Ledger::open(folder.path()).unwrap().1.last_id, 2 * NUMBERS);
        fs::write(folder.path().join("numbers"), "many").unwrap();
        let problems = Ledger::open(folder.path()).unwrap().1.problems;
        assert!(problems[0].contains("numbers"), "{problems:?}");
    }

    #[test]
    fn a_reservation_does_not_outlive_the_agent_and_damage_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(folder.path()).unwrap();
        ledger
            .writer()
            .save(&[Endpoint {
                phase: Phase::Reserved,
                ..endpoint(1)
            }])
            .unwrap();
        fs::write(folder.path().join("endpoints/5.json"), "{").unwrap();
        fs::write(folder.path().join("endpoints/6.tmp"), "{\"id\"").unwrap();
        let (_, restored) = Ledger::open(folder.path()).unwrap();
        assert!(restored.endpoints.is_empty());
        assert_eq!(restored.problems.len(), 1);
        assert!(restored.problems[0].contains("5.json"), "{:?}", restored.problems);
        assert!(!folder.path().join("endpoints/6.tmp").exists());
    }
}
