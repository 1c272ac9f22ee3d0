//! Which agent says what all of them know.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::{
    model::NamespacedName,
    state::{State, of_host_ports},
};

/// One may be away, or may see fewer nodes than the others.
const TELLERS: u64 = 3;

/// This node's place among the cluster's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rank {
    own: u64,
    nodes: u64,
}

impl Rank {
    pub(super) fn new(state: &State, node: &str) -> Self {
        let place = state.nodes.names().position(|name| name == node);
        Self {
            own: place.unwrap_or_default() as u64,
            nodes: if place.is_some() {
                state.nodes.len() as u64
            } else {
                0
            },
        }
    }

    /// Whether this node's agent says what is wrong with an object. A few do, of each other ones: what thousands say is said
    /// thousands of times. Of a pod's ports of its node only that node's agent knows.
    pub(super) fn tells_of(&self, name: &NamespacedName) -> bool {
        if of_host_ports(&name.name).is_some() {
            return true;
        }
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        match hasher.finish().checked_rem(self.nodes) {
            Some(first) => (self.own + self.nodes - first) % self.nodes < TELLERS,
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_tell_of_each_object() {
        for nodes in 0..20 {
            for object in 0..50 {
                let name = NamespacedName {
                    namespace: "n".into(),
                    name: object.to_string(),
                };
                let tellers = (0..nodes).filter(|own| Rank { own: *own, nodes }.tells_of(&name));
                assert_eq!(tellers.count() as u64, nodes.min(TELLERS));
            }
        }
        let unknown = Rank::new(&State::new([]), "x");
        assert!(!unknown.tells_of(&NamespacedName::default()));
    }

    #[test]
    fn of_a_pods_host_ports_its_node_tells_whatever_its_place() {
        let of_pod = NamespacedName {
            namespace: "n".into(),
            name: "pod/a".into(),
        };
        for nodes in 0..20 {
            assert!((0..nodes).all(|own| Rank { own, nodes }.tells_of(&of_pod)));
        }
        assert!(Rank::default().tells_of(&of_pod));
    }
}
