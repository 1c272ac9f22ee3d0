//! The cluster's nodes: by their names, and what of theirs is one address, so that a pod's address is compared with those of
//! thousands of nodes by one look.

use std::{
    collections::{BTreeMap, btree_map},
    net::IpAddr,
};

use ipnetwork::IpNetwork;

use crate::model::Node;

#[derive(Debug, Default)]
pub struct Nodes {
    all: BTreeMap<String, Node>,
    /// How often a node has the address, or a range of pods that is just this address.
    taken: BTreeMap<IpAddr, usize>,
    /// Those that have addresses of IPv6 alone.
    only_v6: usize,
}

impl Nodes {
    /// True if it is another than before.
    pub(super) fn set(&mut self, node: Node) -> bool {
        if self.all.get(&node.name) == Some(&node) {
            return false;
        }
        self.remove(&node.name);
        for ip in taken(&node) {
            *self.taken.entry(ip).or_default() += 1;
        }
        self.only_v6 += usize::from(has_only_v6(&node));
        self.all.insert(node.name.clone(), node);
        true
    }

    /// True if it was there.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        let Some(node) = self.all.remove(name) else {
            return false;
        };
        for ip in taken(&node) {
            if let btree_map::Entry::Occupied(mut times) = self.taken.entry(ip) {
                *times.get_mut() -= 1;
                if *times.get() == 0 {
                    times.remove();
                }
            }
        }
        self.only_v6 -= usize::from(has_only_v6(&node));
        true
    }

    pub fn get(&self, name: &str) -> Option<&Node> {
        self.all.get(name)
    }

    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.all.keys()
    }

    /// In the order of their names.
    pub fn values(&self) -> impl Iterator<Item = &Node> {
        self.all.values()
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether a node has this address, or a range of pods that is just this address.
    pub fn have(&self, ip: IpAddr) -> bool {
        self.taken.contains_key(&ip)
    }

    /// Whether there is one that only IPv6 leads to.
    pub fn any_only_v6(&self) -> bool {
        self.only_v6 > 0
    }
}

fn taken(node: &Node) -> impl Iterator<Item = IpAddr> {
    let alone = |range: &&IpNetwork| range.prefix() == if range.is_ipv4() { 32 } else { 128 };
    let ranges = node.pod_cidrs.iter().filter(alone).map(IpNetwork::ip);
    node.addresses.iter().copied().chain(ranges)
}

fn has_only_v6(node: &Node) -> bool {
    matches!(node.first_addresses(), [None, Some(_)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, addresses: &[&str], ranges: &[&str]) -> Node {
        Node {
            name: name.into(),
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            pod_cidrs: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            ..Node::default()
        }
    }

    #[test]
    fn an_address_is_taken_until_the_last_that_has_it_goes() {
        let mut nodes = Nodes::default();
        let takes = |nodes: &Nodes, ip: &str| nodes.have(ip.parse().unwrap());
        assert!(nodes.set(node("a", &["192.0.2.1"], &["10.1.0.0/24", "10.9.0.1/32"])));
        assert!(!nodes.set(node("a", &["192.0.2.1"], &["10.1.0.0/24", "10.9.0.1/32"])));
        assert!(nodes.set(node("b", &["192.0.2.1", "192.0.2.2"], &[])));
        for ip in ["192.0.2.1", "192.0.2.2", "10.9.0.1"] {
            assert!(takes(&nodes, ip), "{ip}");
        }
        assert!(!takes(&nodes, "10.1.0.0"));
        assert!(nodes.set(node("b", &["192.0.2.3"], &[])));
        assert!(takes(&nodes, "192.0.2.1") && !takes(&nodes, "192.0.2.2"));
        assert!(nodes.remove("a") && !nodes.remove("a"));
        assert!(!takes(&nodes, "192.0.2.1") && !takes(&nodes, "10.9.0.1"));
        assert!(nodes.taken.len() == 1 && nodes.len() == 1);
    }

    #[test]
    fn nodes_that_only_ipv6_leads_to_are_counted() {
        let mut nodes = Nodes::default();
        nodes.set(node("a", &["192.0.2.1", "2001:db8::1"], &[]));
        nodes.set(node("unknown", &[], &[]));
        assert!(!nodes.any_only_v6());
        nodes.set(node("b", &["2001:db8::2"], &[]));
        assert!(nodes.any_only_v6());
        nodes.set(node("b", &["192.0.2.2", "2001:db8::2"], &[]));
        assert!(!nodes.any_only_v6());
    }
}
