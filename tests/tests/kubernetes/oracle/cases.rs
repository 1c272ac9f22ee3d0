//! Who asks what, and how it is to go.

use std::collections::BTreeSet;

use super::contender::{
    CLIENT, FAR, ITSELF, ITSELF_BY_PACKETS, NODE, OTHER, OTHER_BY_PACKETS, OUTSIDE, PACKETS,
    To::{
        self, AwayLoadBalancer, Cluster, External, LoadBalancer, Loopback, NodePort, Outside, Pod,
        SecondAddress, Unallocated, UndefinedPort,
    },
    Who,
};

/// Asked in each family by TCP and UDP.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) from: Who,
    pub(super) how: How,
    pub(super) to: &'static [To],
    pub(super) wanted: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Once, or if there are several addresses, several times to see whether always the same endpoint answers.
    Plainly,
    /// From one port, at the same time.
    Together,
    /// So often that every endpoint answers: of two, one is left out in one of eight million.
    Often,
    /// Again and again while affinity lasts, or each time when it is over.
    Within,
    After,
}

pub(super) const SILENCE: &str = "silence";
pub(super) const SAME: &str = "always the same";
pub(super) const ANY: &str = "one or the other";

impl Case {
    /// How often each address is asked.
    pub(super) fn times(&self) -> usize {
        match self.how {
            How::Together | How::Within | How::After => 1,
            How::Often => 24,
            How::Plainly if self.to.len() == 1 => 1,
            How::Plainly => 12,
        }
    }

    /// Of all answers: which, or whether there was more than one server.
    pub(super) fn summary(&self, said: BTreeSet<String>) -> String {
        let all = self.how != How::Plainly || self.times() == 1;
        if all || !said.iter().all(|said| said.contains(" sees ")) {
            return Vec::from_iter(said).join(", ");
        }
        let servers: BTreeSet<_> = said.iter().map(|said| said.split(' ').next()).collect();
        if servers.len() == 1 { SAME } else { ANY }.to_owned()
    }
}

macro_rules! how {
    () => {
        How::Plainly
    };
    (together) => {
        How::Together
    };
    (often) => {
        How::Often
    };
    (within) => {
        How::Within
    };
    (after) => {
        How::After
    };
}

macro_rules! cases {
    ($($name:literal: $from:ident asks $($how:ident)? [$($to:expr),+] => $wanted:expr;)*) => {
        &[$(Case { name: $name, from: $from, how: how!($($how)?), to: &[$($to),+], wanted: $wanted }),*]
    };
}

