//! How full the maps are, without walking them at every scrape.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use cni_ebpf::abi::{MAPS, MapType};
use serde::{Deserialize, Serialize};

use crate::kernel::{KernelError, Pins, maps};

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    pub entries: u64,
    pub capacity: u32,
}

/// Counts entries by reading the maps.
pub fn read(pins: &Pins) -> Result<BTreeMap<String, Fill>, KernelError> {
    let mut fills = BTreeMap::new();
    for spec in MAPS {
        // A ring has no entries, and an array is always full.
        if matches!(
            spec.map_type,
            MapType::RingBuf | MapType::PerCpuArray | MapType::Array
        ) {
            continue;
        }
        if let Some(map) = maps::open(pins, spec)? {
            let fill = Fill {
                entries: map.count()?,
                capacity: map.capacity(),
            };
            fills.insert(spec.name.to_owned(), fill);
        }
    }
    Ok(fills)
}

/// Remembers the last reading. Walking a million connections takes tens of milliseconds and reads all of their memory:
/// it is not done more often than this, however often somebody asks.
#[derive(Debug, Default)]
pub struct Cache(Mutex<Option<(Instant, BTreeMap<String, Fill>)>>);

const AGE: Duration = Duration::from_secs(15);

impl Cache {
    pub fn read(&self, pins: &Pins) -> Result<BTreeMap<String, Fill>, KernelError> {
        let mut last = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*last {
            Some((when, fills)) if when.elapsed() < AGE => Ok(fills.clone()),
            _ => {
                let fills = read(pins)?;
                *last = Some((Instant::now(), fills.clone()));
                Ok(fills)
            }
        }
    }
}
