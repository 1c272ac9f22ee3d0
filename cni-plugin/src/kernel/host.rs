//! The host's end of the pair: named after the attachment, routed to, and up only once it is programmed.

use super::{failed, message, message::VethEnd, namespace::Namespace, netlink::Netlink, sysctl};
use cni_plugin::{CniError, code, rpc::Allocated};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkFlags};
use nix::{errno::Errno, libc, net::if_::if_nametoindex};

/// Whether an earlier ADD was cut short: its host end exists and was never set up, which is the last thing ADD does.
pub(crate) fn is_unfinished(host: &mut Netlink, host_ifname: &str) -> bool {
    match host.get(message::get_link(host_ifname)) {
        Ok(RouteNetlinkMessage::NewLink(link)) => !link.header.flags.contains(LinkFlags::Up),
        _ => false,
    }
}

/// Creates the pair, both ends down, and returns the host end's index.
///
/// A pair of the same name is what a dead ADD left, for the name belongs to the attachment; it is replaced.
pub(crate) fn create_pair(
    host: &mut Netlink,
    namespace: &Namespace,
    ifname: &str,
    endpoint: &Allocated,
) -> Result<u32, CniError> {
    use std::os::fd::AsFd;
    let name = endpoint.host_ifname.as_str();
    let host_end = VethEnd {
        ifname: name,
        mac: endpoint.host_mac,
        mtu: endpoint.mtu,
    };
    let pod_end = VethEnd {
        ifname,
        mac: endpoint.mac,
        mtu: endpoint.mtu,
    };
    let changes = vec![
        message::delete_link(name),
        message::create_veth(&host_end, &pod_end, namespace.file.as_fd()),
    ];
    host.try_apply(changes).map_err(|(number, error)| match number {
        libc::EEXIST => already_there(ifname),
        _ => error,
    })?;
    if_nametoindex(name).map_err(|error| failed(format!("cannot find {name}, which was just made"), error))
}

/// The error of an ADD for an interface that exists.
pub(crate) fn already_there(ifname: &str) -> CniError {
    CniError::new(
        code::INTERFACE_EXISTS,
        format!("an interface {ifname} exists in the container already"),
    )
    .with_details("CNI_IFNAME must name a new interface; call DEL before another ADD")
}

/// Opens the endpoint to traffic. Its programs are attached by now.
///
/// Reverse path filtering may stay as strict as it is: the pod's addresses are routed to the link they come from.
pub(crate) fn bring_up(host: &mut Netlink, ifindex: u32, endpoint: &Allocated) -> Result<(), CniError> {
    let has_ipv6 = endpoint.addresses.iter().any(|address| address.is_ipv6());
    sysctl::prepare_ipv6(&endpoint.host_ifname, has_ipv6)?;
    let mut changes = vec![message::no_link_local(ifindex), message::set_up(ifindex)];
    for address in &endpoint.addresses {
        changes.push(message::permanent_neighbour(ifindex, address.ip(), endpoint.mac));
        changes.push(message::only_link_route(ifindex, address.ip()));
    }
    host.apply(changes)
}

/// Removes the pair. It is no error if there is none.
pub(crate) fn remove_pair(host_ifname: &str) -> Result<(), CniError> {
    match if_nametoindex(host_ifname) {
        Err(Errno::ENODEV) => Ok(()),
        _ => Netlink::open()?.apply(vec![message::delete_link(host_ifname)]),
    }
}
