//! Somebody opens connections as fast as he can, and harms nobody's established ones.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use cni_tests::{
    frames::Ends,
    lab::{Fabric, Families, Lab, Node, Plan, Pod, Routing, Signal},
    traffic::{self, Echo, Steady},
    wire::Tap,
};
use serde_json::json;

use crate::needs_root;

/// Entries of the table of new connections.
const TABLE: u32 = 1024;
/// Ten tables a second.
const RATE: u64 = 10 * TABLE as u64;
const SYN: u8 = 2;

/// From where a flood comes, and at whom.
struct Flood {
    tap: Tap,
    from: Vec<Ends>,
    /// At this port, where somebody answers, from this many addresses that nobody has. Otherwise at all ports from one.
    answered: Option<(u16, u32)>,
}

/// A pod's flood at everybody.
fn from_pod(pod: &Pod, to: &[IpAddr]) -> Flood {
    Flood {
        tap: Tap::open(&pod.namespace, "eth0").unwrap(),
        from: to.iter().map(|dst| pod.towards(*dst)).collect(),
        answered: None,
    }
}

/// A flood from outside at a pod.
fn from_outside(lab: &Lab, pod: &Pod) -> Flood {
    let ends = |v4: bool| Ends {
        src_mac: lab.outside.mac("eth0").unwrap(),
        dst_mac: lab.fabric.mac("outside").unwrap(),
        src: lab.outside_address(v4),
        dst: pod.ip(v4),
        src_port: 0,
        dst_port: 0,
        ttl: 64,
    };
    Flood {
        tap: Tap::open(&lab.outside, "eth0").unwrap(),
        from: [true, false].map(ends).to_vec(),
        answered: None,
    }
}

/// Whether a flow is one of those.
fn is_forged(flow: &str) -> bool {
    flow.contains("198.51.100.")
}

/// A flood at a server, whose answers go to sources that have asked nothing.
fn forged(lab: &Lab, server: SocketAddr) -> Flood {
    let outside = Ends {
        src_mac: lab.outside.mac("eth0").unwrap(),
        dst_mac: lab.fabric.mac("outside").unwrap(),
        src: [198, 51, 100, 0].into(),
        dst: server.ip(),
        src_port: 0,
        dst_port: server.port(),
        ttl: 64,
    };
    Flood {
        tap: Tap::open(&lab.outside, "eth0").unwrap(),
        from: vec![outside],
        answered: Some((server.port(), 250)),
    }
}

impl Flood {
    /// Another connection with each number.
    fn send(&self, number: u64) {
        let ends = self.from[(number % self.from.len() as u64) as usize];
        let src_port = 1024 + (number % 60_000) as u16;
        let ends = match (self.answered, ends.src) {
            (Some((dst_port, sources)), IpAddr::V4(first)) => Ends {
                src: Ipv4Addr::from_bits(first.to_bits() + 1 + number as u32 % sources).into(),
                src_port,
                dst_port,
                ..ends
            },
            _ => Ends {
                src_port,
                dst_port: 7000 + (number / 60_000) as u16,
                ..ends
            },
        };
        self.tap.send(&ends.tcp(SYN, b"")).unwrap();
    }
}

