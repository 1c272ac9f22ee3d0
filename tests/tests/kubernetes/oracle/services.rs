//! The Services that are asked, by number: mostly that of the statement that they are for, or one of the hundreds above it.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{affinity, choice, intake};

/// What the last number stands behind, in each family.
pub(super) const LOAD_BALANCERS: [&str; 2] = ["198.51.100.", "2001:db8:51::"];
pub(super) const EXTERNAL: [&str; 2] = ["192.0.2.", "2001:db8:2::"];
/// Numbers that no Service has: of a load balancer that is to be asked itself, and of a ClusterIP.
pub(super) const AWAY: u8 = 251;
pub(super) const UNALLOCATED: u8 = 250;

pub(super) fn numbered(bases: [&str; 2], number: u8, v4: bool) -> IpAddr {
    let text = match v4 {
        true => format!("{}{number}", bases[0]),
        false => format!("{}{number:x}", bases[1]),
    };
    text.parse().unwrap()
}

pub(super) fn node_port(number: u8) -> u16 {
    30_000 + u16::from(number)
}

/// Where a node says how many endpoints it has.
pub(super) fn health_port(number: u8) -> u16 {
    31_000 + u16::from(number)
}

/// Where pods listen: behind all Services, behind one alone, and where the host outside does, at a node port's number.
pub(super) const TARGET: u16 = 8080;
pub(super) const OWN_TARGET: u16 = 8081;
pub(super) const LIKE_A_NODE_PORT: u16 = 30_021;

