//! Maps as bytes: single entries and batches.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use super::{Command, call, call_fd, info, raw};

#[repr(C)]
#[derive(Default)]
struct CreateAttr {
    map_type: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    numa_node: u32,
    name: [u8; 16],
}

/// Creates a map that no program knows of yet.
pub fn create_map(
    name: &str,
    map_type: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr {
        map_type,
        key,
        value,
        entries,
        flags,
        ..CreateAttr::default()
    };
    // The last byte stays zero: the name ends there.
    for (to, from) in attr.name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: no addresses inside.
    unsafe { call_fd(Command::MapCreate, &mut attr) }
}

/// What the kernel says of a map.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MapInfo {
    pub map_type: u32,
    pub id: u32,
    pub key: u32,
    pub value: u32,
    pub entries: u32,
    pub flags: u32,
}

pub fn map_info(map: impl AsFd) -> io::Result<MapInfo> {
    // SAFETY: the head of `struct bpf_map_info`.
    unsafe { info(map.as_fd()) }
}

#[repr(C)]
#[derive(Default)]
struct ElemAttr {
    map: u32,
    pad: u32,
    key: u64,
    /// Also the next key.
    value: u64,
    flags: u64,
}

fn elem(map: BorrowedFd<'_>, key: Option<&[u8]>, value: u64, flags: u64) -> ElemAttr {
    ElemAttr {
        map: raw(map),
        key: key.map_or(0, |key| key.as_ptr() as u64),
        value,
        flags,
        ..ElemAttr::default()
    }
}

fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The value of one key: `value` bytes of it (a per-CPU map: those of all possible CPUs, each rounded up to eight).
///
/// Lengths are the caller's: `key` and `value` must be what [`map_info`] says.
pub fn lookup(map: impl AsFd, key: &[u8], value: usize) -> io::Result<Option<Vec<u8>>> {
    let mut out = vec![0; value];
    let mut attr = elem(map.as_fd(), Some(key), out.as_mut_ptr() as u64, 0);
    // SAFETY: `out` has the length of a value of this map, `key` that of a key (checked when the map was opened).
    let found = absent(unsafe { call(Command::MapLookup, &mut attr) })?;
    Ok(found.map(|_| out))
}

/// Writes one entry. `flags`: 0 any, 1 only a new one (`BPF_NOEXIST`), 2 only an existing one.
pub fn update(map: impl AsFd, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
    let mut attr = elem(map.as_fd(), Some(key), value.as_ptr() as u64, flags);
    // SAFETY: key and value have this map's lengths.
    unsafe { call(Command::MapUpdate, &mut attr) }.map(drop)
}

/// Deletes one entry; says whether it was there.
pub fn delete(map: impl AsFd, key: &[u8]) -> io::Result<bool> {
    let mut attr = elem(map.as_fd(), Some(key), 0, 0);
    // SAFETY: the key has this map's length.
    absent(unsafe { call(Command::MapDelete, &mut attr) }).map(|found| found.is_some())
}

/// The key behind `key`, the first one for `None`. A key that is gone restarts at the first.
pub fn next_key(map: impl AsFd, key: Option<&[u8]>, length: usize) -> io::Result<Option<Vec<u8>>> {
    let mut next = vec![0; length];
    let mut attr = elem(map.as_fd(), key, next.as_mut_ptr() as u64, 0);
    // SAFETY: both keys have this map's length.
    let found = absent(unsafe { call(Command::MapNextKey, &mut attr) })?;
    Ok(found.map(|_| next))
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    begin: u64,
    end: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

/// One step of a walk: fills `keys` and `values` from the front, moves `cursor`, and gives the number of entries with
/// `true` when these were the last. `cursor` is empty at first.
///
/// # Errors
/// `ENOSPC` if the buffers do not hold one hash bucket: try again with larger ones.
pub fn lookup_batch(
    map: impl AsFd,
    cursor: &mut Vec<u8>,
    keys: &mut [u8],
    values: &mut [u8],
    key_size: usize,
) -> io::Result<(usize, bool)> {
    // Hash maps hand out a bucket's number, trees a key.
    let mut next = vec![0; key_size.max(4)];
    let mut attr = BatchAttr {
        begin: if cursor.is_empty() {
            0
        } else {
            cursor.as_ptr() as u64
        },
        end: next.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(keys.len() / key_size.max(1)).unwrap_or(u32::MAX),
        map: raw(map.as_fd()),
        ..BatchAttr::default()
    };
    // SAFETY: the kernel writes at most `count` keys and values, and the callers size both buffers by one count.
    match absent(unsafe { call(Command::MapLookupBatch, &mut attr) }) {
        Ok(found) => {
            *cursor = next;
            Ok((attr.count as usize, found.is_none()))
        }
        Err(error) => Err(error),
    }
}

/// Writes `count` entries that lie one behind the other. Gives how many were written before an error.
pub fn update_batch(map: impl AsFd, keys: &[u8], values: &[u8], count: u32) -> (u32, io::Result<()>) {
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map: raw(map.as_fd()),
        ..BatchAttr::default()
    };
    // SAFETY: both buffers hold `count` entries.
    let result = unsafe { call(Command::MapUpdateBatch, &mut attr) }.map(drop);
    let done = if result.is_ok() {
        count
    } else {
        attr.count.min(count)
    };
    (done, result)
}

/// Deletes `count` keys; stops at the first that is not there. Gives how many were deleted.
pub fn delete_batch(map: impl AsFd, keys: &[u8], count: u32) -> (u32, io::Result<()>) {
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        count,
        map: raw(map.as_fd()),
        ..BatchAttr::default()
    };
    // SAFETY: the buffer holds `count` keys.
    let result = unsafe { call(Command::MapDeleteBatch, &mut attr) }.map(drop);
    let done = if result.is_ok() {
        count
    } else {
        attr.count.min(count)
    };
    (done, result)
}

/// How many values a per-CPU map has for each key.
pub fn possible_cpus() -> io::Result<usize> {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit([',', '-']).next().unwrap_or_default();
    let last: usize = last.parse().map_err(io::Error::other)?;
    Ok(last + 1)
}
