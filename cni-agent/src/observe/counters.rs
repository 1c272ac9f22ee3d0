//! What the programs count.

use std::collections::BTreeMap;

use cni_ebpf::abi::{self, Counter, Reason, direction};
use serde::{Deserialize, Serialize};

use crate::kernel::{KernelError, Pins, maps};

/// What passed or was dropped, over all CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Empty for what passed.
    pub reason: String,
    pub direction: String,
    pub packets: u64,
    pub bytes: u64,
    /// One sentence on the reason.
    pub text: String,
}

/// The counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub passed: Vec<Count>,
    pub dropped: Vec<Count>,
    /// Events for which the ring had no room.
    pub events_lost: u64,
}

/// The name of a direction.
pub fn direction_name(number: u8) -> &'static str {
    if number == direction::EGRESS {
        "egress"
    } else {
        "ingress"
    }
}

/// Reads the counters of every reason that there is. Costs one look-up for each, whatever the traffic.
pub fn read(pins: &Pins) -> Result<Counters, KernelError> {
    let map = maps::open_existing(pins, "counters")?;
    let one = |number: u32, way: u8| -> Result<(u64, u64), KernelError> {
        let cpus = map.get_per_cpu::<Counter>(number * 2 + u32::from(way))?;
        Ok(cpus.iter().fold((0, 0), |(packets, bytes), cpu| {
            (packets + cpu.packets, bytes + cpu.bytes)
        }))
    };
    let mut counters = Counters::default();
    for way in [direction::EGRESS, direction::INGRESS] {
        let (packets, bytes) = one(0, way)?;
        let direction = direction_name(way).to_owned();
        counters.passed.push(Count {
            direction,
            packets,
            bytes,
            ..Count::default()
        });
    }
    for reason in Reason::ALL {
        for way in [direction::EGRESS, direction::INGRESS] {
            let (packets, bytes) = one(u32::from(*reason as u8), way)?;
            counters.dropped.push(Count {
                reason: reason.name().to_owned(),
                direction: direction_name(way).to_owned(),
                packets,
                bytes,
                text: reason.text().to_owned(),
            });
        }
    }
    let lost = maps::open_existing(pins, "events_lost")?;
    counters.events_lost = lost.get_per_cpu::<u64>(0)?.iter().sum();
    Ok(counters)
}

/// How many connections have begun of each Service's set of endpoints, by its number.
pub fn opened(pins: &Pins) -> Result<BTreeMap<u32, u64>, KernelError> {
    let mut opened = BTreeMap::new();
    maps::open_existing(pins, "service_opened")?.for_each(|key, value| {
        if let (Some(service), Some(count)) = (abi::from_bytes::<u32>(key), abi::from_bytes::<u64>(value)) {
            opened.insert(service, count);
        }
    })?;
    Ok(opened)
}
