//! One small world, once in memory and once in the kernel's maps: two nodes' worth of routes, a few pods, a Service, a
//! policy. The same packets go through both.

use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, Pod};
use cni_ebpf::abi::*;
use cni_ebpf::datapath::{self, Fib, Outcome, Verdict, Work};

use crate::memory::{Frame, Memory};
use crate::object;

/// A value out of the layout, as aya wants it.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Bytes<const N: usize>([u8; N]);
// SAFETY: bytes.
unsafe impl<const N: usize> Pod for Bytes<N> {}

fn bytes<T: Plain, const N: usize>(value: &T) -> Bytes<N> {
    let mut out = [0; N];
    out.copy_from_slice(as_bytes(value));
    Bytes(out)
}

/// Indices of the devices; the kernel's namespace is made so that they are these.
pub mod ifindex {
    pub const POD_A: u32 = 10;
    pub const POD_B: u32 = 11;
    pub const POD_STACK: u32 = 12;
    pub const POD_RULES: u32 = 13;
    pub const NETDEV: u32 = 20;
}

pub const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xff];

pub fn mac(ifindex: u32) -> [u8; 6] {
    [2, 0, 0, 0, 1, ifindex as u8]
}

/// A pod's address: number 2 is A, 3 is B, 4 is behind the stack, 5 has rules.
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
    ..Config::DEFAULT
};

fn prefix(text: &str) -> Prefix {
    let (ip, len) = text.split_once('/').unwrap();
    Prefix::new(ip.parse().unwrap(), len.parse().unwrap()).unwrap()
}

fn endpoints() -> Vec<(Addr, Endpoint)> {
    let all = [
        (2, ifindex::POD_A, 0, 0, 0),
        (3, ifindex::POD_B, 0, 0, 0),
        (4, ifindex::POD_STACK, endpoint_flags::VIA_STACK, 0, 0),
        (5, ifindex::POD_RULES, 0, 1, 2),
    ];
    all.iter()
        .flat_map(|&(number, ifindex, flags, egress_rules, ingress_rules)| {
            [false, true].map(|v6| {
                let endpoint = Endpoint {
                    id: ifindex,
                    ifindex,
                    mac: mac(ifindex),
                    host_mac: NODE_MAC,
                    flags,
                    egress_rules,
                    ingress_rules,
                    mtu: 1500,
                    ..Endpoint::default()
                };
                (Addr::from(pod(number, v6)), endpoint)
            })
        })
        .collect()
}

fn routes() -> Vec<(Prefix, Route)> {
    let route = |action, flags, gateway: &str, ifindex| Route {
        action,
        flags,
        gateway: Addr::from(ip(gateway)),
        ifindex,
        ..Route::default()
    };
    vec![
        (prefix("10.1.0.0/16"), route(route_action::ENDPOINTS, 0, "::", 0)),
        (prefix("fd00:1::/64"), route(route_action::ENDPOINTS, 0, "::", 0)),
        (
            prefix("192.0.2.1/32"),
            route(route_action::HOST, route_flags::NODE, "::", 0),
        ),
        (
            prefix("2001:db8::1/128"),
            route(route_action::HOST, route_flags::NODE, "::", 0),
        ),
        (
            prefix("10.2.0.0/16"),
            route(route_action::DIRECT, 0, "192.0.2.2", ifindex::NETDEV),
        ),
        (
            prefix("fd00:2::/64"),
            route(route_action::DIRECT, 0, "2001:db8::2", ifindex::NETDEV),
        ),
        (
            prefix("10.3.0.0/16"),
            route(route_action::TUNNEL, 0, "192.0.2.3", 0),
        ),
        (
            prefix("fd00:3::/64"),
            route(route_action::TUNNEL, 0, "192.0.2.3", 0),
        ),
        (prefix("10.4.0.0/16"), route(route_action::FIB, 0, "::", 0)),
        (
            prefix("10.9.0.0/16"),
            route(route_action::UNREACHABLE, 0, "::", 0),
        ),
        (
            prefix("0.0.0.0/0"),
            route(route_action::FIB, route_flags::MASQUERADE, "::", 0),
        ),
        (
            prefix("::/0"),
            route(route_action::FIB, route_flags::MASQUERADE, "::", 0),
        ),
    ]
}

fn device() -> Device {
    Device {
        masquerade_v4: Addr::from(ip("192.0.2.1")),
        masquerade_v6: Addr::from(ip("2001:db8::1")),
        mac: NODE_MAC,
        mtu: 1500,
        ..Device::default()
    }
}

