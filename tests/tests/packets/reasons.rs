//! Every reason for a drop comes from a packet: one that no fixture produces does not compile here.

use cni_ebpf::abi::{
    Addr, Config, Device, Port, Prefix, Reason, Route, Service, ServiceKey, route_action, route_flags,
    service_flags, service_scope,
};
use cni_ebpf::datapath::Work;
use cni_tests::frames::{self, Ends};
use cni_tests::memory::{Frame, Memory, Room};
use cni_tests::world::{self, Hook, ifindex, ip, pod, port};

use crate::fixtures::{self, ACK, RST, SYN, from_a, outside};

/// A program, the packet it gets, and the world it is in.
struct Case {
    memory: Memory,
    hook: Hook,
    frame: Frame,
}

impl Case {
    /// Pod A sends this.
    fn sent(bytes: Vec<u8>) -> Self {
        Self {
            memory: world::memory(),
            hook: Hook::FromPod,
            frame: world::frame(bytes, ifindex::POD_A),
        }
    }

    /// This arrives from outside.
    fn arrived(bytes: Vec<u8>) -> Self {
        Self {
            hook: Hook::FromNetdev,
            frame: world::frame(bytes, ifindex::NETDEV),
            ..Self::sent(Vec::new())
        }
    }

    /// This comes out of the tunnel, from the node 192.0.2.3.
    fn tunnelled(bytes: Vec<u8>) -> Self {
        let mut case = Self::arrived(bytes);
        case.memory.config.tunnel = 1;
        case.memory.config.tunnel_ifindex = TUNNEL;
        case.frame.ifindex = TUNNEL;
        case.frame.tunnel = Some((Addr::from(ip("192.0.2.3")), Config::DEFAULT.vni));
        case
    }

    fn with(mut self, change: impl FnOnce(&mut Memory)) -> Self {
        change(&mut self.memory);
        self
    }

    fn framed(mut self, change: impl FnOnce(&mut Frame)) -> Self {
        change(&mut self.frame);
        self
    }
}

const TUNNEL: u32 = 99;

fn b(v6: bool) -> Ends {
    from_a(pod(3, v6))
}

fn far(v6: bool) -> Ends {
    from_a(fixtures::far(v6))
}

/// From outside to a port of the node, from where the ranges do not allow it.
fn to_node(v6: bool, dst_port: u16) -> Ends {
    Ends {
        src: ip(if v6 { "2a00::9" } else { "9.9.9.9" }),
        dst: ip(if v6 { "2001:db8::1" } else { "192.0.2.1" }),
        dst_port,
        ..outside(b(v6))
    }
}

/// From a pod of the node 192.0.2.3.
fn remote(dst: std::net::IpAddr) -> Ends {
    Ends {
        src: ip(if dst.is_ipv6() { "fd00:3::9" } else { "10.3.0.9" }),
        dst,
        ..outside(b(dst.is_ipv6()))
    }
}

/// `bytes` with one of them changed.
fn changed(mut bytes: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    bytes[at] = value;
    bytes
}

