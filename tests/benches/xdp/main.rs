//! NodePort traffic for other nodes, turned round by XDP: what a packet costs beside the least that such a program can do, and
//! what a flood of new connections does to those that there are.

mod flood;
mod program;

use anyhow::Result;
use cni_tests::bench::series::Samples;
use cni_tests::bench::{Command, Report};

fn main() -> Result<()> {
    let command = Command::read()?;
    let mut samples = Samples::default();
    if command.wants("program") {
        program::measure(command.rounds, &mut samples)?;
    }
    if command.wants("flood") {
        flood::measure(command.rounds, &mut samples)?;
    }
    let mut report = Report::new("xdp", command.rounds, &samples);
    program::report(&samples, &mut report);
    flood::report(&samples, &mut report);
    command.publish(&report)
}
