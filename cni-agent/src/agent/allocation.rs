//! An endpoint with its addresses, before it has a device.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use cni_plugin::{
    Attachment, CniError, GATEWAY_V4, GATEWAY_V6, Mac, code,
    rpc::{Allocate, Allocated, Response, Shaping},
};
use ipnetwork::IpNetwork;

use super::Agent;
use crate::{
    compile,
    kernel::Kernel,
    model::{Endpoint, Phase, PodName, Rates},
};

impl<K: Kernel> Agent<K> {
    /// Reserves, in memory: what is only reserved need not outlive the agent.
    pub(super) fn allocate(&mut self, request: &Allocate) -> Result<Response, CniError> {
        if !self.is_ready() {
            return Err(CniError {
                code: code::TRY_AGAIN_LATER,
                ..self.not_ready()
            });
        }
        self.refuse_host_network(request)?;
        let id = self.state.free_id(self.last_id).ok_or_else(|| {
            CniError::new(
                code::TRY_AGAIN_LATER,
                "this node has as many endpoints as the kernel's map holds",
            )
            .with_details("remove pods from this node, or lower the kubelet's maxPods")
        })?;
        self.ledger.claim_number(id).map_err(|error| {
            CniError::new(code::IO, "the endpoint's number could not be set aside on disk")
                .with_details(error)
        })?;
        let addresses = self.addresses(id, request)?;
        self.last_id = id;
        let config = Arc::clone(&self.config);
        let topology = compile::Topology::new(&config, &self.state);
        let endpoint = Endpoint {
            id,
            network: request.network.clone(),
            attachment: request.attachment(),
            pod: request.pod.as_ref().map(pod_name),
            pod_uid: request
                .pod
                .as_ref()
                .map(|pod| pod.uid.clone())
                .unwrap_or_default(),
            confirmed: false,
            addresses,
            delegated: !request.delegated_ips.is_empty(),
            mac: request
                .requested_mac
                .unwrap_or_else(|| mac(&request.attachment(), "pod")),
            host_mac: mac(&request.attachment(), "host"),
            mtu: request.mtu.unwrap_or(topology.mtu),
            via_stack: request.via_stack,
            rates: Rates {
                egress: rate(request.bandwidth.egress),
                ingress: rate(request.bandwidth.ingress),
                egress_burst: burst(request.bandwidth.egress),
                ingress_burst: burst(request.bandwidth.ingress),
            },
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .ok()
                .and_then(|age| u32::try_from(age.as_secs()).ok())
                .unwrap_or_default(),
            phase: Phase::Reserved,
        };
        let allocated = allocated(&endpoint);
        self.state.endpoints.insert(id, endpoint);
        Ok(Response::Allocated(Box::new(allocated)))
    }

    /// Such a pod has the node's addresses; what policy says of one must not be said of the other.
    fn refuse_host_network(&self, request: &Allocate) -> Result<(), CniError> {
        let pod = request.pod.as_ref().map(pod_name);
        match pod.and_then(|name| self.state.pods.get(&name)) {
            Some(pod)
                if pod.host_network && pod.uid == request.pod.as_ref().map_or("", |asked| &asked.uid) =>
            {
                let text = format!(
                    "pod {} is on its host's network and cannot have one of its own",
                    pod.name
                );
                Err(CniError::new(code::INVALID_CONFIG, text).with_details("see spec.hostNetwork of the pod"))
            }
            _ => Ok(()),
        }
    }

    fn addresses(&mut self, id: u32, request: &Allocate) -> Result<Vec<IpAddr>, CniError> {
        let no_address = |error: crate::ipam::IpamError| CniError::new(code::NO_ADDRESS, error.to_string());
        if request.delegated_ips.is_empty() {
            let wanted = self.wanted(request);
            return self
                .pool
                .allocate(id, &wanted, Instant::now())
                .map_err(no_address);
        }
        let delegated: Vec<IpAddr> = request.delegated_ips.iter().map(IpNetwork::ip).collect();
        for (i, ip) in delegated.iter().enumerate() {
            if let Err(error) = self.pool.claim(*ip, id) {
                self.pool.abandon(id, &delegated[..i]);
                return Err(no_address(error));
            }
        }
        Ok(delegated)
    }

    /// The addresses that somebody who may do so asked for: the runtime, or an annotation where the configuration
    /// honours it.
    fn wanted(&self, request: &Allocate) -> Vec<IpAddr> {
        if !request.requested_ips.is_empty() || !self.config.ipam.static_addresses {
            return request.requested_ips.iter().map(IpNetwork::ip).collect();
        }
        let pod = request
            .pod
            .as_ref()
            .and_then(|pod| self.state.pods.get(&pod_name(pod)));
        pod.map(|pod| pod.requested_addresses.to_vec())
            .unwrap_or_default()
    }
}

fn pod_name(pod: &cni_plugin::rpc::Pod) -> PodName {
    PodName {
        namespace: pod.namespace.as_str().into(),
        name: pod.name.clone(),
    }
}

/// From CNI's bits to the bytes that the programs count.
fn rate(shaping: Option<Shaping>) -> u64 {
    shaping.map_or(0, |shaping| shaping.rate / 8)
}

/// The most that the stack hands over in one piece (64 KiB) must fit, or nothing large would ever pass.
const LEAST_BURST: u64 = 128 << 10;

/// Bytes that may pass at once; without a wish an eighth of a second's worth.
fn burst(shaping: Option<Shaping>) -> u32 {
    let bytes = shaping.map_or(0, |shaping| match shaping.burst {
        0 => shaping.rate / 64,
        bits => bits / 8,
    });
    u32::try_from(bytes.max(LEAST_BURST)).unwrap_or(u32::MAX)
}

/// A locally administered address that follows from the attachment.
fn mac(attachment: &Attachment, side: &str) -> Mac {
    let mut hasher = DefaultHasher::new();
    (attachment, side).hash(&mut hasher);
    let [a, b, c, d, e, ..] = hasher.finish().to_be_bytes();
    Mac([0x02, a, b, c, d, e])
}

fn allocated(endpoint: &Endpoint) -> Allocated {
    let has = |v4: bool| endpoint.addresses.iter().any(|ip| ip.is_ipv4() == v4);
    let mut gateways: Vec<IpAddr> = Vec::new();
    let mut everything: Vec<IpAddr> = Vec::new();
    if has(true) {
        gateways.push(GATEWAY_V4.into());
        everything.push([0u8; 4].into());
    }
    if has(false) {
        gateways.push(GATEWAY_V6.into());
        everything.push([0u8; 16].into());
    }
    Allocated {
        endpoint_id: endpoint.id,
        host_ifname: endpoint.host_ifname(),
        mac: endpoint.mac,
        host_mac: endpoint.host_mac,
        addresses: endpoint.addresses.iter().map(|ip| IpNetwork::from(*ip)).collect(),
        gateways,
        mtu: endpoint.mtu,
        routes: everything
            .into_iter()
            .filter_map(|ip| IpNetwork::new(ip, 0).ok())
            .map(Into::into)
            .collect(),
    }
}
