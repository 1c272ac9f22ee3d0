//! The way of a packet from pod to pod: against a bare veth pair, the reference `bridge` plugin and the kernel's own
//! forwarding, and by itself.

mod contender;
mod in_situ;
mod one_node;
mod program;
mod traffic;
mod two_nodes;

use anyhow::Result;
use cni_tests::bench::load::Cpus;
use cni_tests::bench::series::Samples;
use cni_tests::bench::{Command, Report};

fn main() -> Result<()> {
    let command = Command::read()?;
    let rounds = command.rounds;
    let mut samples = Samples::default();
    let mut limits = Vec::new();
    if command.wants("one-node") {
        let contenders = one_node::contenders()?;
        traffic::measure(one_node::PLACE, &contenders, rounds, &mut samples)?;
        in_situ::measure(&contenders, rounds, &mut samples)?;
    }
    if command.wants("two-nodes") {
        let contenders = two_nodes::contenders()?;
        traffic::measure(two_nodes::PLACE, &contenders, rounds, &mut samples)?;
    }
    if command.wants("program") {
        program::measure(&command, &mut samples, &mut limits)?;
    }
    let mut report = Report::new("pod-path", rounds, &samples);
    one_node::ratios(&mut report, &samples);
    two_nodes::ratios(&mut report, &samples);
    report.limits = limits;
    if !Cpus::possible().contains(&Cpus::Two) {
        report
            .notes
            .push("not measured on two CPUs: this process may use one only".to_owned());
    }
    command.publish(&report)
}
