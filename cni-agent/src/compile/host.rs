//! What the host itself must be like, and what the programs are told at load.

use cni_ebpf::abi;

use super::{Topology, topology::told_by_rest};
use crate::{
    config::{Config, Proxy, Routing, SocketLb, Xdp},
    desired::{Desired, Vxlan},
};

/// The programs' constants; `None` while the tunnel device, whose index is one of them, does not exist.
pub(super) fn constants(topology: &Topology<'_>) -> Option<abi::Config> {
    let config = topology.config;
    let tunnel_ifindex = match (topology.tunnelled(), topology.tunnel) {
        (false, _) => 0,
        (true, Some(device)) => device.ifindex,
        (true, None) => return None,
    };
    Some(abi::Config {
        ipv4: config.families.v4().into(),
        ipv6: config.families.v6().into(),
        tunnel: topology.tunnelled().into(),
        masquerade: config.masquerade.enabled.into(),
        tunnel_ifindex,
        vni: config.vxlan.vni,
        tunnel_port: if topology.tunnelled() {
            config.vxlan.port.into()
        } else {
            0
        },
        snat_first: config.snat_ports.first.into(),
        snat_last: config.snat_ports.last.into(),
        services: (config.services.proxy == Proxy::Millrace).into(),
        socket_lb: socket_lb(config),
        xdp: xdp(config).into(),
        // Always: a pod with a limit must not be a reason to load programs.
        bandwidth: 1,
        ..abi::Config::DEFAULT
    })
}

/// Whether devices have the program that turns packets round. What goes on through a tunnel it leaves alone.
fn xdp(config: &Config) -> bool {
    let asked = config.services.proxy == Proxy::Millrace && config.services.xdp != Xdp::Off;
    asked && config.routing == Routing::Direct
}

/// Who is connected to an endpoint keeps its address: where everybody is to be masqueraded, packets of pods are translated.
fn socket_lb(config: &Config) -> u32 {
    let services = &config.services;
    match (services.proxy, services.socket_lb) {
        (Proxy::Stack, _) | (_, SocketLb::Off) => abi::socket_lb::OFF,
        (Proxy::Millrace, SocketLb::All) if !services.masquerade_all => abi::socket_lb::ALL,
        (Proxy::Millrace, SocketLb::Host | SocketLb::All) => abi::socket_lb::HOST,
    }
}

/// The numbers that change while programs stay.
pub(super) fn settings(topology: &Topology<'_>, desired: &mut Desired) {
    let address = |v4| {
        topology
            .node_address(v4)
            .map_or(abi::Addr::UNSPECIFIED, abi::Addr::from)
    };
    let settings = abi::Settings {
        node_v4: address(true),
        node_v6: address(false),
        pods_v6: told_by_rest(&topology.pod_cidrs).map_or(0, |range| abi::Addr::from(range.network()).hi),
        ..abi::Settings::default()
    };
    if settings != abi::Settings::default() {
        desired.tables.settings.insert(0, settings);
    }
}

pub(super) fn vxlan(topology: &Topology<'_>) -> Option<Vxlan> {
    let config = &topology.config.vxlan;
    topology.tunnelled().then(|| Vxlan {
        name: config.device.clone(),
        port: config.port,
        mtu: topology.mtu,
        mac: abi::Config::TUNNEL_MAC,
    })
}

/// Forwarding. What a machine's administrator may have chosen otherwise for a reason is not set but reported.
pub(super) fn sysctls(topology: &Topology<'_>, desired: &mut Desired) {
    let mut set = |path: &str| desired.sysctls.insert(path.to_owned(), "1".to_owned());
    if topology.config.families.v4() {
        set("net/ipv4/ip_forward");
    }
    if topology.config.families.v6() {
        set("net/ipv6/conf/all/forwarding");
    }
}

/// A pod is no router, whatever it claims; and its address is reached only by the route to it.
pub(super) fn veth_sysctls(topology: &Topology<'_>, name: &str, desired: &mut Desired) {
    if topology.config.families.v6() {
        desired
            .sysctls
            .insert(format!("net/ipv6/conf/{name}/accept_ra"), "0".to_owned());
    }
    if topology.config.families.v4() {
        // Replies of the host leave by the programs' way, not always by the device that a packet came from.
        desired
            .sysctls
            .insert(format!("net/ipv4/conf/{name}/rp_filter"), "0".to_owned());
    }
}
