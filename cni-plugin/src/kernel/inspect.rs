//! What is in the kernel, for CHECK.

use super::{failed, message, netlink::Netlink};
use cni_plugin::{CniError, Mac};
use ipnetwork::IpNetwork;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use std::net::IpAddr;

pub(crate) fn mac(link: &LinkMessage) -> Option<Mac> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    })
}

pub(crate) fn is_up(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up)
}

/// Whether what is sent through the link goes anywhere: one that is not active yet has the queue that drops.
pub(crate) fn has_queue(link: &LinkMessage) -> bool {
    let queue = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Qdisc(name) => Some(name.as_str()),
        _ => None,
    });
    queue.is_some_and(|name| name != "noop")
}

/// The addresses of a link.
pub(crate) fn addresses(netlink: &mut Netlink, ifindex: u32) -> Result<Vec<IpAddr>, CniError> {
    let dump = netlink
        .dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))
        .map_err(|error| failed("cannot list the addresses", error))?;
    Ok(dump
        .into_iter()
        .filter_map(|object| match object {
            RouteNetlinkMessage::NewAddress(address) if address.header.index == ifindex => Some(address),
            _ => None,
        })
        .flat_map(|address| address.attributes)
        .filter_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(address),
            _ => None,
        })
        .collect())
}

/// The permanent neighbours on a link.
pub(crate) fn permanent_neighbours(
    netlink: &mut Netlink,
    ifindex: u32,
) -> Result<Vec<(IpAddr, Mac)>, CniError> {
    let dump = netlink
        .dump(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))
        .map_err(|error| failed("cannot list the neighbours", error))?;
    let permanent = dump.into_iter().filter_map(|object| match object {
        RouteNetlinkMessage::NewNeighbour(neighbour)
            if neighbour.header.ifindex == ifindex && neighbour.header.state == NeighbourState::Permanent =>
        {
            Some(neighbour)
        }
        _ => None,
    });
    Ok(permanent.filter_map(neighbour).collect())
}

fn neighbour(message: NeighbourMessage) -> Option<(IpAddr, Mac)> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    })?;
    Some((address, mac))
}

/// The destinations that are routed, with their gateways.
pub(crate) fn routes(netlink: &mut Netlink) -> Result<Vec<(IpNetwork, Option<IpAddr>)>, CniError> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut wanted = RouteMessage::default();
        wanted.header.address_family = family;
        let dump = netlink
            .dump(RouteNetlinkMessage::GetRoute(wanted))
            .map_err(|error| failed("cannot list the routes", error))?;
        routes.extend(dump.into_iter().filter_map(|object| match object {
            RouteNetlinkMessage::NewRoute(route) => destination(&route),
            _ => None,
        }));
    }
    Ok(routes)
}

/// The link that packets to `address` leave through.
pub(crate) fn link_towards(netlink: &mut Netlink, address: IpAddr) -> Option<u32> {
    let mut question = RouteMessage::default();
    question.header.address_family = message::family(address);
    question.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    question
        .attributes
        .push(RouteAttribute::Destination(address.into()));
    match netlink.get(RouteNetlinkMessage::GetRoute(question)) {
        Ok(RouteNetlinkMessage::NewRoute(route)) => outgoing(&route),
        _ => None,
    }
}

fn outgoing(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(ifindex) => Some(*ifindex),
        _ => None,
    })
}

fn destination(route: &RouteMessage) -> Option<(IpNetwork, Option<IpAddr>)> {
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    };
    let (mut dst, mut gateway) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            _ => {}
        }
    }
    // A default route has no destination.
    let unspecified = match route.header.address_family {
        AddressFamily::Inet => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    };
    let dst = IpNetwork::new(dst.unwrap_or(unspecified), route.header.destination_prefix_length).ok()?;
    Some((dst, gateway))
}