/// What [`Kernel::new`]'s routing table says.
fn fib(dst: &Addr) -> Fib {
    let far = |gateway: &str| Fib::Device {
        ifindex: ifindex::NETDEV,
        gateway: Addr::from(ip(gateway)),
    };
    match IpAddr::from(*dst) {
        IpAddr::V4(v4) if v4.is_loopback() => Fib::Stack,
        IpAddr::V4(v4) => match v4.octets() {
            [192, 0, 2, 1 | 255] => Fib::Stack,
            [192, 0, 2, _] => Fib::Device {
                ifindex: ifindex::NETDEV,
                gateway: *dst,
            },
            _ => far("192.0.2.254"),
        },
        IpAddr::V6(v6) => match v6.segments() {
            [0, 0, 0, 0, 0, 0, 0, 1] => Fib::Stack,
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, 0 | 1] => Fib::Stack,
            [0x2001, 0xdb8, 0, 0, ..] => Fib::Device {
                ifindex: ifindex::NETDEV,
                gateway: *dst,
            },
            _ => far("2001:db8::fe"),
        },
    }
}

/// Rules of the pod with rules: it may send TCP to ports 8080 to 8087 (a prefix) of anybody and ping nobody; it takes
/// TCP on port 80 from pods of class 7 and from 10.2.0.0/16.
struct Rules {
    sets: Vec<(u32, RuleSet)>,
    lists: Vec<(RuleKey, RuleList)>,
    groups: Vec<(GroupKey, GroupChunk)>,
    classes: Vec<(ClassKey, ClassBits)>,
    peers: Vec<(Addr, Peer)>,
    cidrs: Vec<(Prefix, u32)>,
}

fn rules() -> Rules {
    let deny = RuleSet {
        generation: 3,
        flags: rule_set_flags::DEFAULT_DENY,
    };
    let key = |rule_set, direction, port, bits| RuleKey {
        prefix_len: RuleKey::FIXED_BITS + bits,
        rule_set,
        generation: 3,
        direction,
        proto: 6,
        port: Port::new(port),
    };
    let chunk = |word, mask, rule| {
        let group = Group {
            mask,
            word,
            action: action::ALLOW,
            rule,
            pad: 0,
        };
        GroupChunk {
            groups: [group, Group::default(), Group::default(), Group::default()],
        }
    };
    let bits = |any| ClassBits { any, outside: 0 };
    Rules {
        sets: vec![(1, deny), (2, deny)],
        lists: vec![
            (
                key(1, policy_direction::EGRESS, 8080, 13),
                RuleList { list: 1, chunks: 1 },
            ),
            (
                key(2, policy_direction::INGRESS, 80, 16),
                RuleList { list: 2, chunks: 1 },
            ),
        ],
        groups: vec![
            (
                GroupKey { list: 1, chunk: 0 },
                chunk(ClassKey::EVERYBODY_WORD, ClassKey::EVERYBODY_BITS, 11),
            ),
            (GroupKey { list: 2, chunk: 0 }, chunk(4, 0b110, 12)),
        ],
        classes: vec![
            (ClassKey { class: 7, word: 4 }, bits(0b010)),
            (ClassKey { class: 8, word: 4 }, bits(0b100)),
        ],
        peers: vec![
            (
                Addr::from(pod(2, false)),
                Peer {
                    class: 7,
                    flags: peer_flags::POD,
                    ..Peer::default()
                },
            ),
            (
                Addr::from(pod(2, true)),
                Peer {
                    class: 7,
                    flags: peer_flags::POD,
                    ..Peer::default()
                },
            ),
        ],
        cidrs: vec![(prefix("10.2.0.0/16"), 8)],
    }
}

type Services = (
    Vec<(ServiceKey, Service)>,
    Vec<(SlotKey, u32)>,
    Vec<(u32, Backend)>,
);

/// 10.96.0.1:80 and fd00:96::1:80 lead to pod B's 8080; port 81 has no backend.
fn services() -> Services {
    let key = |addr: &str, port| ServiceKey {
        addr: Addr::from(ip(addr)),
        port: Port::new(port),
        proto: 6,
        scope: service_scope::CLUSTER,
        pad: 0,
    };
    let service = |id, slots| Service {
        id,
        slots,
        ..Service::default()
    };
    let backend = |v6| Backend {
        addr: Addr::from(pod(3, v6)),
        port: Port::new(8080),
        proto: 6,
        ..Backend::default()
    };
    (
        vec![
            (key("10.96.0.1", 80), service(1, 1)),
            (key("fd00:96::1", 80), service(2, 1)),
            (key("10.96.0.1", 81), service(3, 0)),
        ],
        vec![
            (SlotKey { service: 1, slot: 0 }, 1),
            (SlotKey { service: 2, slot: 0 }, 2),
        ],
        vec![(1, backend(false)), (2, backend(true))],
    )
}

