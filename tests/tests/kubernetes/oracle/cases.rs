//! Who asks what, and how it is to go.

use std::collections::BTreeSet;

use super::contender::{
    CLIENT, FAR, ITSELF, ITSELF_BY_PACKETS, NODE, OTHER, OUTSIDE, PACKETS,
    To::{
        self, AwayLoadBalancer, Cluster, External, LoadBalancer, Loopback, NodePort, Outside, Pod,
        SecondAddress, Unallocated, UndefinedPort,
    },
    Who,
};

/// Asked once in each family by TCP and UDP, or several times to see whether always the same endpoint answers.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) from: Who,
    /// Asked from one port, at the same time.
    pub(super) together: bool,
    pub(super) to: &'static [To],
    pub(super) wanted: &'static str,
}

pub(super) const SILENCE: &str = "silence";
const SAME: &str = "always the same";
const ANY: &str = "one or the other";

impl Case {
    /// How often each address is asked.
    pub(super) fn times(&self) -> usize {
        if self.to.len() == 1 || self.together {
            1
        } else {
            12
        }
    }

    /// Of all answers: which, or whether there was more than one server.
    pub(super) fn summary(&self, said: BTreeSet<String>) -> String {
        if self.times() == 1 || !said.iter().all(|said| said.contains(" sees ")) {
            return Vec::from_iter(said).join(", ");
        }
        let servers: BTreeSet<_> = said.iter().map(|said| said.split(' ').next()).collect();
        if servers.len() == 1 { SAME } else { ANY }.to_owned()
    }
}

macro_rules! cases {
    ($($name:literal: $from:ident asks $($together:ident)? [$($to:expr),+] => $wanted:expr;)*) => {
        &[$(Case { name: $name, from: $from, together: !stringify!($($together)?).is_empty(), to: &[$($to),+], wanted: $wanted }),*]
    };
}

