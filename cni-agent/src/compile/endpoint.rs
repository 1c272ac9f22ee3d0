//! What one endpoint is in the kernel.

use cni_ebpf::abi::{self, Addr, Bucket, Prefix, Route, direction, endpoint_flags, peer_flags, route_action};

use super::{Topology, address::peer, host};
use crate::{
    desired::{Desired, HostRoute, LinkKey, LinkOwner, NeighbourKey, Program, RouteKey, Veth},
    model::Endpoint,
};

pub(super) fn endpoint(topology: &Topology<'_>, endpoint: &Endpoint, desired: &mut Desired) {
    let Some(ifindex) = endpoint.ifindex() else { return };
    desired.tables.endpoints.insert(
        abi::Endpoint::slot(endpoint.id),
        entry(topology, endpoint, ifindex),
    );
    for ip in &endpoint.addresses {
        let addr = Addr::from(*ip);
        desired.tables.addresses.insert(addr, endpoint.id);
        desired.tables.peers.insert(addr, peer(peer_flags::POD));
        // An address of a delegated IPAM plugin may lie in nobody's range.
        if !topology.pod_cidrs.iter().any(|range| range.contains(*ip)) {
            let route = Route {
                action: route_action::ENDPOINTS,
                ..Route::default()
            };
            desired.tables.routes.insert(Prefix::host(addr), route);
        }
        // Just as the plugin makes it when it brings the device up.
        let key = RouteKey {
            destination: (*ip).into(),
        };
        let route = HostRoute::on_link(ifindex);
        desired.routes.insert(key, route);
        desired
            .neighbours
            .insert(NeighbourKey { ifindex, ip: *ip }, endpoint.mac.0);
    }
    for (rate, direction) in [
        (endpoint.rates.egress, direction::EGRESS),
        (endpoint.rates.ingress, direction::INGRESS),
    ] {
        if rate != 0 {
            desired
                .tables
                .buckets
                .insert(Bucket::key(endpoint.id, direction), Bucket::default());
        }
    }
    if endpoint.rates.egress != 0 {
        desired
            .pacing
            .extend(topology.devices.iter().map(|device| device.ifindex));
    }
    for program in [Program::FromPod, Program::ToPod] {
        desired.links.insert(
            LinkKey {
                owner: LinkOwner::Endpoint(endpoint.id),
                program,
            },
            ifindex,
        );
    }
    let name = endpoint.host_ifname();
    host::veth_sysctls(topology, &name, desired);
    desired.veths.insert(name, Veth::Up { ifindex });
}

fn entry(topology: &Topology<'_>, endpoint: &Endpoint, ifindex: u32) -> abi::Endpoint {
    let mut flags = 0;
    let paced = endpoint.rates.egress != 0 && topology.devices.iter().any(|device| device.paces);
    // Whoever translates pods' connections in the stack must see their answers, too.
    let via_stack = endpoint.via_stack || !topology.via_stack.is_empty();
    for (set, flag) in [
        (via_stack, endpoint_flags::VIA_STACK),
        (endpoint.rates.egress != 0, endpoint_flags::LIMIT_EGRESS),
        (endpoint.rates.ingress != 0, endpoint_flags::LIMIT_INGRESS),
        (paced, endpoint_flags::PACE),
    ] {
        if set {
            flags |= flag;
        }
    }
    abi::Endpoint {
        id: endpoint.id,
        ifindex,
        mac: endpoint.mac.0,
        host_mac: endpoint.host_mac.0,
        flags,
        mtu: endpoint.mtu,
        created: endpoint.created,
        egress_rate: endpoint.rates.egress,
        ingress_rate: endpoint.rates.ingress,
        egress_burst: endpoint.rates.egress_burst,
        ingress_burst: endpoint.rates.ingress_burst,
        ..abi::Endpoint::default()
    }
}