/// The world in memory.
pub fn memory() -> Memory {
    let mut memory = Memory {
        config: CONFIG,
        ..Memory::default()
    };
    memory.clock.set(monotonic());
    for (addr, endpoint) in endpoints() {
        memory.endpoints.put(addr, endpoint);
    }
    for (prefix, route) in routes() {
        memory.routes.put(prefix, route);
    }
    memory.devices.put(ifindex::NETDEV, device());
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
    let (frontends, slots, backends) = services();
    frontends
        .iter()
        .for_each(|(key, value)| memory.services.put(*key, *value));
    slots
        .iter()
        .for_each(|(key, value)| memory.slots.put(*key, *value));
    backends
        .iter()
        .for_each(|(key, value)| memory.backends.put(*key, *value));
    memory
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
}

impl Hook {
    pub const ALL: [Self; 4] = [Self::FromPod, Self::ToPod, Self::FromNetdev, Self::ToNetdev];

    pub fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromNetdev => "from_netdev",
            Self::ToNetdev => "to_netdev",
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
    };
    datapath::finish(memory, frame, work, &outcome);
    outcome.map(|()| work.verdict())
}

/// The world in the kernel. It lives in a network namespace of its own, which the calling thread enters for good.
pub struct Kernel {
    ebpf: Ebpf,
}

