//! Who is drawn: by a number of the kernel inside of the cluster, and outside of it by one that the node's secret makes of the
//! connection. Secrets, connections and the sequence of random numbers are the same in every run, and so is each sum here.

use std::net::IpAddr;

use cni_ebpf::abi::{Addr, Backend, Port, Service, ServiceKey, Slot, Tuple, service_scope};
use cni_ebpf::datapath::Work;
use cni_ebpf::datapath::stage::Stage;
use cni_tests::memory::{Frame, Memory};
use cni_tests::world::ifindex;

const ID: u32 = 40;
const DRAWS: usize = 6000;

fn address(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}

fn tuple(v6: bool, proto: u8, host: usize, port: usize) -> Tuple {
    let [high, low] = (host as u16).to_be_bytes();
    let client = if v6 {
        address(&format!("2001:db8:9::{host:x}"))
    } else {
        Addr::v4([198, 18, high, low])
    };
    Tuple {
        src: client,
        dst: address(if v6 { "2001:db8::1" } else { "192.0.2.1" }),
        src_port: Port::new(port as u16),
        dst_port: Port::new(30080),
        proto,
        ..Tuple::default()
    }
}

/// How clients differ from each other, as little as they can.
#[derive(Clone, Copy, Debug)]
enum Clients {
    /// One that opens one connection after the other, from the next port each.
    Ports,
    /// From every second port, as Linux gives them out to `connect`.
    EvenPorts,
    /// Neighbours, all from the same port.
    Hosts,
    /// The same connection, tried again later.
    Moments,
}

impl Clients {
    const ALL: [Self; 4] = [Self::Ports, Self::EvenPorts, Self::Hosts, Self::Moments];

    fn ask(self, number: usize, v6: bool, proto: u8) -> (Tuple, u64) {
        let (host, port, moment) = match self {
            Self::Ports => (7, 1024 + number, 1),
            Self::EvenPorts => (7, 32_768 + 2 * number, 1),
            Self::Hosts => (1 + number, 40_000, 1),
            Self::Moments => (7, 40_000, 1 + number as u64),
        };
        // What is asked again within four seconds has the same answer.
        (tuple(v6, proto, host, port), moment << 33)
    }
}

/// The backends that `clients` are given.
fn drawn(memory: &Memory, scope: u8, clients: Clients, v6: bool, proto: u8, backends: u32) -> Vec<u32> {
    let frontend = ServiceKey {
        addr: tuple(v6, proto, 0, 0).dst,
        port: Port::new(30080),
        proto,
        scope,
        pad: 0,
    };
    for slot in 0..backends {
        let Backend { addr, port, .. } = Backend::default();
        memory.slots.put(slot, Slot::new(ID, slot + 1, addr, port));
    }
    let service = Service {
        id: ID,
        slots: backends,
        ..Service::default()
    };
    memory.services.put(frontend, service);
    let ask = |number| {
        let (tuple, now) = clients.ask(number, v6, proto);
        let mut work = Work {
            now,
            tuple,
            ..Work::default()
        };
        work.choice.scope = scope;
        let mut frame = Frame::new(Vec::new(), ifindex::NETDEV);
        super::run(Stage::Choose, memory, &mut frame, &mut work).unwrap();
        work.choice.backend - 1
    };
    (0..DRAWS).map(ask).collect()
}

/// How far counts are from being alike: Pearson's sum, in standard deviations beyond what is to be expected of chance.
fn excess(counts: &[usize]) -> f64 {
    let expected = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
    let squares = counts.iter().map(|count| (*count as f64 - expected).powi(2));
    let freedom = (counts.len() - 1) as f64;
    (squares.sum::<f64>() / expected - freedom) / (2.0 * freedom).sqrt()
}

fn assert_uniform(drawn: &[u32], backends: u32, what: &str) {
    let mut single = vec![0; backends as usize];
    drawn.iter().for_each(|backend| single[*backend as usize] += 1);
    // One after the other in turn would be as even, and no chance: each pair of successive ones must be as frequent.
    let mut pairs = vec![0; (backends * backends) as usize];
    for both in drawn.chunks_exact(2) {
        pairs[(both[0] * backends + both[1]) as usize] += 1;
    }
    for (counts, of) in [(single, "each backend"), (pairs, "each pair")] {
        // Chance alone reaches the half of it in one of a hundred sums.
        let excess = excess(&counts);
        assert!(
            excess < 7.0,
            "{what}: how often {of} was drawn, {counts:?}, is {excess:.1} off"
        );
    }
}

#[test]
fn svc_20_every_draw_is_as_likely_for_each_backend_whatever_clients_have_in_common() {
    let scopes = [service_scope::CLUSTER, service_scope::EXTERNAL];
    for (seed, v6, proto) in [
        (1, false, 6),
        (0x5eed_0001, true, 6),
        (0xffff_ffff, false, 17),
        (0x8000_0000, true, 132),
    ] {
        for backends in [2, 3, 5, 8, 13] {
            for (scope, clients) in scopes
                .into_iter()
                .flat_map(|scope| Clients::ALL.map(|clients| (scope, clients)))
            {
                let memory = Memory::default();
                memory.secrets.port_seed.set(seed);
                let drawn = drawn(&memory, scope, clients, v6, proto, backends);
                let what =
                    format!("scope {scope}, {clients:?}, seed {seed:x}, IPv6 {v6}, {backends} backends");
                assert_uniform(&drawn, backends, &what);
            }
        }
    }
}

/// Who knows what one node draws knows nothing of another's.
#[test]
fn svc_20_the_secret_decides() {
    let by = |seed| {
        let memory = Memory::default();
        memory.secrets.port_seed.set(seed);
        drawn(&memory, service_scope::EXTERNAL, Clients::Ports, false, 6, 8)
    };
    let (one, other) = (by(1), by(2));
    assert_eq!(one, by(1));
    let mut pairs = vec![0; 64];
    one.iter()
        .zip(&other)
        .for_each(|(one, other)| pairs[(one * 8 + other) as usize] += 1);
    assert!(excess(&pairs) < 7.0, "{pairs:?}");
}
