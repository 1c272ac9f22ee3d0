//! One small world, once in memory and once in the kernel's maps: two nodes' worth of routes, a few pods, a Service, a
//! policy. The same packets go through both.

mod content;
mod devices;
mod kernel;
mod rules;

use std::net::IpAddr;

use cni_ebpf::abi::*;
use cni_ebpf::datapath::{self, Outcome, Verdict, Work};

use crate::memory::{Frame, Memory};
use crate::object;

pub use content::{MAGLEV, MAGLEV_SIZE, NODES_RANGES, backend, balancer, place, port, service_id};
use content::{NEIGHBOURS, device, endpoints, fib, ranges, routes, services, settings, tables};
pub use kernel::{Bytes, Kernel, THIS_NETNS, netns_cookie};
pub use rules::KUBELET;
use rules::rules;

/// Indices of the devices; the kernel's namespace is made so that they are these.
pub mod ifindex {
    pub const POD_A: u32 = 10;
    pub const POD_B: u32 = 11;
    pub const POD_STACK: u32 = 12;
    pub const POD_RULES: u32 = 13;
    pub const POD_LIMIT: u32 = 14;
    pub const POD_PACED: u32 = 15;
    pub const NETDEV: u32 = 20;
    pub const TUNNEL: u32 = 21;
}

pub const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xff];

pub fn mac(ifindex: u32) -> [u8; 6] {
    [2, 0, 0, 0, 1, ifindex as u8]
}

/// A pod's address: number 2 is A, 3 is B, 4 is behind the stack, 5 has rules, 6 has a bandwidth limit, and so has 7, whose
/// packets may wait on a device that paces.
pub fn pod(number: u8, v6: bool) -> IpAddr {
    if v6 {
        format!("fd00:1::{number}").parse().unwrap()
    } else {
        IpAddr::from([10, 1, 0, number])
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Only one source port, so that both worlds allocate the same.
pub const CONFIG: Config = Config {
    snat_first: 40000,
    snat_last: 40000,
    bandwidth: 1,
    tunnel_ifindex: ifindex::TUNNEL,
    tunnel_port: 4789,
    ..Config::DEFAULT
};

/// The world in memory.
pub fn memory() -> Memory {
    let mut memory = Memory {
        config: CONFIG,
        ..Memory::default()
    };
    memory.clock.set(monotonic());
    for (addr, endpoint) in endpoints() {
        memory.put_endpoint(addr, endpoint);
    }
    for (prefix, route) in routes() {
        memory.routes.put(prefix, route);
    }
    memory.devices.put(ifindex::NETDEV, device());
    memory.settings = settings();
    for (source, value) in ranges() {
        let prefix = Prefix {
            len: source.len - 32,
            words: source.words,
        };
        memory
            .source_ranges
            .entry(source.ranges)
            .or_default()
            .put(prefix, value);
    }
    let rules = rules();
    rules
        .sets
        .iter()
        .for_each(|(key, value)| memory.rule_sets.put(*key, *value));
    rules
        .groups
        .iter()
        .for_each(|(key, value)| memory.groups.put(*key, *value));
    rules
        .classes
        .iter()
        .for_each(|(key, value)| memory.classes.put(*key, *value));
    rules
        .peers
        .iter()
        .for_each(|(key, value)| memory.peers.put(*key, value.clone()));
    rules
        .cidrs
        .iter()
        .for_each(|(key, value)| memory.cidrs.put(*key, *value));
    for (key, list) in &rules.lists {
        let entry = (key.prefix_len - RuleKey::FIXED_BITS, key.port.get(), *list);
        memory
            .rules
            .entry((key.rule_set, key.generation, key.direction, key.proto))
            .or_default()
            .push(entry);
    }
    let services = services();
    services
        .frontends
        .iter()
        .for_each(|(key, value)| memory.services.put(*key, *value));
    services
        .slots
        .iter()
        .for_each(|(key, value)| memory.slots.put(*key, *value));
    services
        .members
        .iter()
        .for_each(|(key, value)| memory.members.put(*key, *value));
    services
        .backends
        .iter()
        .for_each(|(key, value)| memory.backends.put(*key, *value));
    tables()
        .into_iter()
        .for_each(|(key, chunk)| memory.maglev.put(key, chunk));
    memory
}

/// The bucket of a pod with a limit.
pub const fn bucket_key(pod: u32) -> u32 {
    Bucket::key(pod, direction::EGRESS)
}

/// A bucket with so many bytes left, refilled just now.
pub fn bucket(tokens: i64) -> Bucket {
    bucket_at(tokens, monotonic())
}

pub fn bucket_at(tokens: i64, refilled: u64) -> Bucket {
    Bucket {
        tokens: Racy::new(tokens.cast_unsigned()),
        refilled: Racy::new(refilled),
    }
}

/// The coarse monotonic clock, as the programs read it.
pub fn monotonic() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// A frame that arrives on `ifindex`, with this world's routes.
pub fn frame(bytes: Vec<u8>, ifindex: u32) -> Frame {
    Frame {
        fib,
        neighbours: |addr| NEIGHBOURS.iter().any(|known| Addr::from(ip(known)) == *addr),
        ..Frame::new(bytes, ifindex)
    }
}

/// The programs by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    FromPod,
    ToPod,
    FromNetdev,
    ToNetdev,
    XdpNodeport,
}

impl Hook {
    pub fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromNetdev => "from_netdev",
            Self::ToNetdev => "to_netdev",
            Self::XdpNodeport => object::XDP_PROGRAM,
        }
    }
}

/// Runs the host build.
pub fn run(memory: &Memory, hook: Hook, frame: &mut Frame, work: &mut Work) -> Result<Verdict, Reason> {
    let outcome: Outcome = match hook {
        Hook::FromPod => datapath::from_pod(memory, frame, work),
        Hook::ToPod => datapath::to_pod(memory, frame, work),
        Hook::FromNetdev => datapath::from_netdev(memory, frame, work),
        Hook::ToNetdev => datapath::to_netdev(memory, frame, work),
        Hook::XdpNodeport => datapath::xdp_nodeport(memory, frame, work),
    };
    if hook != Hook::XdpNodeport || datapath::takes(work, &outcome) {
        datapath::finish(memory, frame, work, &outcome);
    }
    outcome.map(|()| work.verdict())
}