pub(super) const CASES: &[Case] = cases! {
    // Who reaches a ClusterIP, and whom the endpoint sees.
    "21, 22: a pod of its node": CLIENT asks [Cluster(21)] => "a sees client";
    "21, 22: a pod of its node, by packets": PACKETS asks [Cluster(21)] => "a sees client";
    "21, 22: a pod of another node": CLIENT asks [Cluster(22)] => "b sees client";
    "21, 22: a pod of another node, by packets": PACKETS asks [Cluster(22)] => "b sees client";
    "21, 22: back from the second node": OTHER asks [Cluster(21)] => "a sees other";
    "21: a process, a pod of its node": NODE asks [Cluster(21)] => "a sees node0";
    "21: a process, a pod of another node": NODE asks [Cluster(22)] => "b sees node0";
    "22: two Services from one port, by packets": PACKETS asks together [Cluster(21), Cluster(44)] => "a sees client";
    "22: two Services from one port, a pod": CLIENT asks together [Cluster(21), Cluster(44)] => "a sees client";
    "22: two Services from one port, a process": NODE asks together [Cluster(21), Cluster(44)] => "a sees node0";
    "23: a pod itself": ITSELF asks [Cluster(21)] => "a sees node0";
    "23: a pod itself, by packets": ITSELF_BY_PACKETS asks [Cluster(21)] => "a sees node0";
    "24: who is outside is masqueraded": OUTSIDE asks [Cluster(21)] => "a sees node0";
    "24: and if the endpoint is elsewhere": OUTSIDE asks [Cluster(22)] => "b sees node0";
    // Who is refused, and who hears nothing.
    "25: no endpoint, a pod": CLIENT asks [Cluster(25)] => "refused";
    "25: no endpoint, a pod, by packets": PACKETS asks [Cluster(25)] => "refused";
    "25: no endpoint, a process": NODE asks [Cluster(25)] => "refused";
    "25: no endpoint, who is outside": OUTSIDE asks [Cluster(25)] => "refused";
    "26: endpoints elsewhere, a pod": CLIENT asks [Cluster(26)] => SILENCE;
    "26: endpoints elsewhere, a pod, by packets": PACKETS asks [Cluster(26)] => SILENCE;
    "26: endpoints elsewhere, a process": NODE asks [Cluster(26)] => SILENCE;
    "26: where the endpoint is": OTHER asks [Cluster(26)] => "b sees other";
    "28: an undefined port, a pod": CLIENT asks [UndefinedPort(21)] => "refused";
    "28: an undefined port, a pod, by packets": PACKETS asks [UndefinedPort(21)] => "refused";
    "28: an undefined port, a process": NODE asks [UndefinedPort(21)] => "refused";
    "29: an unallocated address, a pod": CLIENT asks [Unallocated] => SILENCE;
    "29: an unallocated address, a pod, by packets": PACKETS asks [Unallocated] => SILENCE;
    "29: an unallocated address, a process": NODE asks [Unallocated] => SILENCE;
    // Node ports and policies.
    "27: a node port": OUTSIDE asks [NodePort(0, 27)] => "b sees node0";
    "27: a load balancer": OUTSIDE asks [LoadBalancer(27)] => "b sees node0";
    "27: an external address": OUTSIDE asks [External(27)] => "b sees node0";
    "27: a load balancer, a pod": CLIENT asks [LoadBalancer(27)] => "b sees node0";
    "27: a node port, a pod": CLIENT asks [NodePort(0, 27)] => "b sees node0";
    "27: a node port, a process": NODE asks [NodePort(0, 27)] => "b sees node0";
    "30: the primary address": OUTSIDE asks [NodePort(0, 21)] => "a sees node0";
    "30: another address": OUTSIDE asks [SecondAddress(0, 21)] => "refused";
    "30: another address, a pod": CLIENT asks [SecondAddress(0, 21)] => "refused";
    "30: another address, a process": NODE asks [SecondAddress(0, 21)] => "refused";
    "31: a pod's own port of this number": CLIENT asks [Pod("b")] => "b sees client";
    "31: and that of a host outside": CLIENT asks [Outside] => "outside sees node0";
    "32: the loopback": NODE asks [Loopback(21)] => "refused";
    "33: the endpoint is here": OUTSIDE asks [NodePort(1, 33)] => "b sees node1";
    "33: the endpoint is elsewhere": OUTSIDE asks [NodePort(0, 33)] => "b sees node0";
    "33: two addresses from one port": OUTSIDE asks together [LoadBalancer(40), External(42)] => "a sees node0";
    "34: two addresses from one port": OUTSIDE asks together [NodePort(0, 34), LoadBalancer(34)] => "a sees outside";
    "33: a load balancer": OUTSIDE asks [LoadBalancer(33)] => "b sees node0";
    "34: a node port": OUTSIDE asks [NodePort(0, 34)] => "a sees outside";
    "34: a load balancer": OUTSIDE asks [LoadBalancer(34)] => "a sees outside";
    "34: one here and one elsewhere": OUTSIDE asks [NodePort(0, 37), LoadBalancer(37)] => SAME;
    "34: a pod of another node": OTHER asks [NodePort(0, 34)] => "a sees other";
    "34: a process of another node": FAR asks [NodePort(0, 34)] => "a sees node1";
    "35: a node port": OUTSIDE asks [NodePort(0, 36)] => SILENCE;
    "35: a load balancer": OUTSIDE asks [LoadBalancer(36)] => SILENCE;
    "35: an external address": OUTSIDE asks [External(36)] => SILENCE;
    "35: a process of another node": FAR asks [NodePort(0, 36)] => SILENCE;
    "36: a node port": CLIENT asks [NodePort(0, 36)] => "b sees client";
    "36: a node port, by packets": PACKETS asks [NodePort(0, 36)] => "b sees client";
    "36: a load balancer": CLIENT asks [LoadBalancer(36)] => "b sees client";
    "36: an external address": CLIENT asks [External(36)] => "b sees client";
    "36: one here and one elsewhere": CLIENT asks [NodePort(0, 37), LoadBalancer(37)] => ANY;
    "36: a node port of another node": CLIENT asks [NodePort(1, 34)] => SILENCE;
    "37: a node port": NODE asks [NodePort(0, 36)] => "b sees node0";
    "37: a load balancer": NODE asks [LoadBalancer(36)] => "b sees node0";
    "37: an external address": NODE asks [External(36)] => "b sees node0";
    "37: the endpoint is here": NODE asks [NodePort(0, 34)] => "a sees node0";
    "37: one here and one elsewhere": NODE asks [NodePort(0, 37), LoadBalancer(37)] => ANY;
    // Nobody is there.
    "38: a node port": OUTSIDE asks [NodePort(0, 38)] => "refused";
    "38: a load balancer": OUTSIDE asks [LoadBalancer(38)] => "refused";
    "38: an external address": OUTSIDE asks [External(38)] => "refused";
    "38: a node port, local": OUTSIDE asks [NodePort(0, 45)] => "refused";
    "38: a load balancer, local": OUTSIDE asks [LoadBalancer(45)] => "refused";
    "38: a node port, a pod": CLIENT asks [NodePort(0, 38)] => "refused";
    "38: a load balancer, a process": NODE asks [LoadBalancer(38)] => "refused";
    // Load balancers and external addresses.
    "39: captured": CLIENT asks [LoadBalancer(39)] => "a sees node0";
    "39: captured, who is outside": OUTSIDE asks [LoadBalancer(39)] => "a sees node0";
    "39: asked itself": CLIENT asks [AwayLoadBalancer] => "fabric sees node0";
    "39: asked itself, a process": NODE asks [AwayLoadBalancer] => "fabric sees node0";
    "40: within the range": OUTSIDE asks [LoadBalancer(40)] => "a sees node0";
    "40: not within it": OUTSIDE asks [LoadBalancer(44)] => SILENCE;
    "40: not within it, a pod": CLIENT asks [LoadBalancer(44)] => SILENCE;
    "40: not within it, a pod, by packets": PACKETS asks [LoadBalancer(44)] => SILENCE;
    "40: not within it, a process": NODE asks [LoadBalancer(44)] => SILENCE;
    "40: the node port is open": OUTSIDE asks [NodePort(0, 44)] => "a sees node0";
    "40: and for pods": CLIENT asks [NodePort(0, 44)] => "a sees node0";
    "40: so is the ClusterIP": CLIENT asks [Cluster(44)] => "a sees client";
    "41: the node is within the range": NODE asks [LoadBalancer(41)] => "a sees node0";
    "41: another node": FAR asks [LoadBalancer(41)] => SILENCE;
    "42: who is outside": OUTSIDE asks [External(42)] => "a sees node0";
    "42: a pod": CLIENT asks [External(42)] => "a sees node0";
    "42: a process": NODE asks [External(42)] => "a sees node0";
    "43: who is outside": OUTSIDE asks [LoadBalancer(43)] => "b sees node0";
    "43: a pod": CLIENT asks [LoadBalancer(43)] => "b sees node0";
    "43: a process": NODE asks [LoadBalancer(43)] => "b sees node0";
    // Affinity.
    "49: a pod": CLIENT asks [Cluster(49), NodePort(0, 49), LoadBalancer(49)] => SAME;
    "49: one of its pods, by packets": ITSELF_BY_PACKETS asks [Cluster(49), NodePort(0, 49), LoadBalancer(49)] => SAME;
    "49: a process": NODE asks [Cluster(49), NodePort(0, 49), LoadBalancer(49)] => SAME;
    "49: who is outside": OUTSIDE asks [Cluster(49), NodePort(0, 49), LoadBalancer(49)] => SAME;
    "49: without affinity": CLIENT asks [Cluster(50), NodePort(0, 50), LoadBalancer(50)] => ANY;
    "49: without affinity, who is outside": OUTSIDE asks [NodePort(0, 50), LoadBalancer(50)] => ANY;
};
