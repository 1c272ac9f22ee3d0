//! An ICMP error about any packet of a known connection, as either side or somebody on the way saw it, comes to the one who
//! sent that packet and shows it as it was sent. An error about anything else comes to nobody.

use std::net::IpAddr;

use cni_ebpf::abi::{Addr, Config, Reason, Tuple};
use cni_ebpf::datapath::{Verdict, Work, stage::Stage};
use cni_tests::frames::Ends;
use cni_tests::memory::{Frame, Memory};
use cni_tests::world::{self, Hook, ifindex, ip, mac, pod, port};
use proptest::prelude::*;

/// Where a packet comes from and goes to: a pod's device, the node's, the tunnel's.
type Place = u32;

/// What a hook made of a packet.
#[derive(Clone, Debug)]
struct Step {
    from: Place,
    to: Place,
    before: Vec<u8>,
    after: Vec<u8>,
}

fn frame(bytes: Vec<u8>, from: Place) -> (Hook, Frame) {
    let mut frame = world::frame(bytes, from);
    if from == ifindex::TUNNEL {
        frame.tunnel = Some((Addr::from(ip("192.0.2.3")), Config::DEFAULT.vni));
    }
    let of_node = matches!(from, ifindex::NETDEV | ifindex::TUNNEL);
    (if of_node { Hook::FromNetdev } else { Hook::FromPod }, frame)
}

fn send(memory: &mut Memory, bytes: Vec<u8>, from: Place) -> (Result<Verdict, Reason>, Vec<u8>) {
    let (hook, mut frame) = frame(bytes, from);
    let (outcome, _) = super::pass(memory, hook, &mut frame);
    (outcome, frame.bytes)
}

fn place(outcome: Result<Verdict, Reason>) -> Option<Place> {
    match outcome {
        Ok(Verdict::Peer { ifindex } | Verdict::Neighbour { ifindex, .. }) => Some(ifindex),
        Ok(Verdict::Tunnel { .. }) => Some(ifindex::TUNNEL),
        _ => None,
    }
}

fn step(memory: &mut Memory, before: Vec<u8>, from: Place) -> Step {
    let (outcome, after) = send(memory, before.clone(), from);
    let Some(to) = place(outcome) else {
        panic!("{outcome:?} from {from} of {before:x?}");
    };
    Step {
        from,
        to,
        before,
        after,
    }
}

/// As our own parser reads it, which has its own properties.
fn read(bytes: &[u8]) -> (Tuple, Tuple) {
    let memory = Memory {
        config: world::CONFIG,
        ..Memory::default()
    };
    let mut work = Work::default();
    super::run(
        Stage::Parse,
        &memory,
        &mut Frame::new(bytes.to_vec(), ifindex::NETDEV),
        &mut work,
    )
    .unwrap();
    (work.tuple, work.inner)
}

/// Who sends in the name of `src` from a place.
fn from(place: Place, src: IpAddr, dst: IpAddr) -> Ends {
    if place == ifindex::TUNNEL {
        let ends = super::ends(ifindex::NETDEV, src, dst);
        return Ends {
            dst_mac: Config::TUNNEL_MAC,
            ..ends
        };
    }
    Ends {
        src_mac: if place == ifindex::NETDEV {
            [2, 9, 9, 9, 9, 9]
        } else {
            mac(place)
        },
        ..super::ends(place, src, dst)
    }
}

/// A connection: who opens it and what he dials.
#[derive(Clone, Copy, Debug)]
enum Dialled {
    Pod,
    Service,
    HiddenService,
    /// The pod is its own backend.
    Itself,
    Outside,
    Routed,
    Tunnelled,
    /// From outside: with the source translated, and with the client's own.
    NodePort,
    FarNodePort,
    LocalNodePort,
}

/// Whether both of its addresses are translated: each side then knows the Service's address or the node's, and nobody else.
fn hides(dialled: Dialled) -> bool {
    use Dialled::{FarNodePort, HiddenService, Itself, NodePort};
    matches!(dialled, HiddenService | Itself | NodePort | FarNodePort)
}

