//! The tunnel device and the host sides of pods.

use std::{collections::BTreeMap, io};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags,
        LinkInfo, LinkMessage,
    },
};

use super::{
    super::{
        KernelError,
        netlink::{Mode, Netlink},
        routes::absent_is_fine,
    },
    is_pod_device,
    list::name,
};
use crate::desired::{VethState, Vxlan};

fn by_name(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn get(netlink: &mut Netlink, name: &str) -> io::Result<Option<LinkMessage>> {
    let answer = netlink.get(RouteNetlinkMessage::GetLink(by_name(name)))?;
    Ok(match answer {
        Some(RouteNetlinkMessage::NewLink(link)) => Some(link),
        _ => None,
    })
}

fn veth(link: &LinkMessage) -> VethState {
    VethState {
        ifindex: link.header.index,
        up: link.header.flags.contains(LinkFlags::Up),
    }
}

/// The devices with a pod's host-side name; with `only`, those of these names.
pub fn veths(
    netlink: &mut Netlink,
    only: Option<&mut dyn Iterator<Item = &String>>,
) -> io::Result<BTreeMap<String, VethState>> {
    let mut found = BTreeMap::new();
    if let Some(only) = only {
        for name in only {
            if let Some(link) = get(netlink, name)? {
                found.insert(name.clone(), veth(&link));
            }
        }
        return Ok(found);
    }
    for answer in netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        if let RouteNetlinkMessage::NewLink(link) = answer
            && let Some(name) = name(&link).filter(|name| is_pod_device(name))
        {
            found.insert(name.to_owned(), veth(&link));
        }
    }
    Ok(found)
}

/// Sets a device up, if it still is the one with this index.
pub fn raise(netlink: &mut Netlink, name: &str, ifindex: u32) -> Result<(), KernelError> {
    let action = || format!("set {name} up");
    let link = get(netlink, name).map_err(|error| KernelError::new(action(), error))?;
    if link.map(|link| link.header.index) != Some(ifindex) {
        return Err(KernelError::new(action(), format!("device {ifindex} is gone")));
    }
    up(netlink, ifindex).map_err(|error| KernelError::new(action(), error))
}

fn up(netlink: &mut Netlink, ifindex: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    netlink.change(RouteNetlinkMessage::SetLink(message), Mode::Change)
}

/// Removes a device; one that is not there is fine.
pub fn remove(netlink: &mut Netlink, name: &str) -> io::Result<()> {
    absent_is_fine(netlink.change(RouteNetlinkMessage::DelLink(by_name(name)), Mode::Change))
}

/// The device of this name if it is a tunnel of ours that works: `external`, up. Anything else is `None`, so that it
/// is made anew.
pub fn vxlan(netlink: &mut Netlink, name: &str) -> io::Result<Option<Vxlan>> {
    Ok(get(netlink, name)?.and_then(|link| parse_vxlan(name, &link)))
}

/// Whether there is an `external` VXLAN device of this name, up or not.
pub fn is_tunnel(netlink: &mut Netlink, name: &str) -> io::Result<bool> {
    let infos = |link: &LinkMessage| {
        link.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos
                .iter()
                .filter_map(vxlan_data)
                .flatten()
                .any(|data| *data == InfoVxlan::CollectMetadata(true)),
            _ => false,
        })
    };
    Ok(get(netlink, name)?.is_some_and(|link| infos(&link)))
}

