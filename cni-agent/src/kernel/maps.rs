//! Pinned maps: opened only if they are what the layout says, read whole, changed in batches.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use cni_ebpf::abi::{self, MAPS, MapSpec, MapType, Plain};

use super::{KernelError, Pins, bpf};

/// Entries that go to or come from the kernel in one call.
const BATCH: usize = 4096;

/// A map as bytes, key to value.
pub type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// An open map.
#[derive(Debug)]
pub struct Map {
    spec: MapSpec,
    entries: u32,
    fd: OwnedFd,
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The specification of a map, by its name.
pub fn spec(name: &str) -> Result<&'static MapSpec, KernelError> {
    MAPS.iter().find(|spec| spec.name == name).ok_or_else(|| {
        let names: Vec<_> = MAPS.iter().map(|spec| spec.name).collect();
        KernelError::new(format!("find map {name:?}"), "there is no such map")
            .with_remedy(format!("use one of {}", names.join(", ")))
    })
}

/// The kernel's number for a kind of map.
pub fn kernel_type(map_type: MapType) -> u32 {
    match map_type {
        MapType::Hash => 1,
        MapType::Array => 2,
        MapType::PerCpuArray => 6,
        MapType::ProgramArray => 3,
        MapType::LruHash => 9,
        MapType::Lpm => 11,
        MapType::RingBuf => 27,
    }
}

/// Opens the map that is pinned for `spec`, `None` if there is none.
pub fn open(pins: &Pins, spec: &MapSpec) -> Result<Option<Map>, KernelError> {
    open_at(&pins.map(spec), spec)
}

/// Opens a map that must be there.
pub fn open_existing(pins: &Pins, name: &str) -> Result<Map, KernelError> {
    let spec = spec(name)?;
    open(pins, spec)?.ok_or_else(|| {
        KernelError::new(
            format!("open map {name}"),
            format!("{} does not exist", pins.map(spec).display()),
        )
        .with_remedy("start the agent once on this node, or name its bpffs with --bpffs")
    })
}

/// Opens the map pinned at `path`, and refuses one that is not what `spec` says. The number of entries may differ.
pub fn open_at(path: &std::path::Path, spec: &MapSpec) -> Result<Option<Map>, KernelError> {
    let action = || format!("open map {} at {}", spec.name, path.display());
    let fd = match bpf::get(path) {
        Ok(fd) => fd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(KernelError::new(action(), error).with_remedy(permission_remedy())),
    };
    Map::from_fd(fd, spec).map(Some).map_err(|cause| {
        KernelError::new(action(), cause).with_remedy(
            "this layout is unknown to this release: run the release that wrote it, or `millrace uninstall` first \
             (connections on this node are cut)",
        )
    })
}

fn permission_remedy() -> &'static str {
    "run as root with CAP_BPF, on the host that mounts the bpffs"
}

impl Map {
    /// Checks that `fd` is what `spec` says.
    pub fn from_fd(fd: OwnedFd, spec: &MapSpec) -> Result<Self, String> {
        let info = bpf::map_info(&fd).map_err(|error| format!("not a BPF map: {error}"))?;
        let expected = (kernel_type(spec.map_type), spec.key, spec.value);
        let found = (info.map_type, info.key as usize, info.value as usize);
        if expected != found {
            return Err(format!(
                "type, key size and value size are {found:?}, this release expects {expected:?}"
            ));
        }
        Ok(Self {
            spec: *spec,
            entries: info.entries,
            fd,
        })
    }