impl Dialled {
    const ALL: [Self; 10] = [
        Self::Pod,
        Self::Service,
        Self::HiddenService,
        Self::Itself,
        Self::Outside,
        Self::Routed,
        Self::Tunnelled,
        Self::NodePort,
        Self::FarNodePort,
        Self::LocalNodePort,
    ];

    /// From where, to whom, to which port of a Service.
    fn ends(self, v6: bool) -> (Place, Ends, Option<u16>) {
        let either = |v4: &str, six: &str| ip(if v6 { six } else { v4 });
        let a = pod(2, v6);
        let service = either("10.96.0.1", "fd00:96::1");
        let outside = either("9.9.9.9", "2620:fe::9");
        let node = either("192.0.2.1", "2001:db8::1");
        let (place, src, dst, port) = match self {
            Self::Pod => (ifindex::POD_A, a, pod(3, v6), None),
            Self::Service => (ifindex::POD_A, a, service, Some(port::TO_B)),
            Self::HiddenService => (ifindex::POD_A, a, service, Some(port::HIDDEN)),
            Self::Itself => (ifindex::POD_A, a, service, Some(port::TO_A)),
            Self::Outside => (ifindex::POD_A, a, outside, None),
            Self::Routed => (ifindex::POD_A, a, either("10.2.0.9", "fd00:2::9"), None),
            Self::Tunnelled => (ifindex::POD_A, a, either("10.3.0.9", "fd00:3::9"), None),
            Self::NodePort => (ifindex::NETDEV, outside, node, Some(port::NODE_CLUSTER)),
            Self::FarNodePort => (ifindex::NETDEV, outside, node, Some(port::NODE_REMOTE)),
            Self::LocalNodePort => (ifindex::NETDEV, outside, node, Some(port::NODE_LOCAL)),
        };
        (place, from(place, src, dst), port)
    }
}

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
    Echo,
}

impl Protocol {
    fn packet(self, ends: Ends, reply: bool) -> Vec<u8> {
        match self {
            Self::Tcp => ends.tcp(if reply { super::SYN_ACK } else { super::SYN }, b""),
            Self::Udp => ends.udp(b"hello there"),
            Self::Sctp => ends.sctp(b"chunk"),
            Self::Echo => ends.echo(reply, b"ping"),
        }
    }
}

/// A new connection's first packet and the answer to it.
fn exchange(memory: &mut Memory, dialled: Dialled, protocol: Protocol, v6: bool, src_port: u16) -> [Step; 2] {
    let (place, ends, port) = dialled.ends(v6);
    let ends = Ends {
        src_port,
        dst_port: port.unwrap_or(8080),
        ..ends
    };
    let there = step(memory, protocol.packet(ends, false), place);
    let (seen, _) = read(&there.after);
    let answer = from(there.to, seen.dst.into(), seen.src.into());
    let answer = match protocol {
        // The id stands in the place of a source port.
        Protocol::Echo => Ends {
            src_port: seen.src_port.get(),
            ..answer
        },
        _ => Ends {
            src_port: seen.dst_port.get(),
            dst_port: seen.src_port.get(),
            ..answer
        },
    };
    let back = step(memory, protocol.packet(answer, true), there.to);
    [there, back]
}

/// An error about `quoted`, from somebody to somebody.
fn tell(place: Place, src: IpAddr, dst: IpAddr, quoted: &[u8]) -> Vec<u8> {
    let (kind, code) = if src.is_ipv6() { (1, 4) } else { (3, 3) };
    from(place, src, dst).icmp_error(kind, code, quoted)
}

/// Who tells of what came to `place`: its receiver or, by the network, a router before him.
fn teller(place: Place, quoted: &[u8], router: bool) -> IpAddr {
    let (tuple, _) = read(quoted);
    if router && place == ifindex::NETDEV {
        ip(if tuple.src.is_v4() {
            "198.51.100.1"
        } else {
            "2620:fe::1"
        })
    } else {
        tuple.dst.into()
    }
}