impl Kernel {
    pub fn new() -> Result<Self> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .context("a network namespace of our own")?;
        // One CPU, so that the scratch of the run is where we look for it.
        let mut one = nix::sched::CpuSet::new();
        one.set(0)?;
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one)?;
        devices()?;
        let mut ebpf = object::open(&object::bytes()?, &CONFIG)?;
        for program in object::PROGRAMS {
            object::load(&mut ebpf, program)?;
        }
        let mut kernel = Self { ebpf };
        kernel.fill()?;
        Ok(kernel)
    }

    fn fill(&mut self) -> Result<()> {
        let rules = rules();
        let (frontends, slots, backends) = services();
        self.put::<_, _, 16, 64>("endpoints", &endpoints())?;
        self.put_prefixes::<_, 32>("routes", &routes())?;
        self.put::<_, _, 4, 48>("devices", &[(ifindex::NETDEV, device())])?;
        self.put::<_, _, 8, 96>("rule_groups", &rules.groups)?;
        self.put::<_, _, 8, 16>("classes", &rules.classes)?;
        self.put::<_, _, 16, 16>("peers", &rules.peers)?;
        self.put_prefixes::<_, 4>("cidrs", &rules.cidrs)?;
        self.put::<_, _, 24, 32>("services", &frontends)?;
        self.put::<_, _, 8, 4>("service_slots", &slots)?;
        self.put::<_, _, 4, 32>("backends", &backends)?;
        let mut sets: Array<_, Bytes<8>> = Array::try_from(self.map("rule_sets")?)?;
        for (id, set) in &rules.sets {
            sets.set(*id, bytes(set), 0)?;
        }
        let mut lists: LpmTrie<_, Bytes<12>, Bytes<8>> = LpmTrie::try_from(self.map("rules")?)?;
        for (key, list) in &rules.lists {
            let data: Bytes<16> = bytes(key);
            let mut rest = [0; 12];
            rest.copy_from_slice(&data.0[4..]);
            lists.insert(&Key::new(key.prefix_len, Bytes(rest)), bytes::<_, 8>(list), 0)?;
        }
        Ok(())
    }

    fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("map {name}"))
    }

    fn put<K: Plain, V: Plain, const KEY: usize, const VALUE: usize>(
        &mut self,
        name: &str,
        entries: &[(K, V)],
    ) -> Result<()> {
        let mut map: HashMap<_, Bytes<KEY>, Bytes<VALUE>> = HashMap::try_from(self.map(name)?)?;
        for (key, value) in entries {
            map.insert(bytes::<_, KEY>(key), bytes::<_, VALUE>(value), 0)?;
        }
        Ok(())
    }

    fn put_prefixes<V: Plain, const VALUE: usize>(
        &mut self,
        name: &str,
        entries: &[(Prefix, V)],
    ) -> Result<()> {
        let mut map: LpmTrie<_, [u32; 4], Bytes<VALUE>> = LpmTrie::try_from(self.map(name)?)?;
        for (prefix, value) in entries {
            map.insert(&Key::new(prefix.len, prefix.words), bytes::<_, VALUE>(value), 0)?;
        }
        Ok(())
    }

    /// Forgets connections and fragments.
    pub fn forget(&mut self) -> Result<()> {
        for name in ["conntrack", "conntrack_new"] {
            self.clear::<40, 192>(name)?;
        }
        for name in ["nat", "nat_new"] {
            self.clear::<40, 56>(name)?;
        }
        self.clear::<40, 16>("fragments")
    }

    fn clear<const KEY: usize, const VALUE: usize>(&mut self, name: &str) -> Result<()> {
        let mut map: HashMap<_, Bytes<KEY>, Bytes<VALUE>> = HashMap::try_from(self.map(name)?)?;
        let keys: Vec<_> = map.keys().flatten().collect();
        for key in keys {
            map.remove(&key)?;
        }
        Ok(())
    }

    /// How many entries a table of connections has.
    pub fn flows(&mut self, name: &str) -> Result<usize> {
        let map: HashMap<_, Bytes<40>, Bytes<192>> = HashMap::try_from(self.map(name)?)?;
        Ok(map.keys().flatten().count())
    }

    /// Runs a program over the packet. `out` receives the packet as it left.
    pub fn run(&mut self, hook: Hook, frame: &Frame, out: &mut Vec<u8>) -> Result<Result<Verdict, Reason>> {
        let mut context = [0u8; 192];
        context[8..12].copy_from_slice(&frame.mark.to_ne_bytes());
        context[36..40].copy_from_slice(&frame.ingress_ifindex.to_ne_bytes());
        context[40..44].copy_from_slice(&frame.ifindex.to_ne_bytes());
        out.resize(frame.bytes.len() + 64, 0);
        let program: &SchedClassifier = self.ebpf.program(hook.name()).context("program")?.try_into()?;
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(&frame.bytes),
                data_out: Some(out),
                ctx_in: Some(&context),
                ..TestRunOptions::new()
            })
            .with_context(|| format!("{} over {} bytes", hook.name(), frame.bytes.len()))?;
        out.truncate(result.data_size_out as usize);
        let outcome = self.outcome()?;
        let expected: i32 = match &outcome {
            Err(_) => 2,
            Ok(Verdict::Pass | Verdict::Handled | Verdict::TunnelKey { .. }) => -1,
            Ok(_) => 7,
        };
        ensure!(
            result.return_value as i32 == expected,
            "{outcome:?} gave {}",
            result.return_value as i32
        );
        Ok(outcome)
    }

    /// What the last run left in its scratch.
    fn outcome(&mut self) -> Result<Result<Verdict, Reason>> {
        const WORK: usize = size_of::<Work>();
        let work: PerCpuArray<_, Bytes<WORK>> = PerCpuArray::try_from(self.map("work")?)?;
        let values = work.get(&0, 0)?;
        let mut scratch = Work::default();
        let Bytes(raw) = values[0];
        let at = |offset: usize| raw[offset];
        scratch.way = at(core::mem::offset_of!(Work, way));
        let index = core::mem::offset_of!(Work, to_ifindex);
        scratch.to_ifindex = u32::from_ne_bytes([raw[index], raw[index + 1], raw[index + 2], raw[index + 3]]);
        let gateway = core::mem::offset_of!(Work, gateway);
        scratch.gateway = from_bytes(&raw[gateway..gateway + 16]).context("sixteen bytes")?;
        Ok(
            match Reason::from_number(at(core::mem::offset_of!(Work, reason))) {
                None => Ok(scratch.verdict()),
                Some(reason) => Err(reason),
            },
        )
    }

    pub fn program(&mut self, hook: Hook) -> Result<&mut SchedClassifier> {
        Ok(self
            .ebpf
            .program_mut(hook.name())
            .context("program")?
            .try_into()?)
    }
}

fn ip_command(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .context("ip (iproute2)")?;
    ensure!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The devices of the calling thread's namespace, with the indices of [`ifindex`].
fn devices() -> Result<()> {
    for index in [
        ifindex::POD_A,
        ifindex::POD_B,
        ifindex::POD_STACK,
        ifindex::POD_RULES,
        ifindex::NETDEV,
    ] {
        ip_command(&format!(
            "link add d{index} index {index} type veth peer name p{index}"
        ))?;
        ip_command(&format!("link set p{index} up"))?;
        ip_command(&format!("link set d{index} up"))?;
    }
    ip_command("link set lo up")?;
    let device = format!("d{}", ifindex::NETDEV);
    ip_command(&format!("addr add 192.0.2.1/24 dev {device}"))?;
    ip_command(&format!("addr add 2001:db8::1/64 dev {device} nodad"))?;
    for family in ["ipv4", "ipv6"] {
        std::fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), "1")?;
    }
    ip_command(&format!("route add default via 192.0.2.254 dev {device}"))?;
    ip_command(&format!("route add default via 2001:db8::fe dev {device}"))
}
