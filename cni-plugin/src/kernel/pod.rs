//! The pod's end of the pair: addresses, gateways that need no neighbour discovery, routes.

use super::{failed, message, namespace::Namespace, netlink::Netlink, sysctl};
use cni_plugin::{CniError, code, rpc::Allocated};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkMessage};
use nix::libc;
use std::net::IpAddr;

/// A container's namespace with a netlink socket in it.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: Namespace,
    pub(crate) netlink: Netlink,
}

impl Pod {
    pub(crate) fn open(netns: &str) -> Result<Self, CniError> {
        let namespace = Namespace::open(netns)?;
        let netlink = namespace.run(Netlink::open)??;
        Ok(Self { namespace, netlink })
    }

    /// The interface of that name, if there is one.
    pub(crate) fn link(&mut self, ifname: &str) -> Result<Option<LinkMessage>, CniError> {
        match self.netlink.get(message::get_link(ifname)) {
            Ok(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link)),
            Ok(_) => Err(failed(
                format!("cannot look {ifname} up in the container"),
                "unexpected answer",
            )),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(failed(format!("cannot look {ifname} up in the container"), error)),
        }
    }

    /// Configures the pod's end. It comes up here, because routes need that, but carries nothing while the host's
    /// end is down.
    pub(crate) fn configure(&mut self, ifname: &str, endpoint: &Allocated) -> Result<(), CniError> {
        let link = self.link(ifname)?.ok_or_else(|| {
            CniError::new(
                code::TRY_AGAIN_LATER,
                format!("{ifname} has gone from the container"),
            )
            .with_details("an agent that begins anew removes what is not complete")
        })?;
        let ifindex = link.header.index;
        let has_ipv6 = endpoint.addresses.iter().any(|address| address.is_ipv6());
        self.namespace.run(|| sysctl::prepare_ipv6(ifname, has_ipv6))??;
        let mut changes = vec![message::no_link_local(ifindex)];
        changes.extend(
            endpoint
                .addresses
                .iter()
                .map(|address| message::add_address(ifindex, *address)),
        );
        changes.push(message::set_up(ifindex));
        for gateway in &endpoint.gateways {
            changes.push(message::permanent_neighbour(ifindex, *gateway, endpoint.host_mac));
            changes.push(message::link_route(ifindex, *gateway));
        }
        for route in &endpoint.routes {
            let gateway = gateway_for(endpoint, route.dst.ip())?;
            changes.push(message::gateway_route(ifindex, route, gateway));
        }
        self.netlink.apply(changes)
    }
}

/// The gateway of the address's family.
pub(crate) fn gateway_for(endpoint: &Allocated, address: IpAddr) -> Result<IpAddr, CniError> {
    endpoint
        .gateways
        .iter()
        .copied()
        .find(|gateway| gateway.is_ipv4() == address.is_ipv4())
        .ok_or_else(|| {
            CniError::new(
                code::PROTOCOL,
                "the Millrace agent gave a route without a gateway",
            )
            .with_details(format!("no gateway of the family of {address}"))
        })
}
