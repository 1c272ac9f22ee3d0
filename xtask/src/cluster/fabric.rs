//! The network that joins the control plane and the nodes: a bridge in a namespace of its own.

use std::net::IpAddr;

use anyhow::{Result, bail};

use super::daemon::Daemon;
use super::place::Place;
use super::plan::{Node, Plan};
use super::{control, gateway, keys, namespace};
use crate::process::output;

pub(crate) const BRIDGE: &str = "br0";
/// A node's device that faces the fabric.
const UPLINK: &str = "eth0";

/// A cluster of this name that was brought up from another tree is not ours to replace.
pub(crate) fn refuse_strangers(place: &Place) -> Result<()> {
    if namespace::exists(&place.fabric()) && !place.folder().exists() {
        bail!(
            "a cluster `{place}` is up that this tree knows nothing of; choose another --name, or remove it with \
             `cargo xtask cluster down --name {place}`"
        );
    }
    Ok(())
}

/// Makes the fabric with the API server on it, which takes seconds to be ready.
pub(crate) fn up(place: &Place, plan: &Plan) -> Result<Daemon> {
    place.write_plan(plan)?;
    namespace::create(&place.fabric())?;
    namespace::ip(&place.fabric(), &bridge(plan))?;
    let (listener, port) = gateway::listen()?;
    keys::create(place, plan, port)?;
    gateway::start(place, listener)?;
    control::start_api(place, plan)
}

fn bridge(plan: &Plan) -> String {
    let mut lines = format!("link add {BRIDGE} type bridge\n");
    for layout in plan.layouts() {
        let (api, prefix) = (layout.api, layout.prefix);
        lines += &format!("address add {api}/{prefix} dev {BRIDGE}{}\n", nodad(api));
    }
    lines + &format!("link set {BRIDGE} up\n")
}

/// Gives a node its network and a link to the fabric.
pub(crate) fn join(place: &Place, plan: &Plan, node: Node) -> Result<()> {
    let name = place.node(node);
    namespace::create(&name)?;
    namespace::ip(&place.fabric(), &link(&name, node))?;
    namespace::ip(&name, &uplink(plan, node))?;
    let mut set = namespace::inside(&name, "sysctl");
    output(set.args(["-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])).map(drop)
}

/// Removes a node's link. The namespace need not be there any more.
pub(crate) fn leave(place: &Place, node: Node) -> Result<()> {
    namespace::ip(&place.fabric(), &format!("link delete {node}"))
}

fn link(namespace: &str, node: Node) -> String {
    let mac = node.mac();
    format!(
        "link add {node} type veth peer name {UPLINK} address {mac} netns {namespace}\n\
         link set {node} master {BRIDGE} up\n"
    )
}

fn uplink(plan: &Plan, node: Node) -> String {
    let mut lines = String::new();
    for layout in plan.layouts() {
        let (address, prefix) = (layout.node(node), layout.prefix);
        lines += &format!("address add {address}/{prefix} dev {UPLINK}{}\n", nodad(address));
    }
    lines += &format!("link set {UPLINK} up\n");
    for layout in plan.layouts() {
        lines += &format!("route add {} via {}\n", layout.any, layout.api);
    }
    lines
}

/// A search for duplicates would keep an address from being used for a second.
pub(super) fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::plan::Family;

    #[test]
    fn the_bridge_has_the_control_planes_addresses() {
        assert_eq!(
            bridge(&Plan::without_nodes(Family::Dual)),
            "link add br0 type bridge\naddress add 192.168.77.1/24 dev br0\n\
             address add fd00:77::1/64 dev br0 nodad\nlink set br0 up\n"
        );
    }

    #[test]
    fn a_node_leads_everything_else_to_the_fabric() {
        let plan = Plan {
            nodes: 1,
            ..Plan::without_nodes(Family::V6)
        };
        let lines = plan.nodes().map(|node| uplink(&plan, node)).collect::<Vec<_>>();
        assert_eq!(
            lines,
            ["address add fd00:77::b/64 dev eth0 nodad\nlink set eth0 up\nroute add ::/0 via fd00:77::1\n"]
        );
    }
}