/// A Service and the pods behind it, each with its conditions.
#[derive(Clone, Debug)]
pub(super) struct Definition {
    pub(super) number: u8,
    pub(super) spec: Value,
    pub(super) status: Value,
    pub(super) endpoints: Vec<(&'static str, Value)>,
    pub(super) target: u16,
    edits: Vec<(Part, &'static str, Value)>,
}

/// The Service itself, or what tells of its endpoint at this place, in both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Service,
    Slices(usize),
}

impl Part {
    fn is(self, item: &Value) -> bool {
        let name = item["metadata"]["name"].as_str().unwrap();
        let is_service = item["kind"] == "Service";
        match self {
            Self::Service => is_service,
            Self::Slices(place) => !is_service && name.ends_with(&format!("-{place}")),
        }
    }
}

impl Definition {
    pub(super) fn new(number: u8, endpoints: &[&'static str]) -> Self {
        let endpoints: Vec<_> = endpoints.iter().map(|name| (*name, json!({}))).collect();
        Self::with_conditions(number, &endpoints)
    }

    pub(super) fn with_conditions(number: u8, endpoints: &[(&'static str, Value)]) -> Self {
        Self {
            number,
            spec: json!({}),
            status: json!({}),
            endpoints: endpoints.to_vec(),
            target: TARGET,
            edits: Vec::new(),
        }
    }

    /// Something else at the end of this JSON pointer.
    pub(super) fn edit(mut self, part: Part, pointer: &'static str, value: Value) -> Self {
        self.edits.push((part, pointer, value));
        self
    }

    pub(super) fn label(self, part: Part, key: &str, value: &str) -> Self {
        let name = format!("service-{}", self.number);
        let labels = json!({ "kubernetes.io/service-name": name, key: value });
        self.edit(part, "/metadata/labels", labels)
    }

    pub(super) fn make_edits(&self, items: &mut [Value]) {
        for (part, pointer, value) in &self.edits {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            for item in items.iter_mut().filter(|item| part.is(item)) {
                item.pointer_mut(parent).unwrap()[key] = value.clone();
            }
        }
    }

    /// With node ports, and this external policy.
    pub(super) fn node_ports(mut self, policy: &str) -> Self {
        let number = node_port(self.number);
        let port = |(name, protocol): (&str, &str)| json!({ "name": name, "protocol": protocol, "port": 80, "nodePort": number });
        let ports = [("t", "TCP"), ("u", "UDP")].map(port);
        self.with("type", json!("NodePort"));
        self.with("externalTrafficPolicy", json!(policy));
        self.with("ports", json!(ports));
        self
    }

    pub(super) fn load_balancer(self, policy: &str) -> Self {
        let mut this = self.node_ports(policy);
        this.with("type", json!("LoadBalancer"));
        if policy == "Local" {
            this.with("healthCheckNodePort", json!(health_port(this.number)));
        }
        let at = |ip: IpAddr| json!({ "ip": ip, "ipMode": "VIP" });
        let ingress = [true, false].map(|v4| at(numbered(LOAD_BALANCERS, this.number, v4)));
        this.status = json!({ "loadBalancer": { "ingress": ingress } });
        this
    }

    pub(super) fn external(mut self) -> Self {
        let ips = [true, false].map(|v4| numbered(EXTERNAL, self.number, v4));
        self.with("externalIPs", json!(ips));
        self
    }

    pub(super) fn ranges(mut self, ranges: &[&str]) -> Self {
        self.with("loadBalancerSourceRanges", json!(ranges));
        self
    }

    pub(super) fn local_inside(mut self) -> Self {
        self.with("internalTrafficPolicy", json!("Local"));
        self
    }

    /// A client stays with its endpoint for so many seconds.
    pub(super) fn affine(mut self, seconds: u32) -> Self {
        self.with("sessionAffinity", json!("ClientIP"));
        self.with(
            "sessionAffinityConfig",
            json!({ "clientIP": { "timeoutSeconds": seconds } }),
        );
        self
    }

    pub(super) fn with(&mut self, key: &str, value: Value) {
        self.spec[key] = value;
    }
}

/// All that cases ask, and flows before something changes.
pub(super) fn all() -> Vec<Definition> {
    let new = Definition::new;
    let mut away = new(39, &["a"]).load_balancer("Cluster");
    for v4 in [true, false] {
        let ingress = json!({ "ip": numbered(LOAD_BALANCERS, AWAY, v4), "ipMode": "Proxy" });
        away.status["loadBalancer"]["ingress"]
            .as_array_mut()
            .unwrap()
            .push(ingress);
    }
    let mut portless = new(43, &["b"]).load_balancer("Cluster");
    portless.with("allocateLoadBalancerNodePorts", json!(false));
    for port in 0..2 {
        portless.spec["ports"][port]
            .as_object_mut()
            .unwrap()
            .remove("nodePort");
    }
    let affine = new(49, &["a", "b"]).load_balancer("Cluster").affine(10_800);
    let services = vec![
        new(21, &["a"]).node_ports("Cluster"),
        new(22, &["b"]),
        new(25, &[]),
        new(26, &["b"]).local_inside(),
        new(27, &["b"]).load_balancer("Cluster").external().local_inside(),
        new(33, &["b"]).load_balancer("Cluster"),
        new(34, &["a"]).load_balancer("Local"),
        new(36, &["b"]).load_balancer("Local").external(),
        new(37, &["a", "b"]).load_balancer("Local"),
        new(38, &[]).load_balancer("Cluster").external(),
        new(45, &[]).load_balancer("Local"),
        away,
        new(40, &["a"])
            .load_balancer("Cluster")
            .ranges(&[" 203.0.113.2/32 ", "2001:db8:113::2/128\t"]),
        new(41, &["a"])
            .load_balancer("Cluster")
            .ranges(&["192.168.64.11/32", "fd77::b/128"]),
        new(42, &["a"]).external(),
        portless,
        new(44, &["a"])
            .load_balancer("Cluster")
            .ranges(&["203.0.113.77/32", "2001:db8:113::77/128"]),
        affine,
        new(50, &["a", "b"]).load_balancer("Cluster"),
    ];
    [
        services,
        affinity::services(),
        choice::services(),
        intake::services(),
    ]
    .concat()
}
