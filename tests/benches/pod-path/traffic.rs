//! Rounds of load, contenders taking turns.

use std::time::Duration;

use anyhow::Result;
use cni_tests::bench::load::{Cpus, Load};
use cni_tests::bench::series::{Samples, turns};

use crate::contender::Contender;

/// Long enough for thousands of the slowest exchanges, short enough for contenders to meet the same machine.
const TIME: Duration = Duration::from_millis(400);

pub(crate) fn metric(place: &str, load: Load, cpus: Cpus) -> String {
    format!("{place}, {}, {}", cpus.name(), load.name())
}

pub(crate) fn measure(
    place: &str,
    contenders: &[Contender],
    rounds: usize,
    samples: &mut Samples,
) -> Result<()> {
    for round in 0..rounds {
        eprintln!("{place}: round {} of {rounds}", round + 1);
        for cpus in Cpus::possible() {
            for load in Load::ALL {
                for turn in turns(contenders.len(), round) {
                    let Contender { name, ends, .. } = &contenders[turn];
                    let value = load.run(ends, *cpus, TIME)?;
                    samples.add(name, &metric(place, load, *cpus), load.unit(), value);
                }
            }
        }
    }
    Ok(())
}
