//! What the kernel says of its devices, in the agent's vocabulary.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use cni_plugin::Mac;
use ipnetwork::IpNetwork;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
};

use super::super::netlink::Netlink;
use crate::model::{Device, DeviceAddress, DeviceKind};

/// All devices of the namespace with their addresses, ordered by index.
pub fn list(netlink: &mut Netlink) -> io::Result<Vec<Device>> {
    let mut devices = BTreeMap::new();
    for answer in netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        if let RouteNetlinkMessage::NewLink(link) = answer
            && let Some(device) = device(&link)
        {
            devices.insert(device.ifindex, device);
        }
    }
    for answer in netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        if let RouteNetlinkMessage::NewAddress(address) = answer
            && let Some(device) = devices.get_mut(&address.header.index)
            && let Some(address) = device_address(&address)
        {
            device.addresses.push(address);
        }
    }
    let (default, pacing) = (default_routes(netlink)?, super::pacing(netlink)?);
    let mut devices: Vec<Device> = devices.into_values().collect();
    for device in &mut devices {
        device.addresses.sort_unstable();
        device.default_route = default.contains(&device.ifindex);
        device.paces = pacing.contains(&device.ifindex);
    }
    Ok(devices)
}

pub(super) fn name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn device(link: &LinkMessage) -> Option<Device> {
    let mut device = Device {
        name: name(link)?.to_owned(),
        ifindex: link.header.index,
        mac: None,
        mtu: 0,
        up: link.header.flags.contains(LinkFlags::Up),
        master: None,
        kind: kind(link),
        addresses: Vec::new(),
        default_route: false,
        paces: false,
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Address(bytes) if link.header.link_layer_type == LinkLayerType::Ether => {
                device.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac);
            }
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::Controller(master) if *master != 0 => device.master = Some(*master),
            _ => {}
        }
    }
    Some(device)
}

fn kind(link: &LinkMessage) -> DeviceKind {
    if link.header.flags.contains(LinkFlags::Loopback) {
        return DeviceKind::Loopback;
    }
    let info = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind),
            _ => None,
        }),
        _ => None,
    });
    match info {
        // Hardware and paravirtual cards have a driver instead of a kind.
        None if link.header.link_layer_type == LinkLayerType::Ether => DeviceKind::Physical,
        None => DeviceKind::Other,
        Some(InfoKind::Bond | InfoKind::Team) => DeviceKind::Bond,
        Some(InfoKind::Vlan) => DeviceKind::Vlan,
        Some(InfoKind::Bridge) => DeviceKind::Bridge,
        Some(InfoKind::Veth) => DeviceKind::Veth,
        Some(InfoKind::Vxlan) => DeviceKind::Vxlan,
        Some(_) => DeviceKind::Other,
    }
}

fn device_address(message: &AddressMessage) -> Option<DeviceAddress> {
    let (mut address, mut local) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            // On a point-to-point device `Address` is the other end.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let ip = local.or(address)?;
    // Secondary IPv4 addresses and temporary IPv6 ones bear the same flag.
    let avoid = AddressFlags::Secondary
        | AddressFlags::Deprecated
        | AddressFlags::Tentative
        | AddressFlags::Dadfailed
        | AddressFlags::Optimistic;
    Some(DeviceAddress {
        network: IpNetwork::new(ip, message.header.prefix_len).ok()?,
        global: matches!(message.header.scope, AddressScope::Universe | AddressScope::Site),
        avoid: flags.intersects(avoid),
    })
}

fn default_routes(netlink: &mut Netlink) -> io::Result<BTreeSet<u32>> {
    let mut devices = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut query = RouteMessage::default();
        query.header = RouteHeader {
            address_family: family,
            table: RouteHeader::RT_TABLE_MAIN,
            ..RouteHeader::default()
        };
        for answer in netlink.dump(RouteNetlinkMessage::GetRoute(query))? {
            if let RouteNetlinkMessage::NewRoute(route) = answer
                && route.header.destination_prefix_length == 0
                && route.header.kind == RouteType::Unicast
            {
                devices.extend(out_devices(&route));
            }
        }
    }
    Ok(devices)
}

fn out_devices(route: &RouteMessage) -> Vec<u32> {
    let mut devices = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => devices.push(*ifindex),
            RouteAttribute::MultiPath(hops) => devices.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    devices
}
