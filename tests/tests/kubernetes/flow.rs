//! Two pods that talk to each other, whatever happens to the agent.

use cni_tests::{
    lab::{Node, Pod},
    traffic::{Echo, Steady},
};

pub(crate) struct Flow {
    flows: Vec<Steady>,
    _servers: Vec<Echo>,
    pods: [Pod; 2],
}

impl Flow {
    pub(crate) fn begin(node: &Node) -> Self {
        let pods = ["talks", "answers"].map(|name| node.add_pod(name).unwrap());
        let [from, to] = &pods;
        let (mut flows, mut servers) = (Vec::new(), Vec::new());
        for ip in &to.addresses {
            let tcp = Echo::tcp(&to.namespace, *ip, 0).unwrap();
            let udp = Echo::udp(&to.namespace, *ip, 0).unwrap();
            flows.extend([
                Steady::tcp(&from.namespace, tcp.address).unwrap(),
                Steady::udp(&from.namespace, udp.address).unwrap(),
                Steady::connections(&from.namespace, tcp.address).unwrap(),
            ]);
            servers.extend([tcp, udp]);
        }
        let flow = Self {
            flows,
            _servers: servers,
            pods,
        };
        flow.goes_on();
        flow
    }

    /// Every exchange is answered, now too.
    pub(crate) fn goes_on(&self) {
        self.flows.iter().for_each(|flow| flow.wait_for(20));
    }

    /// Nothing was lost in all this time.
    #[track_caller]
    pub(crate) fn end(self, node: &Node) {
        self.goes_on();
        for flow in self.flows {
            let tally = flow.stop();
            assert!(tally.failures.is_empty(), "{tally:?}");
        }
        for pod in self.pods {
            node.delete_pod(pod).unwrap();
        }
    }
}
