//! Who gives pods their network, and the routes to pods from where no plugin is.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::control::kubectl;
use super::daemon::until;
use super::node::{CNI_CONFIGURATION, Machine};
use super::place::{Place, write};
use super::plan::{Cni, Node, Plan};
use super::{millrace, namespace};
use crate::process::output;
use crate::workspace;

/// The ranges that the controller-manager gave to one node.
#[derive(Debug)]
struct Ranges {
    node: Node,
    pods: Vec<String>,
}

#[derive(Deserialize)]
struct NodeObject {
    #[serde(default)]
    spec: NodeSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeSpec {
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

/// The archive whose images nodes need for it.
pub(crate) fn image(plan: &Plan) -> Option<PathBuf> {
    (plan.cni == Cni::Millrace).then(workspace::image_archive)
}

/// Tells the API server what nodes are to run for it. Does not wait: they are ready once they do.
pub(crate) fn deploy(place: &Place, plan: &Plan) -> Result<()> {
    if plan.cni == Cni::Millrace {
        millrace::deploy(place, plan)?;
    }
    Ok(())
}

/// Does what is left to be done for the network of pods once every node has its ranges.
pub(crate) fn connect(place: &Place, plan: &Plan) -> Result<()> {
    let ranges = wait_for_ranges(place, plan)?;
    // The API server calls pods, and is no node.
    namespace::ip(&place.fabric(), &routes(plan, &ranges, None))?;
    match plan.cni {
        Cni::Bridge => {
            for one in &ranges {
                let machine = Machine {
                    place,
                    plan,
                    node: one.node,
                };
                let conflist = bridge(&one.pods);
                let file = machine.disk(CNI_CONFIGURATION).join("10-bridge.conflist");
                write(&file, conflist.to_string())?;
            }
            plan.nodes()
                .try_for_each(|node| restore_routes(place, plan, node))
        }
        Cni::Millrace | Cni::None => Ok(()),
    }
}

/// A node that was switched off and on has lost what was not on its disk.
pub(crate) fn restore_routes(place: &Place, plan: &Plan, node: Node) -> Result<()> {
    if plan.cni != Cni::Bridge {
        return Ok(());
    }
    let ranges = wait_for_ranges(place, plan)?;
    namespace::ip(&place.node(node), &routes(plan, &ranges, Some(node)))
}

fn wait_for_ranges(place: &Place, plan: &Plan) -> Result<Vec<Ranges>> {
    let mut all = Vec::new();
    for node in plan.nodes() {
        let mut pods = Vec::new();
        until(&format!("pod ranges for node {node}"), || {
            pods = ranges(place, node).unwrap_or_default();
            !pods.is_empty()
        })?;
        all.push(Ranges { node, pods });
    }
    Ok(all)
}

fn ranges(place: &Place, node: Node) -> Result<Vec<String>> {
    let text = output(kubectl(place).args(["get", "node", &node.to_string(), "--output=json"]))?;
    let object: NodeObject =
        serde_json::from_str(&text).with_context(|| format!("the object of node {node}"))?;
    Ok(object.spec.pod_cidrs)
}

/// Routes to the pods of every node but `at`.
fn routes(plan: &Plan, ranges: &[Ranges], at: Option<Node>) -> String {
    let others = ranges.iter().filter(|one| at != Some(one.node));
    let lines = others.flat_map(|one| one.pods.iter().filter_map(|pods| route(plan, one.node, pods)));
    lines.collect()
}

fn route(plan: &Plan, node: Node, pods: &str) -> Option<String> {
    let network: IpAddr = pods.split('/').next()?.parse().ok()?;
    let layout = plan
        .layouts()
        .iter()
        .find(|layout| layout.api.is_ipv4() == network.is_ipv4())?;
    Some(format!("route replace {pods} via {}\n", layout.node(node)))
}

/// As the plugins' own documentation has it for a node of many.
fn bridge(pods: &[String]) -> Value {
    let ranges: Vec<_> = pods.iter().map(|pods| json!([{"subnet": pods}])).collect();
    let everywhere = pods.iter().map(|pods| {
        let any = if pods.contains(':') { "::/0" } else { "0.0.0.0/0" };
        json!({"dst": any})
    });
    json!({
        "cniVersion": "1.0.0",
        "name": "bridge",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
                "ipam": {"type": "host-local", "ranges": ranges, "routes": everywhere.collect::<Vec<_>>()},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::plan::Family;

    fn two() -> (Plan, Vec<Ranges>) {
        let plan = Plan {
            nodes: 2,
            ..Plan::without_nodes(Family::Dual)
        };
        let ranges = plan.nodes().zip(0..).map(|(node, number)| Ranges {
            node,
            pods: vec![
                format!("10.244.{number}.0/24"),
                format!("fd00:10:244:{number}::/64"),
            ],
        });
        let ranges = ranges.collect();
        (plan, ranges)
    }

    #[test]
    fn a_node_has_routes_to_the_others_and_the_fabric_to_all() {
        let (plan, ranges) = two();
        assert_eq!(
            routes(&plan, &ranges, plan.nodes().next()),
            "route replace 10.244.1.0/24 via 192.168.77.12\nroute replace fd00:10:244:1::/64 via fd00:77::c\n"
        );
        assert_eq!(routes(&plan, &ranges, None).lines().count(), 4);
    }

    #[test]
    fn the_bridge_has_a_range_and_a_default_route_of_each_family() {
        let (_, ranges) = two();
        let ipam = &bridge(&ranges[0].pods)["plugins"][0]["ipam"];
        assert_eq!(ipam["ranges"][1][0]["subnet"], "fd00:10:244:0::/64");
        assert_eq!(ipam["routes"], json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]));
    }
}
