//! What the agent says of the host's packet filters.

use cni_tests::{
    lab::{Families, Lab, Node, Plan, Routing},
    require,
};
use serde_json::Value;

use crate::needs_root;

fn find(node: &Node, check: &str) -> Option<Value> {
    let status = node.ask(["status"]).unwrap();
    let checks = status["checks"].as_array().unwrap_or_else(|| panic!("{status}"));
    checks.iter().find(|found| found["name"] == check).cloned()
}

/// A policy that drops what is forwarded, set by either tool and in either family, is seen, named and gone again.
#[test]
fn a_policy_that_drops_what_is_forwarded_is_named() {
    needs_root!();
    let lab = Lab::start(Plan::new(Routing::Vxlan, Families::Dual).nodes(1)).unwrap();
    let node = &lab.nodes[0];
    let state = |check: &str| find(node, check).map_or(Value::Null, |check| check["state"].clone());
    assert_eq!(state("firewall-forward"), "ok");
    for (tool, named) in [
        ("iptables-nft", "ip filter FORWARD"),
        ("ip6tables-nft", "ip6 filter FORWARD"),
        ("iptables-legacy", "iptables-legacy FORWARD"),
        ("ip6tables-legacy", "ip6tables-legacy FORWARD"),
    ] {
        let policy = |chain: &str, policy: &str| {
            let output = node
                .namespace
                .command(tool)
                .args(["-w", "-P", chain, policy])
                .output();
            output.is_ok_and(|output| output.status.success())
        };
        require!(policy("FORWARD", "DROP"), "{tool} does not work here");
        let check = find(node, "firewall-forward").unwrap();
        assert_eq!(check["state"], "warning", "{tool}: {check}");
        assert!(
            check["detail"].as_str().unwrap().contains(named),
            "{tool}: {check}"
        );
        assert!(
            check["remedy"]
                .as_str()
                .unwrap()
                .contains(tool.split('-').next().unwrap()),
            "{check}"
        );
        assert!(policy("FORWARD", "ACCEPT"));
        assert_eq!(state("firewall-forward"), "ok", "after {tool}");
        assert_eq!(state("firewall-vxlan"), "ok");
        assert!(policy("INPUT", "DROP"));
        assert_eq!(state("firewall-vxlan"), "warning", "{tool}");
        assert!(policy("INPUT", "ACCEPT"));
    }
}
