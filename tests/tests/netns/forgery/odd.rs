//! Forged frames that are odd in more than their addresses.

use std::net::IpAddr;

use cni_tests::{
    frames::{self, Ends},
    lab::Pod,
};

use super::{Forgery, MARK, forgery, plain};

/// `node` is the address of the pod's node.
pub(super) fn of_family(from: &Pod, other: &Pod, node: IpAddr) -> Vec<Forgery> {
    let v4 = node.is_ipv4();
    let own = from.towards(other.ip(v4));
    let gateway: IpAddr = if v4 {
        [169, 254, 1, 1].into()
    } else {
        "fe80::1".parse().unwrap()
    };
    let forged = Ends { src: node, ..own };
    let long = [MARK, &[7; 200]].concat();
    let [first, later] = frames::fragments(&forged.udp(&long), 64, 4321);
    let (kind, code) = if v4 { (3, 3) } else { (1, 4) };
    let about = own.reversed().udp(MARK);
    let [_, orphan] = frames::fragments(&own.udp(&long), 8, 4322);
    vec![
        forgery("the node's address", "source_address", forged.udp(MARK)),
        forgery(
            "the gateway's address",
            "source_address",
            Ends { src: gateway, ..own }.udp(MARK),
        ),
        forgery("a first fragment from the node", "source_address", first),
        forgery("a later fragment from the node", "source_address", later),
        forgery("a later fragment of nothing", "fragment_orphan", orphan),
        forgery(
            "an error about nobody's connection",
            "related_unknown",
            own.icmp_error(kind, code, &about),
        ),
        forgery(
            "an error in the node's name",
            "source_address",
            forged.icmp_error(kind, code, &about),
        ),
        forgery(
            "an answer that nobody waits for",
            "invalid_state",
            own.echo(true, MARK),
        ),
        forgery("a VLAN tag", "unknown_ethertype", tagged(&own.udp(MARK))),
    ]
}

/// The frame with a VLAN tag.
fn tagged(frame: &[u8]) -> Vec<u8> {
    let [dst, src] = [0, 6].map(|at| <[u8; 6]>::try_from(&frame[at..at + 6]).unwrap());
    plain(dst, src, 0x8100, &[&[0, 7][..], &frame[12..]].concat())
}

/// IPv6 that would go on to somewhere else, or has headers without end.
pub(super) fn v6(from: &Pod, other: &Pod) -> Vec<Forgery> {
    let packet = from.towards(other.ip(false)).udp(MARK);
    let routing = |kind: u8, left: u8| {
        let header = [&[0, 2, kind, left, 0, 0, 0, 0][..], &[0xfd; 16]].concat();
        frames::with_extensions(&packet, &[(43, header)])
    };
    let many: Vec<_> = (0..9).map(|_| (60, vec![0; 8])).collect();
    vec![
        forgery("source routing, type 0", "extension_header", routing(0, 1)),
        forgery(
            "source routing with a stop to go",
            "extension_header",
            routing(4, 1),
        ),
        forgery(
            "nine extension headers",
            "extension_header",
            frames::with_extensions(&packet, &many),
        ),
    ]
}