    /// Makes a map that is not pinned yet.
    pub fn create(spec: &MapSpec, entries: u32) -> Result<Self, KernelError> {
        const BPF_F_NO_PREALLOC: u32 = 1;
        // The kernel wants it so for trees. For hashes that only the agent writes it saves memory; those that the
        // programs write are allocated at once, because allocating under a packet costs four times as much.
        let flags = match spec.map_type {
            MapType::Lpm => BPF_F_NO_PREALLOC,
            MapType::Hash if !spec.keep && spec.name != "buckets" => BPF_F_NO_PREALLOC,
            _ => 0,
        };
        let size = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
        let fd = bpf::create_map(
            spec.name,
            kernel_type(spec.map_type),
            size(spec.key),
            size(spec.value),
            entries,
            flags,
        )
        .map_err(|error| creation_error(spec, entries, &error))?;
        Self::from_fd(fd, spec).map_err(|cause| KernelError::new(format!("create map {}", spec.name), cause))
    }

    /// The same map, for somebody else.
    pub fn duplicate(&self) -> Result<Self, KernelError> {
        let fd = self.fd.try_clone();
        Ok(Self {
            fd: fd.map_err(|error| KernelError::new(format!("use map {}", self.spec.name), error))?,
            ..*self
        })
    }

    pub fn name(&self) -> &'static str {
        self.spec.name
    }

    pub fn map_type(&self) -> MapType {
        self.spec.map_type
    }

    /// How many entries the map has room for.
    pub fn capacity(&self) -> u32 {
        self.entries
    }

    /// The entries that are there; of an array those that are not all zeros. Entries that come or go while the map
    /// is read may be in the result or not.
    pub fn dump(&self) -> Result<Entries, KernelError> {
        let mut entries = Entries::new();
        self.for_each(|key, value| {
            entries.insert(key.to_vec(), value.to_vec());
        })?;
        Ok(entries)
    }

    /// Walks the map without holding more than a batch of it.
    pub fn for_each(&self, mut each: impl FnMut(&[u8], &[u8])) -> Result<(), KernelError> {
        let zeros_are_absent = matches!(self.spec.map_type, MapType::Array);
        let zeros = vec![0; self.spec.value];
        let mut each = |key: &[u8], value: &[u8]| {
            if !zeros_are_absent || *value != *zeros {
                each(key, value);
            }
        };
        match self.walk_batches(&mut each) {
            // EINVAL and the kernel's own ENOTSUPP (524): this kind of map has no batches on this kernel.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | 524)) => {
                self.walk_keys(&mut each)
            }
            other => other,
        }
        .map_err(|error| KernelError::new(format!("read map {}", self.spec.name), error))
    }

    fn walk_batches(&self, each: &mut impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let (key, value) = (self.spec.key, self.spec.value);
        let mut room = BATCH.min(self.entries as usize).max(1);
        let mut cursor = Vec::new();
        loop {
            let (mut keys, mut values) = (vec![0; room * key], vec![0; room * value]);
            let (count, last) = match bpf::lookup_batch(self, &mut cursor, &mut keys, &mut values, key) {
                Ok(step) => step,
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 24 => {
                    room *= 2;
                    continue;
                }
                Err(error) => return Err(error),
            };
            for (key, value) in keys.chunks_exact(key).zip(values.chunks_exact(value)).take(count) {
                each(key, value);
            }
            if last {
                return Ok(());
            }
        }
    }

    fn walk_keys(&self, each: &mut impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let mut key = bpf::next_key(self, None, self.spec.key)?;
        // An entry deleted under the walk sends it back to the start: bound it.
        let mut steps = u64::from(self.entries) * 2;
        while let Some(current) = key {
            if let Some(value) = bpf::lookup(self, &current, self.spec.value)? {
                each(&current, &value);
            }
            steps = match steps.checked_sub(1) {
                Some(steps) => steps,
                None => return Ok(()),
            };
            key = bpf::next_key(self, Some(&current), self.spec.key)?;
        }
        Ok(())
    }

    /// The value of one key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KernelError> {
        self.check(key, None)?;
        bpf::lookup(self, key, self.spec.value)
            .map_err(|error| KernelError::new(format!("read an entry of map {}", self.spec.name), error))
    }

    /// Writes one entry over whatever was there.
    pub fn put(&self, key: &[u8], value: &[u8]) -> Result<(), KernelError> {
        self.check(key, Some(value))?;
        bpf::update(self, key, value, 0).map_err(|error| self.write_error(&error))
    }

    /// Writes one entry if its key is not there.
    pub fn put_new(&self, key: &[u8], value: &[u8]) -> Result<(), KernelError> {
        const BPF_NOEXIST: u64 = 1;
        self.check(key, Some(value))?;
        match bpf::update(self, key, value, BPF_NOEXIST) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(self.write_error(&error)),
            _ => Ok(()),
        }
    }

    /// Writes entries, in batches where that pays.
    pub fn put_all<'a>(
        &self,
        entries: impl IntoIterator<Item = (&'a Vec<u8>, &'a Vec<u8>)>,
    ) -> Result<(), KernelError> {
        let entries: Vec<_> = entries.into_iter().collect();
        for chunk in entries.chunks(BATCH) {
            if let [(key, value)] = chunk {
                self.put(key, value)?;
                continue;
            }
            for (key, value) in chunk {
                self.check(key, Some(value))?;
            }
            let keys: Vec<u8> = chunk.iter().flat_map(|(key, _)| key.iter().copied()).collect();
            let values: Vec<u8> = chunk
                .iter()
                .flat_map(|(_, value)| value.iter().copied())
                .collect();
            self.put_packed(&keys, &values)?;
        }
        Ok(())
    }

    /// Writes entries whose keys, and whose values, lie one behind the other.
    pub fn put_packed(&self, keys: &[u8], values: &[u8]) -> Result<(), KernelError> {
        let (key, value) = (self.spec.key, self.spec.value);
        for (keys, values) in keys.chunks(BATCH * key).zip(values.chunks(BATCH * value)) {
            let entries = keys.chunks_exact(key).zip(values.chunks_exact(value));
            let done = match entries.len() {
                1 => 0,
                // The rest one by one: either there are no batches here, or the single write names the error.
                count => {
                    bpf::update_batch(self, keys, values, u32::try_from(count).unwrap_or(u32::MAX)).0 as usize
                }
            };
            for (key, value) in entries.skip(done) {
                self.put(key, value)?;
            }
        }
        Ok(())
    }

    /// Deletes entries whose keys lie one behind the other (of an array: writes zeros). One that is not there is fine.
    pub fn remove_packed(&self, keys: &[u8]) -> Result<(), KernelError> {
        if matches!(self.spec.map_type, MapType::Array) {
            return self.put_packed(keys, &vec![0; keys.len() / self.spec.key * self.spec.value]);
        }
        let action = || format!("delete entries of map {}", self.spec.name);
        for key in keys.chunks_exact(self.spec.key) {
            bpf::delete(self, key).map_err(|error| KernelError::new(action(), error))?;
        }
        Ok(())
    }

    /// Deletes entries (of an array: writes zeros). One that is not there is fine. Says how many were there.
    pub fn remove_all<'a>(&self, keys: impl IntoIterator<Item = &'a Vec<u8>>) -> Result<u64, KernelError> {
        let mut removed = 0;
        let zeros = vec![0; self.spec.value];
        for key in keys {
            self.check(key, None)?;
            if matches!(self.spec.map_type, MapType::Array) {
                self.put(key, &zeros)?;
                removed += 1;
                continue;
            }
            let was_there = bpf::delete(self, key).map_err(|error| {
                KernelError::new(format!("delete an entry of map {}", self.spec.name), error)
            })?;
            removed += u64::from(was_there);
        }
        Ok(removed)
    }

    /// How many entries there are. Reads all of the map.
    pub fn count(&self) -> Result<u64, KernelError> {
        let mut count = 0;
        self.for_each(|_, _| count += 1)?;
        Ok(count)
    }

    /// The values of all CPUs of a per-CPU map.
    pub fn get_per_cpu<V: Plain>(&self, key: u32) -> Result<Vec<V>, KernelError> {
        let values = self.get_per_cpu_bytes(key)?;
        Ok(values.iter().filter_map(|value| abi::from_bytes(value)).collect())
    }

    pub fn get_per_cpu_bytes(&self, key: u32) -> Result<Vec<Vec<u8>>, KernelError> {
        let error = |error: io::Error| KernelError::new(format!("read map {}", self.spec.name), error);
        if self.spec.map_type != MapType::PerCpuArray || self.spec.key != 4 {
            return Err(error(io::ErrorKind::InvalidInput.into()));
        }
        let stride = self.spec.value.next_multiple_of(8);
        let cpus = bpf::possible_cpus().map_err(error)?;
        let values = bpf::lookup(self, &key.to_ne_bytes(), stride * cpus)
            .map_err(error)?
            .unwrap_or_default();
        Ok(values
            .chunks_exact(stride)
            .filter_map(|value| value.get(..self.spec.value).map(<[u8]>::to_vec))
            .collect())
    }

    fn check(&self, key: &[u8], value: Option<&[u8]>) -> Result<(), KernelError> {
        let value = value.map_or(self.spec.value, <[u8]>::len);
        if key.len() == self.spec.key && value == self.spec.value {
            return Ok(());
        }
        Err(KernelError::new(
            format!("write map {}", self.spec.name),
            format!(
                "an entry of {} and {value} bytes does not fit its layout",
                key.len()
            ),
        ))
    }

    fn write_error(&self, error: &io::Error) -> KernelError {
        let action = format!("write map {}", self.spec.name);
        // A full hash says E2BIG, a full tree ENOSPC.
        if matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) {
            return KernelError::new(action, format!("it is full ({} entries)", self.entries))
                .with_remedy(capacity_remedy(self.spec.name));
        }
        KernelError::new(action, error)
    }
}

