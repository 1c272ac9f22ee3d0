//! Who is asked of a Service and goes on being asked, and what the agent says of it, while something happens to it or beside it.

use std::net::SocketAddr;

use cni_tests::{
    lab::{Node, Pod, ServiceManifest, cluster_ip},
    netns::Namespace,
    traffic::{Echo, Steady, tcp, udp},
};
use serde_json::Value;

use super::serve;
use crate::eventually;

/// Pods that tell who of them is asked.
pub(super) struct Servers(Vec<(Pod, Vec<Echo>)>);

impl Servers {
    pub(super) fn start(node: &Node, names: &[&str]) -> Self {
        let pods = names.iter().map(|name| node.add_pod(name).unwrap());
        Self(
            pods.map(|pod| {
                let echoes = serve(&pod, 8080);
                (pod, echoes)
            })
            .collect(),
        )
    }

    pub(super) fn pod(&self, number: usize) -> &Pod {
        &self.0[number].0
    }

    /// Who of them answers by streams and by datagrams.
    pub(super) fn answering(&self, from: &Namespace, to: SocketAddr) -> Vec<usize> {
        let asked = || {
            let sum = |(_, echoes): &(Pod, Vec<Echo>)| echoes.iter().map(Echo::times).sum();
            self.0.iter().map(sum).collect::<Vec<usize>>()
        };
        let before = asked();
        tcp(from, to, 1000).unwrap();
        udp(from, to, 1000).unwrap();
        let now = asked();
        (0..now.len()).filter(|one| now[*one] > before[*one]).collect()
    }

    #[track_caller]
    pub(super) fn answers(&self, number: usize, from: &Namespace, to: SocketAddr) {
        assert_eq!(self.answering(from, to), [number], "{to}");
    }
}

/// What is asked of a Service all the time, and whoever else answers there.
pub(super) struct Flows {
    flows: Vec<Steady>,
    _echoes: Vec<Echo>,
}

impl Flows {
    pub(super) fn begin(from: &Namespace, number: u8) -> Self {
        let each = [true, false].map(|v4| {
            let to = vip(number, v4);
            [
                Steady::tcp(from, to).unwrap(),
                Steady::connections(from, to).unwrap(),
                Steady::udp(from, to).unwrap(),
            ]
        });
        Self {
            flows: each.into_iter().flatten().collect(),
            _echoes: Vec::new(),
        }
    }

    /// Those who answer live as long.
    pub(super) fn answered_by(self, echoes: Vec<Echo>) -> Self {
        Self {
            _echoes: echoes,
            ..self
        }
    }

    pub(super) fn go_on(&self) {
        self.flows.iter().for_each(|flow| flow.wait_for(10));
    }

    #[track_caller]
    pub(super) fn end(self) {
        self.go_on();
        for flow in self.flows {
            assert_eq!(flow.stop().failures, Vec::<String>::new());
        }
    }
}

pub(super) fn vip(number: u8, v4: bool) -> SocketAddr {
    SocketAddr::new(cluster_ip(number, v4), 80)
}

pub(super) fn write(node: &Node, service: &ServiceManifest, objects: &Value) {
    node.write_manifest(&service.file(), objects).unwrap();
}

pub(super) fn problems(node: &Node) -> String {
    node.ask(["status"]).unwrap()["agent"]["problems"].to_string()
}

/// All of these words are in the status, and so many Services of this kind are counted.
#[track_caller]
pub(super) fn is_said(node: &Node, kind: &str, count: u64, words: &[&str]) {
    let series = format!("millrace_service_problems{{kind=\"{kind}\"}}");
    eventually(|| {
        let (problems, counted) = (problems(node), node.metric(&series).unwrap());
        let good = counted == count as f64 && words.iter().all(|word| problems.contains(word));
        (!good).then(|| format!("{kind} {counted}, not {count}; {words:?} in {problems}"))
    });
}

/// What `millrace services NAME` says.
pub(super) fn described(node: &Node, number: u8) -> Value {
    node.ask(["services", &format!("service-{number}")]).unwrap()[0].clone()
}
