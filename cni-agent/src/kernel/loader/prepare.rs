//! Finds a map, or makes it out of what an earlier agent left.

use std::{
    collections::HashSet,
    fs,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
};

use cni_ebpf::abi::{self, MAPS, MapSpec, MapType};

use super::{
    super::{
        KernelError, Pins, bpf,
        maps::{self, Map},
        pins::{names, remove},
    },
    layout, pin_error,
};
use crate::desired::{Table, is_vacant};

pub(super) struct Prepared {
    pub(super) map: Map,
    /// Where the programs find it.
    pub(super) path: PathBuf,
    pub(super) unsettled: Option<Unsettled>,
}

/// A map that replaces another one, which old programs may still write.
#[derive(Debug)]
pub struct Unsettled {
    pub spec: MapSpec,
    /// Where the new map is pinned, and the name that it shall have.
    from: PathBuf,
    to: PathBuf,
    /// Maps that old programs may still write.
    old: Vec<Old>,
    /// No program has run on the new map yet.
    untouched: bool,
}

/// A map of an earlier agent.
#[derive(Debug)]
struct Old {
    map: Map,
    plan: Option<layout::Plan>,
    /// Removed in the end; the others are replaced by the rename.
    remove: Vec<PathBuf>,
    /// Hashes of the keys that have been copied: a later pass asks the kernel only about what is new, so that it takes
    /// hardly longer than a look at empty buckets.
    copied: HashSet<u64>,
    hasher: RandomState,
}

/// Makes the map of `spec` with room for `entries`.
pub(super) fn map(pins: &Pins, spec: &MapSpec, entries: u32) -> Result<Prepared, KernelError> {
    let (path, next) = (pins.map(spec), pins.next_map(spec));
    let capacity = expected_capacity(spec, entries);
    if let Some(interrupted) = maps::open_at(&next, spec)? {
        return interrupted_replacement(pins, spec, capacity, interrupted);
    }
    let mut other_layouts = other_layouts(pins, spec)?;
    match maps::open_at(&path, spec)? {
        Some(map) if map.capacity() == capacity && other_layouts.is_empty() => Ok(Prepared {
            map,
            path,
            unsettled: None,
        }),
        Some(map) if map.capacity() == capacity => {
            copy_all(&mut other_layouts, &map)?;
            let unsettled = Unsettled {
                spec: *spec,
                from: path.clone(),
                to: path.clone(),
                old: other_layouts,
                untouched: false,
            };
            Ok(Prepared {
                map,
                path,
                unsettled: Some(unsettled),
            })
        }
        Some(old) => {
            let mut all = other_layouts;
            all.push(Old::new(old, None, Vec::new()));
            replacement(pins, spec, capacity, all, next, path)
        }
        None if other_layouts.is_empty() => {
            let map = Map::create(spec, capacity)?;
            publish(pins, spec, &map, &path)?;
            Ok(Prepared {
                map,
                path,
                unsettled: None,
            })
        }
        None => replacement(pins, spec, capacity, other_layouts, path.clone(), path),
    }
}

/// The kernel rounds some sizes; a map must not be replaced for that.
fn expected_capacity(spec: &MapSpec, entries: u32) -> u32 {
    match spec.map_type {
        MapType::RingBuf => entries.max(4096).next_power_of_two(),
        MapType::PerCpuArray => spec.entries,
        _ => entries.max(1),
    }
}

/// An agent died while it replaced the map: the newer one is where its programs wrote. Go on with it.
fn interrupted_replacement(
    pins: &Pins,
    spec: &MapSpec,
    capacity: u32,
    newer: Map,
) -> Result<Prepared, KernelError> {
    let (path, next) = (pins.map(spec), pins.next_map(spec));
    if newer.capacity() == capacity {
        let mut old = other_layouts(pins, spec)?;
        if let Some(map) = maps::open_at(&path, spec)? {
            old.push(Old::new(map, None, Vec::new()));
        }
        copy_all(&mut old, &newer)?;
        let unsettled = Unsettled {
            spec: *spec,
            from: next.clone(),
            to: path,
            old,
            untouched: false,
        };
        return Ok(Prepared {
            map: newer,
            path: next,
            unsettled: Some(unsettled),
        });
    }
    // The size was changed again: end the first replacement now, begin the second.
    if let Some(older) = maps::open_at(&path, spec)? {
        Old::new(older, None, Vec::new()).copy(&newer, Copy::New)?;
    }
    fs::rename(&next, &path).map_err(|error| pin_error(&path, &error))?;
    drop(newer);
    map(pins, spec, capacity)
}

fn replacement(
    pins: &Pins,
    spec: &MapSpec,
    capacity: u32,
    mut old: Vec<Old>,
    at: PathBuf,
    to: PathBuf,
) -> Result<Prepared, KernelError> {
    let map = Map::create(spec, capacity)?;
    copy_all(&mut old, &map)?;
    publish(pins, spec, &map, &at)?;
    tracing::info!(map = spec.name, capacity, "map is being replaced");
    let unsettled = Unsettled {
        spec: *spec,
        from: at.clone(),
        to,
        old,
        untouched: true,
    };
    Ok(Prepared {
        map,
        path: at,
        unsettled: Some(unsettled),
    })
}

fn publish(pins: &Pins, spec: &MapSpec, map: &Map, path: &Path) -> Result<(), KernelError> {
    // The description first: a kept map without one could not be read by another release.
    if spec.keep {
        layout::publish(spec, &pins.layout(spec))?;
    }
    bpf::pin(map, path).map_err(|error| pin_error(path, &error))
}

fn copy_all(old: &mut [Old], new: &Map) -> Result<(), KernelError> {
    old.iter_mut().try_for_each(|old| old.copy(new, Copy::New))
}

