//! How full the maps are, without walking them at every scrape.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use cni_ebpf::{
    abi::{self, Flow, FlowKey, MAPS, MapType},
    datapath::conntrack,
};
use serde::{Deserialize, Serialize};

use crate::kernel::{KernelError, Pins, maps};

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    pub entries: u64,
    /// Those of them that still mean something; as many as `capacity`, and each new one costs a living one or is
    /// refused. Unknown of tables that give up old entries by themselves and do not say which of them are over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<u64>,
    pub capacity: u32,
}

/// Nanoseconds of the clock that the programs read.
pub fn now() -> std::io::Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)?;
    Ok(u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX))
}

/// Counts entries by reading the maps.
pub fn read(pins: &Pins) -> Result<BTreeMap<String, Fill>, KernelError> {
    let mut fills = BTreeMap::new();
    for spec in MAPS {
        // A ring has no entries, and an array is always full.
        if matches!(
            spec.map_type,
            MapType::RingBuf | MapType::PerCpuArray | MapType::Array | MapType::ProgramArray
        ) {
            continue;
        }
        if let Some(map) = maps::open(pins, spec)? {
            fills.insert(spec.name.to_owned(), fill(&map)?);
        }
    }
    Ok(fills)
}

fn fill(map: &maps::Map) -> Result<Fill, KernelError> {
    let (entries, live) = match (map.name(), map.map_type()) {
        ("conntrack" | "conntrack_new", _) => {
            let now = now().map_err(|error| KernelError::new("read the clock", error))?;
            let (mut entries, mut live) = (0, 0);
            map.for_each(|key, value| {
                entries += 1;
                if let (Some(key), Some(flow)) =
                    (abi::from_bytes::<FlowKey>(key), abi::from_bytes::<Flow>(value))
                {
                    live += u64::from(!conntrack::expired(key.proto, &flow, now));
                }
            })?;
            (entries, Some(live))
        }
        (_, MapType::LruHash) => (map.count()?, None),
        _ => {
            let entries = map.count()?;
            (entries, Some(entries))
        }
    };
    Ok(Fill {
        entries,
        live,
        capacity: map.capacity(),
    })
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
