//! Two nodes with pods whose Services are served by Millrace, or by the real kube-proxy beside it; all else is the same.

use std::{
    collections::{BTreeMap, HashMap},
    io, iter,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::Duration,
};

use cni_tests::{
    bench::cluster::{Loader, objects::Object},
    lab::{
        ControlPlane, Families, Lab, Plan, Pod, Routing, ServiceManifest, Signal, cluster_ip,
        kube_proxy::{KubeProxy, Mode},
    },
    netns::Namespace,
    patience,
};
use serde_json::{Value, json};

use super::{
    affinity,
    cases::{Case, How},
    choice, intake,
    services::{
        AWAY, Definition, EXTERNAL, LIKE_A_NODE_PORT, LOAD_BALANCERS, OWN_TARGET, TARGET, UNALLOCATED,
        health_port, node_port, numbered,
    },
    talk::{Means, Talk, Witness, failure, loopback},
};
use crate::{eventually, kube_proxy::PODS};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proxy {
    Millrace,
    Kube,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// A pod.
    Pod(&'static str),
    /// A pod whose sockets nobody looks at: each packet is translated.
    Packets(&'static str),
    /// A process of a node, or a pod in its network.
    Process(usize),
    Outside,
}

pub(super) const CLIENT: Who = Who::Pod("client");
pub(super) const PACKETS: Who = Who::Packets("client");
pub(super) const OTHER_BY_PACKETS: Who = Who::Packets("other");
pub(super) const OTHER: Who = Who::Pod("other");
pub(super) const ITSELF: Who = Who::Pod("a");
pub(super) const ITSELF_BY_PACKETS: Who = Who::Packets("a");
pub(super) const NODE: Who = Who::Process(0);
pub(super) const FAR: Who = Who::Process(1);
pub(super) const OUTSIDE: Who = Who::Outside;

/// What is asked: something of the Service with a number, or an address that is none's.
#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    Cluster(u8),
    /// A port of the ClusterIP that the Service does not have.
    UndefinedPort(u8),
    NodePort(usize, u8),
    /// At an address of the node that is not its primary one.
    SecondAddress(usize, u8),
    Loopback(u8),
    /// Where a node tells of its endpoints.
    Health(usize, u8),
    SecondHealth(usize, u8),
    /// Where a node tells of its proxy.
    OwnHealth(usize),
    LoadBalancer(u8),
    /// That of a load balancer which is to be asked itself.
    AwayLoadBalancer,
    External(u8),
    Unallocated,
    Pod(&'static str),
    Outside,
}

/// Dropped in the order of its fields.
pub(super) struct Contender {
    pub(super) proxy: Proxy,
    _witnesses: Vec<Witness>,
    /// With the numbers of their nodes.
    pods: BTreeMap<&'static str, (usize, Pod)>,
    proxies: Vec<KubeProxy>,
    lab: Lab,
    control: ControlPlane,
    roles: HashMap<IpAddr, String>,
    settled: u8,
    ports: AtomicU16,
}

/// How long nothing must come for silence. Who is slower is taken for silent: the test may then pass too easily, but
/// does not fail for it.
pub(super) fn soon() -> Duration {
    patience(Duration::from_secs(2))
}

pub(super) fn long() -> Duration {
    patience(Duration::from_secs(30))
}

impl Contender {
    pub(super) fn start(proxy: Proxy, services: &[Definition]) -> Self {
        let mut plan = Plan::new(Routing::Direct, Families::Dual);
        if proxy == Proxy::Millrace {
            plan.config = json!({ "services": { "proxy": "millrace", "externalIPs": true } });
        }
        let (control, lab) = Lab::start_with_control_plane(plan).unwrap();
        for node in &lab.nodes {
            // Whoever is refused by several is to hear each.
            node.namespace.set("net/ipv4/icmp_ratelimit", "0").unwrap();
            node.namespace.set("net/ipv6/icmp/ratelimit", "0").unwrap();
        }
        let places = [(0, "client"), (0, "a"), (0, "c"), (1, "other"), (1, "b")];
        let pods = places.map(|(node, name)| (name, (node, lab.nodes[node].add_pod(name).unwrap())));
        let mut contender = Self {
            proxy,
            _witnesses: Vec::new(),
            pods: pods.into(),
            proxies: Vec::new(),
            lab,
            control,
            roles: HashMap::new(),
            settled: 200,
            ports: AtomicU16::new(20_000),
        };
        // The second node has none.
        contender.move_to(choice::HERE);
        contender.start_proxies();
        contender.name_everybody();
        contender.lay_ways();
        contender.start_witnesses();
        contender.publish(services);
        contender.settle();
        contender
    }

    fn start_proxies(&mut self) {
        if self.proxy == Proxy::Kube {
            let start = |node: &cni_tests::lab::Node| {
                let (lab, name) = (&self.lab, node.name());
                KubeProxy::start(lab, &self.control, &node.namespace, &name, Mode::Nftables, PODS).unwrap()
            };
            self.proxies = self.lab.nodes.iter().map(start).collect();
        }
    }

    /// As a crash and what follows it.
    pub(super) fn restart_proxies(&mut self) {
        self.proxies.clear();
        if self.proxy == Proxy::Millrace {
            let nodes = &self.lab.nodes;
            nodes
                .iter()
                .for_each(|node| node.end_agent(Signal::SIGKILL).unwrap());
            nodes.iter().for_each(|node| node.start_agent().unwrap());
            nodes.iter().for_each(|node| node.wait_until_ready().unwrap());
        }
        self.start_proxies();
        self.settle();
    }

    fn name_everybody(&mut self) {
        let mut roles = HashMap::new();
        for node in &self.lab.nodes {
            for link in node.namespace.list("address show").unwrap() {
                let addresses = link["addr_info"].as_array().unwrap().iter();
                let addresses = addresses.map(|info| info["local"].as_str().unwrap().parse().unwrap());
                roles.extend(addresses.map(|ip: IpAddr| (ip, node.name())));
            }
        }
        for (name, (_, pod)) in &self.pods {
            roles.extend(pod.addresses.iter().map(|ip| (*ip, (*name).to_owned())));
        }
        roles.extend([true, false].map(|v4| (self.lab.outside_address(v4), "outside".to_owned())));
        self.roles = roles;
    }

    /// The fabric leads the addresses of Services to the first node, and answers at those that nobody may capture:
    /// whatever leaves a node is seen there.
    fn lay_ways(&self) {
        for v4 in [true, false] {
            let node = self.lab.nodes[0].address(v4);
            let first = [To::Cluster(0), To::LoadBalancer(0), To::External(0)];
            for to in first {
                let net = self.address(to, v4).ip();
                let length = if v4 { 24 } else { 112 };
                self.lab
                    .fabric
                    .ip(&format!("route add {net}/{length} via {node}"))
                    .unwrap();
            }
            for to in nobodys() {
                let (ip, rest) = (self.address(to, v4).ip(), if v4 { "/32" } else { "/128 nodad" });
                self.lab
                    .fabric
                    .ip(&format!("address add {ip}{rest} dev lo"))
                    .unwrap();
            }
        }
    }

    fn start_witnesses(&mut self) {
        let lab = &self.lab;
        for v4 in [true, false] {
            let mut places: Vec<(&Namespace, &'static str, SocketAddr)> = Vec::new();
            for name in ["a", "b", "c"] {
                let (_, pod) = &self.pods[name];
                for port in [TARGET, OWN_TARGET, LIKE_A_NODE_PORT] {
                    places.push((&pod.namespace, name, SocketAddr::new(pod.ip(v4), port)));
                }
            }
            places.push((&lab.outside, "outside", self.address(To::Outside, v4)));
            for to in nobodys() {
                places.push((&lab.fabric, "fabric", self.address(to, v4)));
            }
            let start = |(inside, name, at)| Witness::start(inside, name, at).unwrap();
            self._witnesses.extend(places.into_iter().map(start));
        }
    }

    fn publish(&self, services: &[Definition]) {
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "lab" } });
        self.control.apply(&[namespace]).unwrap();
        let objects = services.iter().flat_map(|service| self.items(service));
        let objects = objects.map(|body| Object {
            collection: match body["kind"].as_str() {
                Some("Service") => "/api/v1/namespaces/lab/services",
                _ => "/apis/discovery.k8s.io/v1/namespaces/lab/endpointslices",
            },
            body,
        });
        let kubeconfig = self.control.folder().join("admin.kubeconfig");
        let loader = Loader::new(&self.lab.fabric, &kubeconfig).unwrap();
        loader.create("objects", objects.collect()).unwrap();
    }

    /// The first node's zone.
    pub(super) fn move_to(&self, zone: &str) {
        let label = format!("topology.kubernetes.io/zone={zone}");
        self.control
            .kubectl(&["label", "node", "node0", "--overwrite", &label])
            .unwrap();
    }

    /// Changes Services, and deletes objects (`KIND/NAME`).
    pub(super) fn change(&mut self, services: &[Definition], gone: &[String]) {
        let objects = services.iter().flat_map(|service| self.items(service));
        self.control.apply(&Vec::from_iter(objects)).unwrap();
        let delete = ["delete", "--namespace", "lab", "--wait=false"];
        let delete = delete.into_iter().chain(gone.iter().map(String::as_str));
        self.control.kubectl(&Vec::from_iter(delete)).unwrap();
        self.settle();
    }

    /// Waits until both nodes serve a Service that is made now: then they have everything before it.
    fn settle(&mut self) {
        self.settled += 1;
        let number = self.settled;
        let probe = Definition::new(number, &["a"]);
        self.control.apply(&self.items(&probe)).unwrap();
        for (who, v4) in ["client", "other"]
            .into_iter()
            .flat_map(|pod| [(pod, true), (pod, false)])
        {
            let to = self.address(To::Cluster(number), v4);
            eventually(|| {
                let soon = Duration::from_secs(1);
                let said = self.as_one(Who::Packets(who), |inside| {
                    Talk::begin(inside, Means::Tcp, self.port(), to, soon)?.ask(soon)
                });
                let said = self.told(said);
                (!said.starts_with("a sees")).then(|| format!("{:?}: {who} asks {to}: {said}", self.proxy))
            });
        }
        self.proxies.iter().for_each(|proxy| proxy.check().unwrap());
    }

    fn items(&self, definition: &Definition) -> Vec<Value> {
        let service = ServiceManifest::new(definition.number)
            .spec(definition.spec.clone())
            .status(definition.status.clone());
        let service = definition
            .endpoints
            .iter()
            .fold(service, |service, (name, conditions)| {
                let (node, pod) = &self.pods[name];
                service.endpoint_at(
                    pod,
                    definition.target,
                    &self.lab.nodes[*node].name(),
                    conditions.clone(),
                )
            });
        let mut items = service.objects()["items"].as_array().unwrap().clone();
        definition.make_edits(&mut items);
        items
    }

    /// One that no client had before: two Services that lead one port to one endpoint are cases of their own.
    pub(super) fn port(&self) -> u16 {
        self.ports.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn address(&self, to: To, v4: bool) -> SocketAddr {
        let (ip, port) = match to {
            To::Cluster(number) => (cluster_ip(number, v4), 80),
            To::UndefinedPort(number) => (cluster_ip(number, v4), 81),
            To::NodePort(node, number) => (self.lab.nodes[node].address(v4), node_port(number)),
            To::SecondAddress(node, number) => (self.lab.nodes[node].second_address(v4), node_port(number)),
            To::Health(node, number) => (self.lab.nodes[node].address(v4), health_port(number)),
            To::SecondHealth(node, number) => (self.lab.nodes[node].second_address(v4), health_port(number)),
            To::OwnHealth(node) => (self.lab.nodes[node].address(v4), 10_256),
            To::Loopback(number) => (loopback(v4), node_port(number)),
            To::LoadBalancer(number) => (numbered(LOAD_BALANCERS, number, v4), 80),
            To::AwayLoadBalancer => (numbered(LOAD_BALANCERS, AWAY, v4), 80),
            To::External(number) => (numbered(EXTERNAL, number, v4), 80),
            To::Unallocated => (cluster_ip(UNALLOCATED, v4), 80),
            To::Pod(name) => (self.pods[name].1.ip(v4), LIKE_A_NODE_PORT),
            To::Outside => (self.lab.outside_address(v4), LIKE_A_NODE_PORT),
        };
        SocketAddr::new(ip, port)
    }

    /// Its object says that the machine will be taken away, as an autoscaler has it say.
    pub(super) fn node_leaves(&self, node: usize) {
        let name = self.lab.nodes[node].name();
        let taint = "ToBeDeletedByClusterAutoscaler=soon:NoSchedule";
        self.control.kubectl(&["taint", "nodes", &name, taint]).unwrap();
    }

    /// Does something with the sockets of one who asks.
    pub(super) fn as_one<T: Send>(&self, who: Who, work: impl FnOnce(&Namespace) -> T + Send) -> T {
        match who {
            Who::Pod(name) => {
                let (node, pod) = &self.pods[name];
                self.lab.nodes[*node].with_sockets(|| work(&pod.namespace))
            }
            Who::Packets(name) => work(&self.pods[name].1.namespace),
            Who::Process(number) => {
                let node = &self.lab.nodes[number];
                node.with_sockets(|| work(&node.namespace))
            }
            Who::Outside => work(&self.lab.outside),
        }
    }

    /// What was heard, with names instead of addresses.
    pub(super) fn told(&self, said: io::Result<String>) -> String {
        let said = said.unwrap_or_else(|error| failure(&error));
        let named = said.rsplit_once(' ').and_then(|(words, last)| {
            let role = self.roles.get(&last.parse::<IpAddr>().ok()?)?;
            Some(format!("{words} {role}"))
        });
        named.unwrap_or(said)
    }

    /// How the case goes, in both families and by both protocols.
    pub(super) fn observe(&self, case: &Case, silence: bool) -> String {
        let patience = if silence { soon() } else { long() };
        let ask = |inside: &Namespace, means, v4| {
            let ask_one = |to| Talk::begin(inside, means, self.port(), to, patience)?.ask(patience);
            let tell = |to| self.told(ask_one(self.address(to, v4)));
            match case.how {
                How::Within => return affinity::within(case.to, tell),
                How::After => return affinity::after(case.to, tell),
                _ => {}
            }
            let all = case
                .to
                .iter()
                .flat_map(|to| iter::repeat_n(self.address(*to, v4), case.times()));
            let said: Vec<_> = if case.how == How::Together {
                let port = self.port();
                let begin = |to| Talk::begin(inside, means, port, to, patience);
                let talks = Vec::from_iter(all.map(begin));
                let mut held = Vec::new();
                let ask = |talk: io::Result<Talk>| {
                    let mut talk = talk?;
                    let said = talk.ask(patience);
                    held.push(talk);
                    said
                };
                talks.into_iter().map(ask).collect()
            } else {
                all.map(ask_one).collect()
            };
            case.summary(said.into_iter().map(|said| self.told(said)).collect())
        };
        // Threads inherit the cgroup, which takes long to enter.
        let said = self.as_one(case.from, |inside| {
            thread::scope(|scope| {
                let begin = |(means, v4)| {
                    let thread = scope.spawn(move || ask(inside, means, v4));
                    (thread, format!("{means:?}{}", if v4 { 4 } else { 6 }))
                };
                let threads = KINDS.map(begin);
                threads.map(|(thread, kind)| (kind, thread.join().unwrap()))
            })
        });
        together(said)
    }
}

/// What the fabric answers at, if nobody captures it.
fn nobodys() -> impl Iterator<Item = To> {
    let external = intake::NOBODYS.into_iter().map(To::External);
    [To::Unallocated, To::AwayLoadBalancer]
        .into_iter()
        .chain(external)
}

const KINDS: [(Means, bool); 4] = [
    (Means::Tcp, true),
    (Means::Udp, true),
    (Means::Tcp, false),
    (Means::Udp, false),
];

/// What was seen in several ways, in one phrase if it was the same.
pub(super) fn together(seen: impl IntoIterator<Item = (String, String)>) -> String {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (kind, said) in seen {
        found.entry(said).or_default().push(kind);
    }
    match found.len() {
        1 => found.into_keys().collect(),
        _ => {
            let parts = found
                .iter()
                .map(|(said, kinds)| format!("{}: {said}", kinds.join(" ")));
            Vec::from_iter(parts).join("; ")
        }
    }
}
