//! From an endpoint to a CNI result, and from a delegated plugin's result to a request.

use cni_plugin::{
    Attachment, CniError, code,
    result::{AddResult, Interface, Ip, Route as ResultRoute},
    rpc::{Allocated, Route},
};
use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

/// Appends the endpoint to the result of the plugins before us, whose entries keep their places.
pub(super) fn extend(
    mut result: AddResult,
    endpoint: &Allocated,
    attachment: &Attachment,
    netns: &str,
    dns: Option<Value>,
) -> AddResult {
    let interface = |name: &str, mac: cni_plugin::Mac, sandbox: &str| Interface {
        name: name.to_owned(),
        mac: Some(mac.to_string()),
        mtu: Some(endpoint.mtu),
        sandbox: sandbox.to_owned(),
        other: Map::new(),
    };
    result
        .interfaces
        .push(interface(&endpoint.host_ifname, endpoint.host_mac, ""));
    let pod_index = result.interfaces.len();
    result
        .interfaces
        .push(interface(&attachment.ifname, endpoint.mac, netns));
    let gateway = |v4: bool| {
        endpoint
            .gateways
            .iter()
            .find(|gateway| gateway.is_ipv4() == v4)
            .map(ToString::to_string)
    };
    result.ips.extend(endpoint.addresses.iter().map(|address| Ip {
        address: address.to_string(),
        gateway: gateway(address.is_ipv4()),
        interface: Some(pod_index),
        other: Map::new(),
    }));
    result
        .routes
        .extend(endpoint.routes.iter().map(|route| ResultRoute {
            dst: route.dst.to_string(),
            gw: gateway(route.dst.is_ipv4()),
            other: route_metrics(route),
        }));
    if let Some(dns) = dns {
        result.dns = Some(dns);
    }
    result
}

fn route_metrics(route: &Route) -> Map<String, Value> {
    [
        ("mtu", route.mtu),
        ("advmss", route.advmss),
        ("priority", route.priority),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key.to_owned(), json!(value?))))
    .collect()
}

/// The addresses that a delegated IPAM plugin reserved.
pub(super) fn addresses(delegated: &AddResult) -> Result<Vec<IpNetwork>, CniError> {
    delegated.ips.iter().map(|ip| network(&ip.address)).collect()
}

/// The routes that it wants.
pub(super) fn routes(delegated: &AddResult) -> Result<Vec<Route>, CniError> {
    let metric = |route: &ResultRoute, key| route.other.get(key)?.as_u64()?.try_into().ok();
    delegated
        .routes
        .iter()
        .map(|route| {
            Ok(Route {
                dst: network(&route.dst)?,
                mtu: metric(route, "mtu"),
                advmss: metric(route, "advmss"),
                priority: metric(route, "priority"),
            })
        })
        .collect()
}

fn network(text: &str) -> Result<IpNetwork, CniError> {
    text.parse().map_err(|error| {
        CniError::new(
            code::IPAM_FAILED,
            format!("the IPAM plugin gave \"{text}\", which is no address"),
        )
        .with_details(error)
    })
}