/// A flood comes from a machine of its own: its thread waits for no processor because other tests use them.
fn go_before_others() {
    // SAFETY: a system call that takes numbers only. With 0 it concerns the calling thread, not the process.
    let set = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// How many living connections a table has. The command reads it, whether an agent runs or not.
fn live(node: &Node, map: &str) -> u64 {
    let status = node.ask(["status"]).unwrap();
    let live = status["maps"][map]["live"].as_u64();
    live.unwrap_or_else(|| panic!("{map}: {status}"))
}

fn median(mut windows: Vec<u64>) -> u64 {
    windows.sort_unstable();
    windows[windows.len() / 2]
}

const WINDOW: Duration = Duration::from_millis(500);
/// Windows with the flood, and as many without it between them.
const WINDOWS: usize = 5;
/// How often they are repeated where the machine was too busy.
const ONCE_MORE: usize = 3;

/// What was done in the middle one of the windows of each kind.
#[derive(Debug)]
struct Rates {
    without: u64,
    with: u64,
    /// How many connections the flood opened in its windows.
    flood: u64,
}

impl Rates {
    /// With the flood and without it by turns, so that whatever else the machine does weighs on both; and one window in
    /// which it did something else decides nothing.
    fn take(on: &AtomicBool, sent: &AtomicU64, exchanges: impl Fn() -> u64, mut amid: impl FnMut()) -> Self {
        let (mut done, mut floods) = ([const { Vec::new() }; 2], Vec::new());
        for window in 0..2 * WINDOWS {
            let flood = window % 2 != 0;
            on.store(flood, Ordering::Relaxed);
            let before = (exchanges(), sent.load(Ordering::Relaxed));
            thread::sleep(WINDOW);
            done[usize::from(flood)].push(exchanges() - before.0);
            if flood {
                floods.push(sent.load(Ordering::Relaxed) - before.1);
            }
            if window == WINDOWS {
                amid();
            }
        }
        let [without, with] = done.map(median);
        let flood = median(floods);
        Self { without, with, flood }
    }

    /// At least half of the exchanges went on while ten tables a second were filled, or nearly.
    fn hold(&self) -> bool {
        let tables = u128::from(RATE) * WINDOW.as_millis() / 1000;
        2 * self.with >= self.without && 10 * u128::from(self.flood) >= 9 * tables
    }
}

fn flooded(plan: Plan, with_agent: bool, floods: impl FnOnce(&Lab, [&Pod; 3], SocketAddr) -> Vec<Flood>) {
    needs_root!();
    let config = json!({ "maps": { "conntrackNew": TABLE, "conntrack": 4 * TABLE } });
    let lab = Lab::start(plan.config(config)).unwrap();
    let [node, far] = lab.pair();
    let (a, b) = (node.add_pod("a").unwrap(), node.add_pod("b").unwrap());
    let c = far.add_pod("c").unwrap();
    let server = Echo::tcp(&b.namespace, b.ip(true), 0).unwrap();
    let floods = floods(&lab, [&a, &b, &c], server.address);
    let mut servers = Vec::new();
    let (mut established, mut others) = (Vec::new(), Vec::new());
    for v4 in [true, false] {
        for (there, ip) in [(&c.namespace, c.ip(v4)), (&lab.outside, lab.outside_address(v4))] {
            let (tcp, udp) = (Echo::tcp(there, ip, 0).unwrap(), Echo::udp(there, ip, 0).unwrap());
            established.push(Steady::tcp(&b.namespace, tcp.address).unwrap());
            established.push(Steady::udp(&b.namespace, udp.address).unwrap());
            others.push(Steady::connections(&b.namespace, tcp.address).unwrap());
            servers.extend([tcp, udp]);
        }
    }
    let flows = || established.iter().chain(&others);
    flows().for_each(|flow| flow.wait_for(10));
    if !with_agent {
        node.end_agent(Signal::SIGKILL).unwrap();
    }
    let exchanges = || established.iter().map(Steady::exchanges).sum::<u64>();
    let (on, end, sent) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let (mut most, mut forged) = (0, 0);
    let rates = thread::scope(|scope| {
        scope.spawn(|| {
            go_before_others();
            let many = floods.len() as u64;
            traffic::pour(RATE, &on, &end, &sent, |number| {
                floods[(number % many) as usize].send(number / many);
                Ok(())
            })
        });
        let mut take = || {
            Rates::take(&on, &sent, exchanges, || {
                most = live(node, "conntrack_new");
                let established = node.dump("conntrack").unwrap();
                forged = established.iter().filter(|flow| is_forged(flow)).count();
            })
        };
        let mut rates = take();
        for _ in 0..ONCE_MORE {
            if rates.hold() {
                break;
            }
            println!("once more after {rates:?}");
            rates = take();
        }
        end.store(true, Ordering::Relaxed);
        rates
    });
    println!("{rates:?} in {WINDOW:?}, wanted {RATE} connections a second");
    assert!(
        // The kernel keeps some entries of a small LRU table at each CPU.
        most * 2 >= u64::from(TABLE),
        "{most} of {TABLE} new connections: no flood"
    );
    assert_eq!(forged, 0, "connections are established that nobody has opened");
    assert!(rates.hold(), "{rates:?} in {WINDOW:?}");
    // Who comes afterwards is served at once, whatever fills the table.
    flows().for_each(|flow| flow.wait_for(10));
    let late = Echo::tcp(&c.namespace, c.ip(true), 0).unwrap();
    traffic::tcp(&a.namespace, late.address, 1000).unwrap();
    for flow in established.into_iter().chain(others) {
        let tally = flow.stop();
        assert_eq!(tally.failures, Vec::<String>::new());
    }
}

#[test]
fn rel_37_established_flows_outlive_floods_of_a_pod_and_from_outside() {
    let plan = Plan::new(Routing::Direct, Families::Dual).fabric(Fabric::Router);
    flooded(plan, true, |lab, [a, b, c], server| {
        let everybody = [true, false]
            .map(|v4| [c.ip(v4), lab.outside_address(v4)])
            .concat();
        vec![from_pod(a, &everybody), from_outside(lab, b), forged(lab, server)]
    });
}

#[test]
fn rel_37_established_flows_outlive_a_flood_through_the_tunnel_without_an_agent() {
    let plan = Plan::new(Routing::Vxlan, Families::Dual);
    flooded(plan, false, |lab, [a, b, c], _| {
        let everybody = [true, false]
            .map(|v4| [c.ip(v4), b.ip(v4), lab.outside_address(v4)])
            .concat();
        vec![from_pod(a, &everybody)]
    });
}
