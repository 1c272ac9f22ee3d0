//! Pods of one contender, and the Service that leads to them.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    Crowd, KubeProxy,
    objects::{Endpoint, SLICES, TARGET, named_service, slice},
};
use crate::netns::Namespace;

/// Where connections are made through one proxy.
#[derive(Debug)]
pub struct Place {
    pub name: &'static str,
    pub client: Namespace,
    pub servers: Vec<Server>,
    service: String,
    address: IpAddr,
    /// They end with it.
    _pods: Vec<Keeper>,
}

#[derive(Debug)]
pub struct Server {
    pub inside: Namespace,
    pub ip: IpAddr,
}

#[derive(Debug)]
#[expect(dead_code, reason = "held for their ends, which clean up")]
enum Keeper {
    Pod(crate::lab::Pod),
    Namespace(Namespace),
}

impl Place {
    /// Pods of the crowd's node, behind a ClusterIP with this number.
    pub fn ours(crowd: &Crowd, servers: usize, number: u8) -> Result<Self> {
        let mut pods = Vec::new();
        for pod in 0..=servers {
            pods.push(crowd.node()?.add_pod(&format!("pod{pod}"))?);
        }
        let all = pods
            .iter()
            .map(|pod| Ok((pod.namespace.duplicate()?, pod.ip(true))));
        let all = all.collect::<Result<Vec<_>>>()?;
        let pods = pods.into_iter().map(Keeper::Pod).collect();
        Self::new(super::MILLRACE, all, pods, number)
    }

    /// Pods of the crowd's node and of each peer's host in this order, each behind a ClusterIP that leads to its first server.
    pub fn of_all(crowd: &Crowd, peers: &[KubeProxy], servers: usize) -> Result<Vec<Self>> {
        let mut places = vec![Self::ours(crowd, servers, 0)?];
        for (number, peer) in (1..).zip(peers) {
            places.push(Self::theirs(peer, servers, number)?);
        }
        for place in &places {
            place.publish(crowd, 0)?;
        }
        Ok(places)
    }

    /// Pods of kube-proxy's host.
    pub fn theirs(proxy: &KubeProxy, servers: usize, number: u8) -> Result<Self> {
        let mut all = Vec::new();
        let mut pods = Vec::new();
        for pod in 0..=servers {
            let name = format!("{}-pod{pod}", proxy.host.namespace.name());
            let namespace = Namespace::create(&name)?;
            let ip = proxy.host.attach(&name, &namespace)?;
            all.push((namespace.duplicate()?, ip));
            pods.push(Keeper::Namespace(namespace));
        }
        Self::new(proxy.mode.name(), all, pods, number)
    }

    fn new(name: &'static str, all: Vec<(Namespace, IpAddr)>, pods: Vec<Keeper>, number: u8) -> Result<Self> {
        let mut all = all.into_iter();
        let (client, _) = all.next().context("no pod")?;
        let servers = all.map(|(inside, ip)| Server { inside, ip }).collect();
        Ok(Self {
            name,
            client,
            servers,
            service: format!("target-{number}"),
            address: [10, 96, 0, 20 + number].into(),
            _pods: pods,
        })
    }

    /// What clients dial.
    pub fn dialled(&self) -> SocketAddr {
        SocketAddr::new(self.address, 80)
    }

    fn endpoint(&self, server: usize) -> Result<Endpoint> {
        let server = self.servers.get(server).context("no such server")?;
        Ok(Endpoint {
            address: server.ip,
            node: "worker-0".to_owned(),
            zone: "zone-0".to_owned(),
            pod: self.service.clone(),
        })
    }

    /// Creates the Service, with one of the servers behind it.
    pub fn publish(&self, crowd: &Crowd, server: usize) -> Result<()> {
        let service = named_service(&self.service, Some(self.address));
        crowd.loader()?.create("Service", vec![service])?;
        let endpoint = slice(&self.service, [self.endpoint(server)?]);
        crowd.loader()?.create("EndpointSlice", vec![endpoint])
    }

    /// Where the slice is, and what makes it lead to another server.
    pub fn change(&self, server: usize) -> Result<(String, Value)> {
        let slice = slice(&self.service, [self.endpoint(server)?]);
        let path = format!("{SLICES}/{}", slice.name());
        Ok((path, json!({ "endpoints": slice.body["endpoints"] })))
    }

    /// The port behind the Service.
    pub fn port() -> u16 {
        TARGET
    }
}