fn ethertype(number: u16) -> Vec<u8> {
    let mut bytes = b(false).udp(b"x");
    bytes[12..14].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn local_only(memory: &mut Memory, v6: bool) {
    let key = ServiceKey {
        addr: Addr::from(far(v6).dst),
        port: Port::new(8080),
        proto: 17,
        scope: service_scope::CLUSTER,
        pad: 0,
    };
    let service = Service {
        id: 9,
        flags: service_flags::DROP,
        ..Service::default()
    };
    memory.services.put(key, service);
}

fn case(reason: Reason, v6: bool) -> Case {
    let (b, far, remote) = (b(v6), far(v6), remote(pod(3, v6)));
    let l4 = if v6 { 54 } else { 34 };
    match reason {
        Reason::UnknownEthertype => Case::sent(ethertype(0x88cc)),
        Reason::Arp => Case::sent(ethertype(0x0806)),
        Reason::Truncated => Case::sent(b.udp(b"x")[..l4 - 4].to_vec()),
        Reason::Malformed => Case::sent(changed(b.tcp(SYN, b""), l4 + 12, 0x40)),
        Reason::MappedAddress => Case::sent(from_a(ip("::ffff:10.1.0.3")).udp(b"x")),
        Reason::UnknownProtocol => Case::sent(b.ip(47, b"twelve bytes")),
        Reason::ExtensionHeader => {
            let headers: Vec<_> = (0..9).map(|_| (60, vec![0; 8])).collect();
            Case::sent(frames::with_extensions(&from_a(pod(3, true)).udp(b"x"), &headers))
        }
        Reason::FamilyDisabled => Case::sent(b.udp(b"x")).with(|memory| {
            let off = if v6 {
                &mut memory.config.ipv6
            } else {
                &mut memory.config.ipv4
            };
            *off = 0;
        }),
        Reason::FragmentOrphan => {
            let [_, later] = frames::fragments(&b.udp(&[7; 100]), 48, 77);
            Case::sent(later)
        }
        Reason::FragmentTableFull => {
            let [first, _] = frames::fragments(&b.udp(&[7; 100]), 48, 77);
            Case::sent(first).with(|memory| memory.fragments.room = Room::None)
        }
        Reason::SourceAddress => Case::sent(Ends { src: far.dst, ..b }.udp(b"x")),
        Reason::SourceMac => Case::sent(Ends { src_mac: [2; 6], ..b }.udp(b"x")),
        Reason::NeighbourDiscovery => Case::sent(from_a(pod(3, true)).icmp(&[134, 0, 0, 0, 0, 0, 0, 0])),
        Reason::DhcpServer => {
            let src_port = if v6 { 547 } else { 67 };
            Case::sent(Ends { src_port, ..b }.udp(b"x"))
        }
        Reason::LinkLocal => Case::sent(from_a(ip(if v6 { "ff02::1" } else { "224.0.0.1" })).udp(b"x")),
        Reason::Martian => Case::arrived(
            Ends {
                src: pod(2, v6),
                ..remote
            }
            .udp(b"x"),
        ),
        Reason::InvalidState => Case::sent(b.tcp(RST, b"")),
        Reason::Unsettled => {
            Case::sent(b.tcp(ACK, b"x")).with(|memory| memory.settings.unsettled_until = u64::MAX)
        }
        Reason::RelatedUnknown => {
            let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
            Case::sent(b.icmp_error(kind, code, &b.reversed().udp(b"x")))
        }
        Reason::ConntrackFull => Case::sent(b.udp(b"x")).with(|memory| memory.flows[1].room = Room::None),
        Reason::PolicyEgress => {
            let device = ifindex::POD_RULES;
            let ends = Ends {
                src_mac: world::mac(device),
                src: pod(5, v6),
                ..b
            };
            Case::sent(ends.udp(b"x")).framed(|frame| {
                frame.ifindex = device;
                frame.ingress_ifindex = device;
            })
        }
        Reason::PolicyIngress => Case::sent(from_a(pod(5, v6)).udp(b"x")),
        Reason::ServiceNoBackend => {
            let key = |memory: &mut Memory| {
                local_only(memory, v6);
                let (key, service) = memory
                    .services
                    .entries()
                    .into_iter()
                    .find(|(_, s)| s.id == 9)
                    .unwrap();
                memory.services.put(key, Service { flags: 0, ..service });
            };
            Case::sent(far.udp(b"x")).with(key)
        }
        Reason::ServiceNotLocal => Case::sent(far.udp(b"x")).with(|memory| local_only(memory, v6)),
        Reason::NatExhausted => Case::sent(far.udp(b"x")).with(|memory| memory.aliases[1].room = Room::None),
        Reason::NatNoAddress => Case::sent(far.udp(b"x")).with(|memory| {
            memory.devices.put(ifindex::NETDEV, Device::default());
        }),
        Reason::NoRoute => Case::sent(from_a(ip("10.9.0.1")).udp(b"x")),
        Reason::NoEndpoint => Case::sent(from_a(pod(200, v6)).udp(b"x")),
        Reason::TunnelSource => Case::tunnelled(remote.udp(b"x"))
            .framed(|frame| frame.tunnel = Some((Addr::from(ip("192.0.2.4")), Config::DEFAULT.vni))),
        Reason::TunnelKey => Case::tunnelled(remote.udp(b"x")).framed(|frame| frame.tunnel = None),
        Reason::RateLimit => {
            let device = ifindex::POD_LIMIT;
            let ends = Ends {
                src_mac: world::mac(device),
                src: pod(6, v6),
                ..b
            };
            let mut case = Case::sent(ends.udp(&[0; 400]));
            case.frame.ifindex = device;
            case.with(|memory| memory.buckets.put(world::bucket_key(device), world::bucket(0)))
        }
        Reason::Rewrite => Case::sent(far.udp(b"x")).framed(|frame| frame.fixed = true),
        Reason::TooBig => {
            let to_node = Route {
                action: route_action::TUNNEL,
                flags: route_flags::NODE,
                mtu: 100,
                ..Route::default()
            };
            // The one who is to be told cannot be.
            Case::sent(far.udp(&[0; 200]))
                .with(|memory| memory.routes.put(Prefix::host(Addr::from(far.dst)), to_node))
                .framed(|frame| frame.fixed = true)
        }
        Reason::ServiceSource => Case::arrived(to_node(v6, port::NODE_RANGES).tcp(SYN, b"")),
        Reason::ServiceUnknown => {
            Case::sent(from_a(ip(if v6 { "fd00:96::99" } else { "10.96.0.99" })).udp(b"x"))
        }
        Reason::ServiceTuple => {
            // From the only port that there is to give.
            let dial = |dst_port| Ends {
                src_port: world::CONFIG.snat_first as u16,
                dst_port,
                ..from_a(ip(if v6 { "fd00:96::1" } else { "10.96.0.1" }))
            };
            Case::sent(dial(port::HIDDEN).tcp(SYN, b"")).with(|memory| {
                let key =
                    |port| crate::services::key(ip(if v6 { "fd00:96::1" } else { "10.96.0.1" }), port, 6);
                let kept = *memory.services.get(&key(port::TO_B)).unwrap();
                memory.services.put(key(port::HIDDEN), kept);
                let mut first = world::frame(dial(port::TO_B).tcp(SYN, b""), ifindex::POD_A);
                world::run(memory, Hook::FromPod, &mut first, &mut Default::default()).unwrap();
                memory.counts.take();
            })
        }
        Reason::TtlExceeded => {
            let ends = to_node(v6, port::NODE_TUNNELLED);
            Case::arrived(Ends { ttl: 1, ..ends }.tcp(SYN, b""))
        }
        Reason::HostAddress => Case::tunnelled(
            Ends {
                dst: far.dst,
                ..remote
            }
            .udp(b"x"),
        ),
    }
}

#[test]
fn every_reason_has_its_packet_and_is_counted_once() {
    for v6 in [false, true] {
        for reason in Reason::ALL {
            let Case {
                memory,
                hook,
                mut frame,
            } = case(*reason, v6);
            let sent = frame.bytes.clone();
            let flows = || memory.flows.iter().map(|table| table.len()).sum::<usize>();
            let before = flows();
            let mut work = Work::default();
            let outcome = world::run(&memory, hook, &mut frame, &mut work);
            assert_eq!(outcome, Err(*reason), "IPv6 {v6}");
            let answered = matches!(
                reason,
                Reason::ServiceNoBackend | Reason::NoEndpoint | Reason::TtlExceeded
            );
            assert_eq!(work.answered != 0, answered, "{reason:?}");
            assert_eq!(
                frame.bytes != sent,
                answered,
                "{reason:?} left the packet as it was"
            );
            let counts = memory.counts.borrow();
            let of_reason = |direction| counts.get(&(*reason as u8, direction)).copied().unwrap_or(0);
            assert_eq!(of_reason(0) + of_reason(1), 1, "{counts:?}");
            assert_eq!(counts.values().sum::<u64>(), 1, "{reason:?}: {counts:?}");
            assert_eq!(flows(), before, "{reason:?} left a connection");
        }
    }
}
