//! A pod that opens connections as fast as it can harms nobody's established ones.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use cni_tests::{
    frames::Ends,
    lab::{Families, Lab, Plan, Pod, Routing},
    traffic::{Echo, Steady},
    wire::Tap,
};
use serde_json::json;

use crate::needs_root;

/// Entries of the table of new connections.
const TABLE: u32 = 1024;
const SYN: u8 = 2;

fn ends(from: &Pod, to: std::net::IpAddr, number: u64) -> Ends {
    Ends {
        src_mac: from.mac,
        dst_mac: from.host_mac,
        src: from.ip(to.is_ipv4()),
        dst: to,
        src_port: 1024 + (number % 60_000) as u16,
        dst_port: 7000 + (number / 60_000) as u16,
        ttl: 64,
    }
}

#[test]
fn rel_37_established_flows_outlive_a_flood() {
    needs_root!();
    let config = json!({ "maps": { "conntrackNew": TABLE, "conntrack": 4 * TABLE } });
    let lab = Lab::start(Plan::new(Routing::Direct, Families::Dual).config(config)).unwrap();
    let node = &lab.nodes[0];
    let (a, b) = (node.add_pod("a").unwrap(), node.add_pod("b").unwrap());
    let c = lab.nodes[1].add_pod("c").unwrap();
    let mut servers = Vec::new();
    let mut flows = Vec::new();
    for v4 in [true, false] {
        for (there, ip) in [(&c.namespace, c.ip(v4)), (&lab.outside, lab.outside_address(v4))] {
            let (tcp, udp) = (Echo::tcp(there, ip, 0).unwrap(), Echo::udp(there, ip, 0).unwrap());
            flows.push(Steady::tcp(&b.namespace, tcp.address).unwrap());
            flows.push(Steady::udp(&b.namespace, udp.address).unwrap());
            servers.extend([tcp, udp]);
        }
    }
    flows.iter().for_each(|flow| flow.wait_for(10));
    let stop = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let tap = Tap::open(&a.namespace, "eth0").unwrap();
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..TABLE / 10 {
                    let number = sent.fetch_add(1, Ordering::Relaxed);
                    let v4 = number.is_multiple_of(2);
                    let to = if number % 4 < 2 {
                        c.ip(v4)
                    } else {
                        lab.outside_address(v4)
                    };
                    tap.send(&ends(&a, to, number).tcp(SYN, b"")).unwrap();
                }
                // A hundred times a second: ten tables.
                thread::sleep(Duration::from_millis(10));
            }
        });
        flows.iter().for_each(|flow| flow.wait_for(400));
        while sent.load(Ordering::Relaxed) < u64::from(20 * TABLE) {
            thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Relaxed);
    });
    for flow in flows {
        let tally = flow.stop();
        assert_eq!(tally.failures, Vec::<String>::new());
    }
}
