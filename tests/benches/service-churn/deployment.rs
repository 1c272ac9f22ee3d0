//! Pods behind a Service, and their exchange as a Deployment does it.

use std::{net::IpAddr, thread, time::Duration};

use anyhow::{Context, Result};
use cni_tests::bench::cluster::{
    Change, Editor,
    objects::{Object, SERVICES, SLICES, TARGET},
};
use cni_tests::lab::{Lab, Pod};
use cni_tests::traffic::Echo;
use serde_json::{Value, json};

/// As `maxSurge: 25%` and `maxUnavailable: 0` exchange 20.
const WAVES: usize = 4;
/// How long a pod that is to end serves on (its `preStop`), which is more than any connection to it lasts.
const GRACE: Duration = Duration::from_secs(2);
/// Time that a new one takes to be ready.
const PROBE: Duration = Duration::from_millis(500);
/// Of the Service; TCP and UDP.
pub(crate) const PORT: u16 = 80;

pub(crate) struct Deployment<'a> {
    pub(crate) name: &'static str,
    pub(crate) address: IpAddr,
    pub(crate) node_port: u16,
    lab: &'a Lab,
    editor: Editor,
    replicas: Vec<Replica>,
    made: usize,
}

struct Replica {
    pod: Pod,
    node: usize,
    _servers: [Echo; 2],
}

impl<'a> Deployment<'a> {
    pub(crate) fn start(
        lab: &'a Lab,
        editor: Editor,
        name: &'static str,
        number: u8,
        replicas: usize,
    ) -> Result<Self> {
        let mut deployment = Self {
            name,
            address: [10, 96, 0, 20 + number].into(),
            node_port: 30080 + u16::from(number),
            lab,
            editor,
            replicas: Vec::new(),
            made: 0,
        };
        deployment.replicas = deployment.pods(replicas)?;
        let ports = ["TCP", "UDP"].map(|protocol| {
            json!({
                "name": protocol.to_lowercase(), "protocol": protocol, "port": PORT, "targetPort": TARGET,
                "nodePort": deployment.node_port,
            })
        });
        deployment.create(Object {
            collection: SERVICES,
            body: json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                "spec": {"type": "NodePort", "clusterIP": deployment.address, "ports": ports},
            }),
        })?;
        let ports = ["TCP", "UDP"]
            .map(|protocol| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": TARGET}));
        deployment.create(Object {
            collection: SLICES,
            body: json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": ports,
                "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
                "endpoints": deployment.endpoints(0),
            }),
        })?;
        Ok(deployment)
    }

    fn create(&self, object: Object) -> Result<()> {
        Change::create(&object)
            .iter()
            .try_for_each(|change| self.editor.make(change))
    }

    fn pods(&mut self, count: usize) -> Result<Vec<Replica>> {
        let mut pods = Vec::new();
        for _ in 0..count {
            let node = self.made % self.lab.nodes.len();
            let pod = self.lab.nodes[node].add_pod(&format!("{}{}", self.name, self.made))?;
            self.made += 1;
            let (inside, ip) = (&pod.namespace, pod.ip(true));
            let _servers = [Echo::tcp(inside, ip, TARGET)?, Echo::udp(inside, ip, TARGET)?];
            pods.push(Replica { pod, node, _servers });
        }
        Ok(pods)
    }

    /// All of them; the first `terminating` are about to end.
    fn endpoints(&self, terminating: usize) -> Value {
        let endpoints = self.replicas.iter().enumerate().map(|(number, replica)| {
            let ends = number < terminating;
            json!({
                "addresses": [replica.pod.ip(true)], "nodeName": self.lab.nodes[replica.node].name(),
                "conditions": {"ready": !ends, "serving": true, "terminating": ends},
            })
        });
        endpoints.collect()
    }

    fn publish(&self, terminating: usize) -> Result<()> {
        let path = format!("{SLICES}/{}", self.name);
        let endpoints = json!({"endpoints": self.endpoints(terminating)});
        self.editor.patch(&path, &endpoints).context("publish endpoints")
    }

    /// Exchanges all pods, and says how many there were.
    pub(crate) fn roll_over(&mut self) -> Result<usize> {
        let (all, wave) = (self.replicas.len(), self.replicas.len() / WAVES);
        for _ in 0..WAVES {
            let new = self.pods(wave)?;
            thread::sleep(PROBE);
            self.replicas.extend(new);
            self.publish(0)?;
            self.publish(wave)?;
            thread::sleep(GRACE);
            let old: Vec<Replica> = self.replicas.drain(..wave).collect();
            // The kubelet has ended them before their endpoints go.
            for replica in old {
                let Replica { pod, node, _servers } = replica;
                drop(_servers);
                self.lab.nodes[node].delete_pod(pod)?;
            }
            self.publish(0)?;
        }
        Ok(all)
    }
}