pub(super) const CASES: &[Case] = cases! {
    // What is served at all.
    "1: a Service without a ClusterIP": CLIENT asks [External(101)] => "fabric sees node0";
    "1: an external name": CLIENT asks [External(104)] => "fabric sees node0";
    "2: a Service labelled headless": CLIENT asks [External(102)] => "fabric sees node0";
    "2: its ClusterIP": CLIENT asks [Cluster(102)] => SILENCE;
    "2: a slice labelled headless": CLIENT asks often [Cluster(105)] => "a sees client";
    "3: another proxy's Service": CLIENT asks [External(103)] => "fabric sees node0";
    "3: its ClusterIP": CLIENT asks [Cluster(103)] => SILENCE;
    "3: a slice with such a label": CLIENT asks often [Cluster(110)] => "a sees client, b sees client";
    "3: its node port": OUTSIDE asks [NodePort(0, 103)] => "refused";
    // Which ports lead where.
    "4, 9: endpoints with a port each": CLIENT asks often [Cluster(109)] => "Tcp4 Tcp6: a sees client; Udp4 Udp6: b sees client";
    "4: ports of other names": CLIENT asks [Cluster(111)] => "refused";
    "4: ports without a number": CLIENT asks often [Cluster(112)] => "b sees client";
    "4: ports of the other protocol": CLIENT asks [Cluster(113)] => "refused";
    "4, 9: one port without a name": CLIENT asks [Cluster(114)] => "Tcp4 Tcp6: a sees client; Udp4 Udp6: refused";
    "6: in two slices": CLIENT asks often [Cluster(106)] => "a sees client";
    "7: it leaves, and nothing is said of serving": CLIENT asks [Cluster(107)] => "a sees client";
    "7: it is not ready, and nothing is said of leaving": CLIENT asks [Cluster(108)] => "refused";
    "10: a node port of one family": OUTSIDE asks [NodePort(0, 115)] => "Tcp4 Udp4: a sees node0; Tcp6 Udp6: refused";
    "10: an external address of one family": PACKETS asks [External(115)] => "Tcp4 Udp4: a sees node0; Tcp6 Udp6: fabric sees node0";
    "10: a range of one family": OUTSIDE asks [LoadBalancer(116)] => "a sees node0";
    // Which endpoints are chosen.
    "11: one leaves": CLIENT asks often [Cluster(120)] => "a sees client";
    "11: one leaves, who is outside": OUTSIDE asks often [NodePort(0, 120)] => "a sees node0";
    "12: all leave": CLIENT asks often [Cluster(121)] => "a sees client";
    "12: all leave, by packets": PACKETS asks often [Cluster(121)] => "a sees client";
    "12: hints are for those that are ready": CLIENT asks often [Cluster(138)] => "a sees client, b sees client";
    "13: the one here leaves, who is outside": OUTSIDE asks often [NodePort(0, 122)] => "a sees outside";
    "13: the one here leaves, outside of another node": OUTSIDE asks often [NodePort(1, 122)] => "b sees outside";
    "13: and is not for the cluster": CLIENT asks often [Cluster(122)] => "b sees client";
    "13: the one here leaves": CLIENT asks often [Cluster(123)] => "a sees client";
    "13: the one here leaves, by packets": PACKETS asks often [Cluster(123)] => "a sees client";
    "13: the one there is ready": OTHER asks often [Cluster(123)] => "b sees other";
    "13: one here leaves and one is ready, who is outside": OUTSIDE asks often [NodePort(0, 124)] => "a sees outside";
    "13: one here leaves and one is ready": CLIENT asks often [Cluster(124)] => "a sees client";
    "14: one is not ready": CLIENT asks often [Cluster(125)] => "b sees client";
    "14: it is for the controller to make it ready": CLIENT asks [Cluster(126)] => "refused";
    "14: the one here is not ready, who is outside": OUTSIDE asks [NodePort(0, 127)] => SILENCE;
    "14: the one here is not ready": CLIENT asks [Cluster(127)] => SILENCE;
    "15: for this node": CLIENT asks often [Cluster(130)] => "a sees client";
    "15: for another node": OTHER asks often [Cluster(130)] => "b sees other";
    "15: who is outside": OUTSIDE asks often [NodePort(0, 130)] => "a sees node0";
    "15: one is for no node": CLIENT asks often [Cluster(131)] => "a sees client, b sees client";
    "15, 17: none is for this node": CLIENT asks often [Cluster(132)] => "a sees client, b sees client";
    "16: none is for this node, and one for its zone": CLIENT asks often [Cluster(133)] => "a sees client";
    "16: for this zone": CLIENT asks often [Cluster(135)] => "a sees client";
    "16: for this zone, by packets": PACKETS asks often [Cluster(135)] => "a sees client";
    "16: for this zone, who is outside": OUTSIDE asks often [NodePort(0, 135)] => "a sees node0";
    "16: the one for no zone is not ready": CLIENT asks often [Cluster(134)] => "a sees client";
    "16: one is for no zone": CLIENT asks often [Cluster(136)] => "a sees client, b sees client";
    "17: none is for this zone": CLIENT asks often [Cluster(137)] => "a sees client, b sees client";
    "17: a node without a zone": OTHER asks often [Cluster(135)] => "a sees other, b sees other";
    "18: the policy is Local": CLIENT asks often [Cluster(139)] => "a sees client, c sees client";
    "18: the policy is Local, who is outside": OUTSIDE asks often [NodePort(0, 139)] => "a sees outside, c sees outside";
    "19: a distribution without hints": CLIENT asks often [Cluster(140)] => "a sees client, b sees client";
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
    "50: it is renewed, a pod": CLIENT asks within [Cluster(160), Cluster(161), Cluster(162), Cluster(163), Cluster(164), Cluster(165)] => SAME;
    "50: it is renewed, a pod, by packets": OTHER_BY_PACKETS asks within [Cluster(160), Cluster(161), Cluster(162), Cluster(163), Cluster(164), Cluster(165)] => SAME;
    "50: it is renewed, a process": NODE asks within [Cluster(160), Cluster(161), Cluster(162), Cluster(163), Cluster(164), Cluster(165)] => SAME;
    "50: it is renewed, who is outside": OUTSIDE asks within [NodePort(0, 160), NodePort(0, 161), NodePort(0, 162), NodePort(0, 163), NodePort(0, 164), NodePort(0, 165)] => SAME;
    "50: it expires, a pod": CLIENT asks after [Cluster(150), Cluster(151), Cluster(152), Cluster(153), Cluster(154), Cluster(155)] => ANY;
    "50: it expires, a pod, by packets": OTHER_BY_PACKETS asks after [Cluster(150), Cluster(151), Cluster(152), Cluster(153), Cluster(154), Cluster(155)] => ANY;
    "50: it expires, a process": NODE asks after [Cluster(150), Cluster(151), Cluster(152), Cluster(153), Cluster(154), Cluster(155)] => ANY;
    "50: it expires, who is outside": OUTSIDE asks after [NodePort(0, 150), NodePort(0, 151), NodePort(0, 152), NodePort(0, 153), NodePort(0, 154), NodePort(0, 155)] => ANY;
};
