//! Programs of two loads that know each other, while one takes over from the other.
//!
//! Both have a side of the pinned map `programs`. A connection that the other load's programs have let through is unknown to
//! this one's until it has been copied: what is in the midst of it is handed over ([`Reason::Unsettled`]) instead of being
//! dropped. The map also keeps programs alive of which the last link has gone, so their side is emptied in the end.
//!
//! [`Reason::Unsettled`]: cni_ebpf::abi::Reason::Unsettled

use std::os::fd::{AsFd, AsRawFd};

use cni_ebpf::abi::{from_bytes, hook, program_place};

use super::super::{KernelError, links::Programs, maps::Map};
use crate::desired::Program;

/// Those of tc: programs of another type cannot be in the same map.
const HOOKS: [(Program, u8); 4] = [
    (Program::FromPod, hook::FROM_POD),
    (Program::ToPod, hook::TO_POD),
    (Program::FromNetdev, hook::FROM_NETDEV),
    (Program::ToNetdev, hook::TO_NETDEV),
];

#[derive(Debug)]
pub(super) struct Handover {
    /// The map `programs`, as the programs of this load have it.
    places: Map,
    side: u32,
}

impl Handover {
    /// Finds the side for a new load: the one that is free.
    pub(super) fn begin(places: Map) -> Result<Self, KernelError> {
        let youngest = [youngest(&places, 0)?, youngest(&places, 1)?];
        // Both are taken where an agent died while it took over. Its own programs have the higher numbers. They share their
        // tables with those of this load, unless it is of another release still; then what they know is dropped for a moment.
        let side = match youngest {
            [Some(first), Some(second)] => u32::from(second > first),
            [Some(_), None] => 1,
            [None, _] => 0,
        };
        Ok(Self { places, side })
    }

    pub(super) fn side(&self) -> u32 {
        self.side
    }

    /// Has the other load's programs find those of this one.
    pub(super) fn enter(&self, programs: &Programs) -> Result<(), KernelError> {
        for (program, hook) in HOOKS {
            if let Some(loaded) = programs.get(&program) {
                let place = program_place(self.side, hook);
                let fd = loaded.as_fd().as_raw_fd();
                self.places.put(&place.to_ne_bytes(), &fd.to_ne_bytes())?;
            }
        }
        Ok(())
    }

    /// Forgets the other load: none of its programs runs any more, or what they know of connections is in this one's tables.
    pub(super) fn end(&self) -> Result<(), KernelError> {
        let others = HOOKS.map(|(_, hook)| program_place(self.side ^ 1, hook).to_ne_bytes());
        self.places.remove_packed(others.as_flattened())
    }
}

/// The highest number of a side's programs, `None` if it is free.
fn youngest(places: &Map, side: u32) -> Result<Option<u32>, KernelError> {
    let mut youngest = None;
    for (_, hook) in HOOKS {
        let number = places.get(&program_place(side, hook).to_ne_bytes())?;
        youngest = youngest.max(number.and_then(|number| from_bytes(&number)));
    }
    Ok(youngest)
}