fn any_connection() -> impl Strategy<Value = (Dialled, Protocol, bool, u16)> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Echo]);
    let dialled = prop::sample::select(Dialled::ALL.to_vec());
    (dialled, protocol, any::<bool>(), 1024..=u16::MAX)
        .prop_filter("nobody pings a port", |(dialled, protocol, v6, _)| {
            !matches!(protocol, Protocol::Echo) || dialled.ends(*v6).2.is_none()
        })
}

/// What is wrong with an error.
#[derive(Clone, Copy, Debug)]
enum Foreign {
    /// In the packet inside, one of the four bytes of the ports, or of an echo's id.
    Ports(usize),
    Source,
    Destination,
    /// The packet inside is right, and the error goes to somebody else than its sender.
    Receiver,
    /// Or comes from a pod that had nothing to do with it.
    Teller,
}

fn change(quoted: &mut [u8], foreign: Foreign, bits: u8) {
    let v6 = quoted[12] != 8;
    let (src, dst, l4) = if v6 { (37, 53, 54) } else { (29, 33, 34) };
    let protocol = quoted[if v6 { 20 } else { 23 }];
    let at = match foreign {
        Foreign::Receiver | Foreign::Teller => return,
        Foreign::Source => src,
        Foreign::Destination => dst,
        Foreign::Ports(at) if matches!(protocol, 1 | 58) => l4 + 4 + at % 2,
        Foreign::Ports(at) => l4 + at,
    };
    quoted[at] ^= bits;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn rel_47_an_error_about_any_packet_of_a_connection_shows_its_sender_what_he_sent(
        (dialled, protocol, v6, src_port) in any_connection(), reply: bool, router: bool,
    ) {
        let mut memory = world::memory();
        let steps = exchange(&mut memory, dialled, protocol, v6, src_port);
        let step = &steps[usize::from(reply)];
        let ((sent, _), (left, _)) = (read(&step.before), read(&step.after));
        let error = tell(step.to, teller(step.to, &step.after, router), left.src.into(), &step.after);
        let (outcome, shown) = send(&mut memory, error, step.to);
        prop_assert_eq!(place(outcome), Some(step.from), "{:?} about {:?}", outcome, step);
        let (outer, inner) = read(&shown);
        prop_assert_eq!(inner, sent);
        prop_assert_eq!(outer.dst, sent.src);
        prop_assert!(!hides(dialled) || outer.src == sent.dst, "{:?} tells of {:?}", outer.src, step);
    }

    #[test]
    fn rel_47_an_error_about_anything_else_comes_to_nobody(
        (dialled, protocol, v6, src_port) in any_connection(), reply: bool, router: bool,
        foreign in prop_oneof![
            2 => (0..4usize).prop_map(Foreign::Ports),
            1 => Just(Foreign::Source),
            1 => Just(Foreign::Destination),
            1 => Just(Foreign::Receiver),
            1 => Just(Foreign::Teller),
        ],
        bits in 1..=u8::MAX, to_sender: bool,
    ) {
        let mut memory = world::memory();
        let steps = exchange(&mut memory, dialled, protocol, v6, src_port);
        let step = &steps[usize::from(reply)];
        let mut quoted = step.after.clone();
        change(&mut quoted, foreign, bits);
        let (src, stranger) = (teller(step.to, &quoted, router), pod(4, v6));
        // To the one whom the packet inside names, or to the one who sent what is not quoted.
        let (named, _) = read(if to_sender { &step.after } else { &quoted });
        let (place, sent) = match foreign {
            Foreign::Receiver => (step.to, tell(step.to, src, stranger, &quoted)),
            Foreign::Teller => {
                let place = ifindex::POD_STACK;
                (place, tell(place, stranger, named.src.into(), &quoted))
            }
            _ => (step.to, tell(step.to, src, named.src.into(), &quoted)),
        };
        let (outcome, out) = send(&mut memory, sent.clone(), place);
        // What comes by the network and is no pod's is the stack's to judge, as it came.
        let refused = outcome.is_err() || outcome == Ok(Verdict::Pass);
        prop_assert!(refused && out == sent, "{outcome:?} about {quoted:x?}, {step:?}");
    }
}
