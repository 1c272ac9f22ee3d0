//! Millrace's routes in the main table, and the permanent neighbours.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use cni_plugin::ROUTE_PROTOCOL;
use ipnetwork::IpNetwork;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourHeader, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
        RouteType,
    },
};

use super::{
    KernelError,
    netlink::{Mode, Netlink},
};
use crate::desired::{HostRoute, NeighbourKey, NextHop, RouteKey};

const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

/// All routes of the main table that bear our protocol number.
pub fn list(netlink: &mut Netlink) -> io::Result<BTreeMap<RouteKey, HostRoute>> {
    let mut routes = BTreeMap::new();
    for family in FAMILIES {
        let mut query = RouteMessage::default();
        query.header = header(family, 0);
        // A strict dump takes no scope and no type of unicast.
        query.header.scope = RouteScope::Universe;
        query.header.kind = RouteType::Unspec;
        for answer in netlink.dump(RouteNetlinkMessage::GetRoute(query))? {
            if let RouteNetlinkMessage::NewRoute(route) = answer
                && let Some((key, route)) = ours(&route)
            {
                routes.insert(key, route);
            }
        }
    }
    Ok(routes)
}

fn header(family: AddressFamily, prefix: u8) -> RouteHeader {
    RouteHeader {
        address_family: family,
        destination_prefix_length: prefix,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::from(ROUTE_PROTOCOL),
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    }
}

fn ours(route: &RouteMessage) -> Option<(RouteKey, HostRoute)> {
    let header = &route.header;
    if u8::from(header.protocol) != ROUTE_PROTOCOL || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    parse(route)
}

fn parse(route: &RouteMessage) -> Option<(RouteKey, HostRoute)> {
    let mut destination = match route.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut next = NextHop {
        ifindex: 0,
        gateway: None,
        source: None,
        mtu: None,
    };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Oif(ifindex) => next.ifindex = *ifindex,
            RouteAttribute::Gateway(address) => next.gateway = ip(address),
            RouteAttribute::PrefSource(address) => next.source = ip(address),
            RouteAttribute::Metrics(metrics) => {
                next.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let destination = IpNetwork::new(destination, route.header.destination_prefix_length).ok()?;
    let host = match route.header.kind {
        // Of IPv6 these name the loopback device.
        RouteType::Unreachable => HostRoute::Unreachable,
        _ => HostRoute::Via(next),
    };
    Some((RouteKey { destination }, host))
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn message(key: &RouteKey, route: &HostRoute) -> RouteMessage {
    let destination = key.destination;
    let mut message = RouteMessage::default();
    message.header = header(family(destination.ip()), destination.prefix());
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(destination.network().into()));
    let HostRoute::Via(next) = route else {
        message.header.kind = RouteType::Unreachable;
        return message;
    };
    if next.gateway.is_none() && destination.is_ipv4() {
        message.header.scope = RouteScope::Link;
    }
    attributes.push(RouteAttribute::Oif(next.ifindex));
    attributes.extend(
        next.gateway
            .map(|gateway| RouteAttribute::Gateway(gateway.into())),
    );
    attributes.extend(
        next.source
            .map(|source| RouteAttribute::PrefSource(source.into())),
    );
    attributes.extend(
        next.mtu
            .map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])),
    );
    message
}

/// Adds or replaces a route of ours. A route of somebody else to the same destination stays, and is an error.
pub fn set(netlink: &mut Netlink, key: &RouteKey, route: &HostRoute) -> Result<(), KernelError> {
    let action = format!("set route {}", key.destination);
    let wanted = RouteNetlinkMessage::NewRoute(message(key, route));
    match netlink.change(wanted.clone(), Mode::Create) {
        Ok(()) => return Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(route_error(action, route, &error)),
    }
    let existing = list(netlink).map_err(|error| KernelError::new(&action, error))?;
    if !existing.contains_key(key) {
        return Err(
            KernelError::new(action, "another program has a route to this destination").with_remedy(format!(
                "see `ip route show {}` and take it out of what sets it",
                key.destination
            )),
        );
    }
    netlink
        .change(wanted, Mode::Replace)
        .map_err(|error| route_error(action, route, &error))
}

fn route_error(action: String, route: &HostRoute, error: &io::Error) -> KernelError {
    let remedy = match error.raw_os_error() {
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => {
            "the gateway is not on the device's link: use routing: vxlan, or nodes that share a link"
        }
        Some(libc::EINVAL) if matches!(route, HostRoute::Via(next) if next.source.is_some()) => {
            "the source is no address of this host any more"
        }
        _ => "",
    };
    KernelError::new(action, error).with_remedy(remedy)
}

/// Removes a route of ours; one that is not there is fine.
pub fn remove(netlink: &mut Netlink, key: &RouteKey) -> io::Result<()> {
    let mut message = RouteMessage::default();
    message.header = header(family(key.destination.ip()), key.destination.prefix());
    message.header.scope = RouteScope::NoWhere;
    message.header.kind = RouteType::Unspec;
    message
        .attributes
        .push(RouteAttribute::Destination(key.destination.network().into()));
    absent_is_fine(netlink.change(RouteNetlinkMessage::DelRoute(message), Mode::Change))
}

pub(super) fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ESRCH | libc::ENODEV | libc::ENOENT)
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn neighbour_message(key: &NeighbourKey) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header = NeighbourHeader {
        family: family(key.ip),
        ifindex: key.ifindex,
        state: NeighbourState::Permanent,
        ..NeighbourHeader::default()
    };
    message
        .attributes
        .push(NeighbourAttribute::Destination(match key.ip {
            IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
            IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
        }));
    message
}

/// Sets a permanent neighbour.
pub fn set_neighbour(netlink: &mut Netlink, key: &NeighbourKey, mac: [u8; 6]) -> io::Result<()> {
    let mut message = neighbour_message(key);
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    netlink.change(RouteNetlinkMessage::NewNeighbour(message), Mode::Replace)
}

/// The MAC of a permanent neighbour, `None` if there is no such neighbour or it is not permanent.
pub fn neighbour(netlink: &mut Netlink, key: &NeighbourKey) -> io::Result<Option<[u8; 6]>> {
    let mut message = neighbour_message(key);
    message.header.state = NeighbourState::None;
    let answer = netlink.get(RouteNetlinkMessage::GetNeighbour(message))?;
    let Some(RouteNetlinkMessage::NewNeighbour(found)) = answer else {
        return Ok(None);
    };
    if found.header.state != NeighbourState::Permanent {
        return Ok(None);
    }
    Ok(found.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    }))
}
