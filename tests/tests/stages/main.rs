//! Properties of the stages of the packet path, in memory: whatever packets, tables and connections there are, each stage
//! comes to the answer that is found another way.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on panics"
)]

mod draw;
mod fragments;
mod headers;
mod policy;
mod related;
mod route;
mod sender;
mod service;

use std::net::IpAddr;

use cni_ebpf::abi::Reason;
use cni_ebpf::datapath::{Verdict, Work, stage};
use cni_tests::frames::Ends;
use cni_tests::memory::{Frame, Memory};
use cni_tests::world::{self, Hook, ifindex, mac};

const SYN: u8 = 2;
const SYN_ACK: u8 = 18;

/// Runs one stage by itself.
fn run(stage: stage::Stage, memory: &Memory, frame: &mut Frame, work: &mut Work) -> Result<(), Reason> {
    match stage::run(stage, memory, frame, work) {
        0 => Ok(()),
        number => Err(Reason::from_number(u8::try_from(number).unwrap()).unwrap()),
    }
}

/// Runs a program.
fn pass(memory: &mut Memory, hook: Hook, frame: &mut Frame) -> (Result<Verdict, Reason>, Work) {
    let mut work = Work::default();
    let outcome = world::run(memory, hook, frame, &mut work);
    memory.settle();
    (outcome, work)
}

/// From the pod behind `device`, or from outside, to the node.
fn ends(device: u32, src: IpAddr, dst: IpAddr) -> Ends {
    let (src_mac, dst_mac) = if device == ifindex::NETDEV {
        ([2, 9, 9, 9, 9, 9], mac(device))
    } else {
        (mac(device), world::NODE_MAC)
    };
    Ends {
        src_mac,
        dst_mac,
        src,
        dst,
        src_port: 33000,
        dst_port: 8080,
        ttl: 64,
    }
}