/// What to do about a map that is too small.
pub fn capacity_remedy(map: &str) -> String {
    match setting(map) {
        Some(key) => format!("raise `{key}` in the configuration and restart the agent"),
        None => "its size is fixed in this release: use fewer objects on this node, and report it".to_owned(),
    }
}

/// The configuration's key for the size of a map.
pub fn setting(map: &str) -> Option<&'static str> {
    match map {
        "addresses" => Some("maps.endpoints"),
        "services" | "service_opened" => Some("maps.services"),
        "service_slots" | "service_members" => Some("maps.serviceSlots"),
        "backends" => Some("maps.backends"),
        "maglev" => Some("maps.maglev"),
        "service_ranges" => Some("maps.serviceRanges"),
        "sockets" => Some("maps.sockets"),
        "peers" => Some("maps.peers"),
        "routes" => Some("maps.routes"),
        "conntrack" | "nat" => Some("maps.conntrack"),
        "conntrack_new" | "nat_new" => Some("maps.conntrackNew"),
        "fragments" => Some("maps.fragments"),
        "events" => Some("maps.events"),
        _ => None,
    }
}

fn creation_error(spec: &MapSpec, entries: u32, error: &io::Error) -> KernelError {
    let action = format!("create map {} with {entries} entries", spec.name);
    match error.raw_os_error() {
        Some(libc::ENOMEM) => KernelError::new(action, error).with_remedy(format!(
            "raise the agent's memory limit, or lower {}",
            setting(spec.name).unwrap_or("the sizes of other maps (`maps`)")
        )),
        _ => KernelError::new(action, error).with_remedy(permission_remedy()),
    }
}

/// The typed view of [`Map::dump`].
pub fn read<K: Plain + Ord, V: Plain>(map: &Map) -> Result<BTreeMap<K, V>, KernelError> {
    let mut entries = BTreeMap::new();
    map.for_each(|key, value| {
        if let (Some(key), Some(value)) = (abi::from_bytes(key), abi::from_bytes(value)) {
            entries.insert(key, value);
        }
    })?;
    Ok(entries)
}
