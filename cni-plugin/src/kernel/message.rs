//! The netlink messages for links, addresses, neighbours and routes.

use super::netlink::Change;
use cni_plugin::{Mac, ROUTE_PROTOCOL, rpc::Route};
use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
        LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
        RouteType,
    },
};
use nix::libc;
use std::{
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Either end of a veth pair.
pub(crate) struct VethEnd<'a> {
    pub(crate) ifname: &'a str,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
}

impl VethEnd<'_> {
    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(self.ifname.to_owned()),
            LinkAttribute::Address(self.mac.0.to_vec()),
            LinkAttribute::Mtu(self.mtu),
        ];
        message
    }
}

pub(crate) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

/// A pair whose peer is born in `namespace`: it is never seen, and cannot be left, anywhere else.
pub(crate) fn create_veth(host: &VethEnd<'_>, pod: &VethEnd<'_>, namespace: BorrowedFd<'_>) -> Change {
    let mut peer = pod.message();
    peer.attributes
        .push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
    let mut message = host.message();
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    Change {
        what: format!("create the veth pair {} and {}", host.ifname, pod.ifname),
        message: RouteNetlinkMessage::NewLink(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        tolerated: &[],
    }
}

/// Removes a link by name; one that is not there is as good as removed.
pub(crate) fn delete_link(ifname: &str) -> Change {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(ifname.to_owned()));
    Change {
        what: format!("remove the link {ifname}"),
        message: RouteNetlinkMessage::DelLink(message),
        flags: 0,
        tolerated: &[libc::ENODEV],
    }
}

pub(crate) fn get_link(ifname: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(ifname.to_owned()));
    message
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

/// Keeps the kernel from giving the link an IPv6 link-local address when it comes up.
pub(crate) fn no_link_local(ifindex: u32) -> Change {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    message
        .attributes
        .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
    Change {
        what: format!("turn off link-local addresses on link {ifindex}"),
        message: RouteNetlinkMessage::SetLink(message),
        flags: 0,
        // A kernel or a namespace without IPv6.
        tolerated: &[libc::EAFNOSUPPORT, libc::EOPNOTSUPP],
    }
}

pub(crate) fn set_up(ifindex: u32) -> Change {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    Change {
        what: format!("set link {ifindex} up"),
        message: RouteNetlinkMessage::SetLink(message),
        flags: 0,
        tolerated: &[],
    }
}

pub(crate) fn add_address(ifindex: u32, address: IpNetwork) -> Change {
    let mut message = AddressMessage::default();
    message.header.family = family(address.ip());
    message.header.prefix_len = address.prefix();
    message.header.index = ifindex;
    // Nobody else can have the address, and nobody would answer the probe.
    let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
    message.attributes = vec![
        AddressAttribute::Local(address.ip()),
        AddressAttribute::Address(address.ip()),
        AddressAttribute::Flags(flags),
    ];
    Change {
        what: format!("add the address {address}"),
        message: RouteNetlinkMessage::NewAddress(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        tolerated: &[],
    }
}

pub(crate) fn permanent_neighbour(ifindex: u32, address: IpAddr, mac: Mac) -> Change {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Permanent;
    let destination = match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(destination),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    Change {
        what: format!("make {address} a permanent neighbour"),
        message: RouteNetlinkMessage::NewNeighbour(message),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        tolerated: &[],
    }
}

/// A route to one address on the link itself, instead of any other to that address.
pub(crate) fn only_link_route(ifindex: u32, address: IpAddr) -> Change {
    Change {
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        tolerated: &[],
        ..link_route(ifindex, address)
    }
}

/// A route to one address on the link itself.
pub(crate) fn link_route(ifindex: u32, address: IpAddr) -> Change {
    let mut message = route(ifindex, IpNetwork::from(address));
    message.header.scope = if address.is_ipv4() {
        RouteScope::Link
    } else {
        RouteScope::Universe
    };
    new_route(format!("{address} on link {ifindex}"), message)
}

pub(crate) fn gateway_route(ifindex: u32, wanted: &Route, gateway: IpAddr) -> Change {
    let mut message = route(ifindex, wanted.dst);
    message.header.flags = RouteFlags::Onlink;
    message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    message
        .attributes
        .extend(wanted.priority.map(RouteAttribute::Priority));
    let metrics: Vec<RouteMetric> = wanted
        .mtu
        .map(RouteMetric::Mtu)
        .into_iter()
        .chain(wanted.advmss.map(RouteMetric::Advmss))
        .collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    new_route(format!("{} via {gateway}", wanted.dst), message)
}

fn route(ifindex: u32, dst: IpNetwork) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(dst.ip());
    message.header.destination_prefix_length = dst.prefix();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Destination(dst.network().into()),
        RouteAttribute::Oif(ifindex),
    ];
    message
}

fn new_route(what: String, message: RouteMessage) -> Change {
    Change {
        what: format!("set the route {what}"),
        message: RouteNetlinkMessage::NewRoute(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        // The pod's interface is new, so a route that exists is another interface's, and keeps its place.
        tolerated: &[libc::EEXIST],
    }
}
