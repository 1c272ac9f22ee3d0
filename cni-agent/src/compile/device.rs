//! Which devices are the node's, and what the programs need to know of each.

use std::net::IpAddr;

use cni_ebpf::abi::{self, Addr, device_flags};

use super::Topology;
use crate::{
    config::Config,
    desired::{Desired, LinkKey, LinkOwner, Program},
    model::{Device, DeviceKind, Node},
};

/// The devices that face other machines: those that the configuration names, or those that look like it.
pub(super) fn of_node<'a>(
    config: &Config,
    own: Option<&Node>,
    devices: &'a [Device],
    problems: &mut Vec<String>,
) -> Vec<&'a Device> {
    let mut found = Vec::new();
    if config.devices.is_empty() {
        found.extend(devices.iter().filter(|device| faces_others(config, own, device)));
    }
    for name in &config.devices {
        match devices.iter().find(|device| device.name == *name) {
            Some(device) => found.push(device),
            // Devices appear late (hot-plug, a bond that is being made): not fatal.
            None => problems.push(format!(
                "devices: there is no device {name} (yet); correct its name or take it out"
            )),
        }
    }
    found.retain(|device| {
        if device.mac.is_none() {
            problems.push(format!(
                "device {} is not Ethernet and is left alone; name other ones in devices",
                device.name
            ));
        }
        device.mac.is_some()
    });
    found
}

fn faces_others(config: &Config, own: Option<&Node>, device: &Device) -> bool {
    // Parts of a bond or a bridge are heard through the whole.
    if !device.up || device.master.is_some() || device.name == config.vxlan.device {
        return false;
    }
    let named = own.is_some_and(|node| device.global_addresses().any(|ip| node.addresses.contains(&ip)));
    match device.kind {
        DeviceKind::Loopback => false,
        DeviceKind::Physical | DeviceKind::Bond | DeviceKind::Vlan => {
            named || device.default_route || device.global_addresses().next().is_some()
        }
        // Containers' bridges and virtual pairs have addresses too: these only with better reasons.
        DeviceKind::Bridge | DeviceKind::Veth => named || device.default_route,
        // A default route through WireGuard is a reason to say that it is not handled.
        DeviceKind::Vxlan | DeviceKind::Other => named || (device.mac.is_none() && device.default_route),
    }
}

/// The addresses that packets may be given as their source, the best first.
pub(super) fn source_addresses(device: &Device) -> impl Iterator<Item = IpAddr> + '_ {
    let global = |avoid: bool| {
        device
            .addresses
            .iter()
            .filter(move |address| address.global && address.avoid == avoid)
            .map(|address| address.network.ip())
    };
    global(false).chain(global(true))
}

/// What goes into the tunnel leaves by the device below it.
fn paces(topology: &Topology<'_>, device: &Device) -> bool {
    let is_tunnel = topology
        .tunnel
        .is_some_and(|tunnel| tunnel.ifindex == device.ifindex);
    let below = if is_tunnel {
        topology.fabric()
    } else {
        Some(device)
    };
    below.is_some_and(|device| device.paces)
}

/// The `devices` table, and the programs on them.
pub(super) fn devices(topology: &Topology<'_>, desired: &mut Desired) {
    for device in topology.devices.iter().copied().chain(topology.tunnel) {
        let masquerade = |v4: bool| -> Addr {
            let named = topology
                .own
                .into_iter()
                .flat_map(|node| node.addresses.iter().copied());
            named
                .filter(|ip| device.global_addresses().any(|own| own == *ip))
                .chain(source_addresses(device))
                .find(|ip| ip.is_ipv4() == v4)
                // A device without an address of its own sends with the node's.
                .or_else(|| topology.node_address(v4))
                .map_or(Addr::UNSPECIFIED, Addr::from)
        };
        let entry = abi::Device {
            masquerade_v4: masquerade(true),
            masquerade_v6: masquerade(false),
            mac: device.mac.map(|mac| mac.0).unwrap_or_default(),
            mtu: device.mtu,
            flags: if paces(topology, device) {
                device_flags::PACES
            } else {
                0
            },
            ..abi::Device::default()
        };
        desired.tables.devices.insert(device.ifindex, entry);
        let turned_round = desired
            .config
            .is_some_and(|config| config.xdp != 0)
            .then_some(Program::XdpNodeport);
        for program in [Program::FromNetdev, Program::ToNetdev]
            .into_iter()
            .chain(turned_round)
        {
            let owner = LinkOwner::Netdev(device.name.clone());
            desired.links.insert(LinkKey { owner, program }, device.ifindex);
        }
    }
}