fn parse_vxlan(name: &str, link: &LinkMessage) -> Option<Vxlan> {
    let mut found = Vxlan {
        name: name.to_owned(),
        port: 0,
        mtu: 0,
        mac: [0; 6],
    };
    let mut external = false;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::Address(mac) => found.mac = mac.as_slice().try_into().ok()?,
            LinkAttribute::LinkInfo(infos) => {
                for data in infos.iter().filter_map(vxlan_data).flatten() {
                    match data {
                        InfoVxlan::Port(port) => found.port = *port,
                        InfoVxlan::CollectMetadata(on) => external = *on,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let up = link.header.flags.contains(LinkFlags::Up);
    (external && up && found.port != 0).then_some(found)
}

fn vxlan_data(info: &LinkInfo) -> Option<&Vec<InfoVxlan>> {
    match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    }
}

/// Creates the tunnel device or makes it like this.
pub fn set_vxlan(netlink: &mut Netlink, wanted: &Vxlan) -> Result<(), KernelError> {
    let action = || format!("set up device {}", wanted.name);
    let error = |error: io::Error| vxlan_error(action(), wanted, &error);
    let existing = get(netlink, &wanted.name).map_err(error)?;
    if let Some(link) = existing {
        let same_port = parse_vxlan(&wanted.name, &link).is_some_and(|found| found.port == wanted.port);
        if same_port {
            return adjust(netlink, link.header.index, wanted).map_err(error);
        }
        let is_vxlan = link.attributes.iter().any(|attribute| {
            matches!(attribute, LinkAttribute::LinkInfo(infos) if infos.contains(&LinkInfo::Kind(InfoKind::Vxlan)))
        });
        if !is_vxlan {
            return Err(
                KernelError::new(action(), "a device of another kind has this name")
                    .with_remedy("rename it, or set `vxlan.device`"),
            );
        }
        // A port cannot be changed, and one that is not `external` is not what an earlier agent left.
        remove(netlink, &wanted.name).map_err(error)?;
    }
    netlink
        .change(RouteNetlinkMessage::NewLink(new_vxlan(wanted)), Mode::Create)
        .map_err(error)?;
    let index = get(netlink, &wanted.name)
        .map_err(error)?
        .map(|link| link.header.index);
    without_link_local(netlink, index.unwrap_or_default()).map_err(error)?;
    up(netlink, index.unwrap_or_default()).map_err(error)
}

/// No link-local address is generated when the device goes up. Not possible at its creation.
fn without_link_local(netlink: &mut Netlink, ifindex: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message
        .attributes
        .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
            AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
        ])]));
    match netlink.change(RouteNetlinkMessage::SetLink(message), Mode::Change) {
        // A host without IPv6 generates none anyway.
        Err(error) if error.raw_os_error() != Some(libc::EAFNOSUPPORT) => Err(error),
        _ => Ok(()),
    }
}

fn adjust(netlink: &mut Netlink, ifindex: u32, wanted: &Vxlan) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::Mtu(wanted.mtu));
    message
        .attributes
        .push(LinkAttribute::Address(wanted.mac.to_vec()));
    netlink.change(RouteNetlinkMessage::SetLink(message), Mode::Change)
}

fn new_vxlan(wanted: &Vxlan) -> LinkMessage {
    let mut message = by_name(&wanted.name);
    // No ARP: the inner destination MAC is the same on all nodes.
    message.header.flags = LinkFlags::Noarp;
    message.header.change_mask = LinkFlags::Noarp;
    message.attributes.extend([
        LinkAttribute::Mtu(wanted.mtu),
        LinkAttribute::Address(wanted.mac.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![
                InfoVxlan::CollectMetadata(true),
                InfoVxlan::Learning(false),
                InfoVxlan::Port(wanted.port),
                // The outer UDP checksum is optional over IPv4 and over IPv6 (RFC 6935); inner ones stay.
                InfoVxlan::UDPCsum(false),
                InfoVxlan::UDPZeroCsumTX(true),
                InfoVxlan::UDPZeroCsumRX(true),
            ])),
        ]),
    ]);
    message
}

fn vxlan_error(action: String, wanted: &Vxlan, error: &io::Error) -> KernelError {
    let remedy = match error.raw_os_error() {
        Some(libc::EEXIST) => format!(
            "another `external` VXLAN device has UDP port {}: set `vxlan.port` to one that is free, on every node",
            wanted.port
        ),
        Some(libc::EADDRINUSE) => {
            format!(
                "another program has UDP port {}: set `vxlan.port`, on every node",
                wanted.port
            )
        }
        Some(libc::EOPNOTSUPP) => {
            "the kernel lacks the module vxlan: install it, or set routing: direct".to_owned()
        }
        Some(libc::EINVAL) => format!(
            "an MTU of {} may be too small or too large: set `mtu`",
            wanted.mtu
        ),
        _ => String::new(),
    };
    KernelError::new(action, error).with_remedy(remedy)
}
