//! What many Services cost: the look-up of one among them, and their way from objects to live maps.

mod live;
mod lookup;

use anyhow::Result;
use cni_tests::bench::series::Samples;
use cni_tests::bench::{Command, Report};

const LOOKED_UP: [u32; 4] = [10, 1_000, 10_000, 100_000];
/// As many as one API server is filled with in half a minute.
const LIVE: [u32; 1] = [10_000];

fn main() -> Result<()> {
    let command = Command::read()?;
    let services = command.services(&LOOKED_UP);
    let mut samples = Samples::default();
    let mut notes = Vec::new();
    if command.wants("look-up") {
        lookup::measure(&services, command.rounds, &mut samples)?;
    }
    if command.wants("live")
        && let Some(most) = command.services(&LIVE).into_iter().max()
    {
        notes = live::measure(most, command.rounds, &mut samples)?;
    }
    let mut report = Report::new("service-scale", command.rounds, &samples);
    report.notes.extend(notes);
    lookup::judge(&services, &mut report, &samples);
    live::judge(&mut report, &samples);
    command.publish(&report)
}