/// What is copied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copy {
    /// What has come since the last time, unless it is there.
    New,
    /// Everything, over what is there.
    All,
}

impl Old {
    fn new(map: Map, plan: Option<layout::Plan>, remove: Vec<PathBuf>) -> Self {
        Self {
            map,
            plan,
            remove,
            copied: HashSet::new(),
            hasher: RandomState::new(),
        }
    }

    fn copy(&mut self, new: &Map, what: Copy) -> Result<(), KernelError> {
        if matches!(
            new.map_type(),
            MapType::RingBuf | MapType::PerCpuArray | MapType::ProgramArray
        ) {
            return Ok(());
        }
        let Self {
            map,
            plan,
            copied,
            hasher,
            ..
        } = self;
        let mut result = Ok(());
        let is_array = new.map_type() == MapType::Array;
        map.for_each(|key, value| {
            let hash = hasher.hash_one(key);
            if result.is_err() || what == Copy::New && copied.contains(&hash) {
                return;
            }
            let put = |key: &[u8], value: &[u8]| match what {
                Copy::New if is_array => put_in_vacancy(new, key, value),
                Copy::New => new.put_new(key, value),
                Copy::All => new.put(key, value),
            };
            result = match plan {
                None => put(key, value),
                Some(plan) => match plan.convert(key, value) {
                    Some((key, value)) => put(&key, &value),
                    None => Ok(()),
                },
            };
            if result.is_ok() {
                copied.insert(hash);
            }
        })?;
        result
    }
}

/// What lies behind the end of a smaller array is left.
fn put_in_vacancy(array: &Map, key: &[u8], value: &[u8]) -> Result<(), KernelError> {
    let is_there = abi::from_bytes::<u32>(key).is_some_and(|place| place < array.capacity());
    if is_there && array.get(key)?.is_none_or(|found| is_vacant(&found)) {
        array.put(key, value)?;
    }
    Ok(())
}

impl Unsettled {
    /// Copies what `map` does not have yet.
    pub(super) fn catch_up(&mut self, map: &Map) -> Result<(), KernelError> {
        copy_all(&mut self.old, map)
    }

    /// Has `map` be as the old ones are, while no program has run on it: where a connection has taken another one's place
    /// since the first copy, or has gone on, the copy is of the one before. Where only agents write, this one has written what is
    /// to be there.
    pub(super) fn refresh(&mut self, map: &Map) -> Result<(), KernelError> {
        let mut tables = Table::ALL.iter().filter(|table| table.owns_values());
        if !self.untouched || tables.any(|table| table.name() == self.spec.name) {
            return Ok(());
        }
        self.old.iter_mut().try_for_each(|old| old.copy(map, Copy::All))
    }

    /// A program runs on the new map from now on: what stands there is newer than what the old ones have.
    pub(super) fn touch(&mut self) {
        self.untouched = false;
    }

    pub(super) fn settle(&mut self, map: Option<&Map>) -> Result<(), KernelError> {
        if let Some(map) = map {
            self.catch_up(map)?;
        }
        if self.from != self.to {
            fs::rename(&self.from, &self.to).map_err(|error| pin_error(&self.to, &error))?;
        }
        for path in self.old.iter().flat_map(|old| &old.remove) {
            remove(path).map_err(|error| pin_error(path, &error))?;
        }
        tracing::info!(map = self.spec.name, "map has been replaced");
        Ok(())
    }
}

/// The number behind `NAME_v` of a pin's name.
fn version_of(name: &str, map: &str) -> Option<u32> {
    name.strip_prefix(map)?.strip_prefix("_v")?.parse().ok()
}

/// Maps of this name in layouts of other releases, if it is one that must be carried over.
fn other_layouts(pins: &Pins, spec: &MapSpec) -> Result<Vec<Old>, KernelError> {
    let mut old = Vec::new();
    if !spec.keep {
        return Ok(old);
    }
    let folder = pins.maps();
    let listed =
        names(&folder).map_err(|error| KernelError::new(format!("list {}", folder.display()), error))?;
    for version in listed.iter().filter_map(|name| version_of(name, spec.name)) {
        if version == spec.version {
            continue;
        }
        let theirs = MapSpec { version, ..*spec };
        let (path, described) = (pins.map(&theirs), pins.layout(&theirs));
        let plan = layout::plan(&described, spec)?;
        let theirs = MapSpec {
            key: plan.key_size(),
            value: plan.value_size(),
            ..theirs
        };
        if let Some(map) = maps::open_at(&path, &theirs)? {
            old.push(Old::new(map, Some(plan), vec![path, described]));
        }
    }
    Ok(old)
}

/// Removes the pins of maps that no release knows any more, or that another layout has replaced and that hold nothing
/// but what the agent writes anew.
pub(super) fn collect(pins: &Pins) -> Result<(), KernelError> {
    let folder = pins.maps();
    let listed =
        names(&folder).map_err(|error| KernelError::new(format!("list {}", folder.display()), error))?;
    for name in listed {
        let ours = MAPS.iter().find(|spec| {
            let rest = name
                .strip_prefix(spec.name)
                .and_then(|rest| rest.strip_prefix("_v"));
            rest.is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
        });
        let dead = match ours {
            Some(spec) if spec.keep => false,
            Some(spec) => version_of(&name, spec.name).is_some_and(|version| version != spec.version),
            None => true,
        };
        if dead {
            let path = folder.join(&name);
            tracing::info!(pin = %path.display(), "removing the pin of a map that this release does not have");
            remove(&path).map_err(|error| pin_error(&path, &error))?;
        }
    }
    Ok(())
}
