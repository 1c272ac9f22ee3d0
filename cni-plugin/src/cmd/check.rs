//! CHECK: is the attachment as ADD left it?
//!
//! The final result of the ADD is compared with the kernel. Only entries of our interface count: what later plugins
//! added to the result or to the pod is theirs.

use super::Call;
use crate::kernel::{inspect, message, netlink::Netlink, pod::Pod};
use cni_plugin::{
    Attachment, CniError, GATEWAY_V4, GATEWAY_V6, Mac, SpecVersion, code,
    result::{AddResult, Interface},
    rpc,
};
use ipnetwork::IpNetwork;
use netlink_packet_route::RouteNetlinkMessage;
use std::{net::IpAddr, time::Duration};

const MOST: Duration = Duration::from_secs(60);

pub(crate) fn run(call: &Call<'_>, attachment: &Attachment, netns: &str) -> Result<(), CniError> {
    call.needs(SpecVersion::V0_4_0)?;
    let expected = call.config.previous_result()?.ok_or_else(|| {
        CniError::new(code::INVALID_CONFIG, "invalid network configuration")
            .with_details("`prevResult` is missing; CHECK compares with the result of ADD")
    })?;
    let ipam = call.config.ipam()?;
    let mut agent = call.agent(MOST)?;
    let endpoint = agent.check(rpc::Check {
        network: call.config.name.clone(),
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
        netns: netns.to_owned(),
    })?;
    let mut findings = Findings::default();
    findings.compare(&expected, &endpoint, attachment, netns)?;
    findings.verdict()?;
    match call.delegate(&ipam)? {
        Some(delegate) => delegate.forward("CHECK"),
        None => Ok(()),
    }
}

/// What differs, all of it, for the reader of one error.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn expect(&mut self, holds: bool, finding: impl FnOnce() -> String) {
        if !holds {
            self.0.push(finding());
        }
    }

    fn verdict(self) -> Result<(), CniError> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(
                CniError::new(code::CHECK_FAILED, "the attachment is not as ADD left it")
                    .with_details(self.0.join("; ")),
            ),
        }
    }

    fn compare(
        &mut self,
        expected: &AddResult,
        endpoint: &rpc::Checked,
        attachment: &Attachment,
        netns: &str,
    ) -> Result<(), CniError> {
        let ifname = attachment.ifname.as_str();
        let ours = |entry: &Interface| entry.name == ifname && entry.sandbox == netns;
        let Some(index) = expected.interfaces.iter().position(ours) else {
            self.expect(false, || {
                format!("prevResult has no interface {ifname} in {netns}")
            });
            return Ok(());
        };
        let of_ours = expected.ips.iter().filter(|ip| ip.interface == Some(index));
        let mut addresses: Vec<IpAddr> = of_ours
            .filter_map(|ip| Some(ip.address.parse::<IpNetwork>().ok()?.ip()))
            .collect();
        addresses.extend(endpoint.addresses.iter().map(|address| address.ip()));
        let host_mac = self.compare_host(attachment, &addresses)?;
        let mut pod = Pod::open(netns)?;
        self.compare_pod(&mut pod, &expected.interfaces[index], &addresses, host_mac)?;
        self.compare_routes(&mut pod, expected)
    }

    fn compare_host(
        &mut self,
        attachment: &Attachment,
        addresses: &[IpAddr],
    ) -> Result<Option<Mac>, CniError> {
        let name = attachment.host_ifname();
        let mut netlink = Netlink::open()?;
        let Ok(RouteNetlinkMessage::NewLink(link)) = netlink.get(message::get_link(&name)) else {
            self.expect(false, || format!("the host's end {name} is missing"));
            return Ok(None);
        };
        self.expect(inspect::is_up(&link), || format!("the host's end {name} is down"));
        for address in addresses {
            let reached = inspect::link_towards(&mut netlink, *address) == Some(link.header.index);
            self.expect(reached, || {
                format!("the host has no route to {address} on {name}")
            });
        }
        Ok(inspect::mac(&link))
    }

    fn compare_pod(
        &mut self,
        pod: &mut Pod,
        expected: &Interface,
        addresses: &[IpAddr],
        host_mac: Option<Mac>,
    ) -> Result<(), CniError> {
        let name = expected.name.as_str();
        let Some(link) = pod.link(name)? else {
            self.expect(false, || format!("{name} is missing in the container"));
            return Ok(());
        };
        self.expect(inspect::is_up(&link), || format!("{name} is down"));
        let wanted = expected.mac.as_deref().and_then(|mac| mac.parse().ok());
        self.expect(
            wanted.is_none_or(|wanted| inspect::mac(&link) == Some(wanted)),
            || {
                format!(
                    "{name} has not the Ethernet address {}",
                    expected.mac.as_deref().unwrap_or_default()
                )
            },
        );
        let ifindex = link.header.index;
        let present = inspect::addresses(&mut pod.netlink, ifindex)?;
        for address in addresses {
            self.expect(present.contains(address), || {
                format!("{name} lacks the address {address}")
            });
        }
        let neighbours = inspect::permanent_neighbours(&mut pod.netlink, ifindex)?;
        for gateway in gateways(addresses) {
            let known = neighbours
                .iter()
                .any(|(address, mac)| *address == gateway && Some(*mac) == host_mac);
            self.expect(known, || {
                format!("{name} lacks the permanent neighbour {gateway}")
            });
        }
        Ok(())
    }

    /// By whichever interface: where two attachments of a pod want one route, the first has it.
    fn compare_routes(&mut self, pod: &mut Pod, expected: &AddResult) -> Result<(), CniError> {
        let present = inspect::routes(&mut pod.netlink)?;
        for route in &expected.routes {
            let gateway: Option<IpAddr> = route.gw.as_deref().and_then(|gateway| gateway.parse().ok());
            let Some(gateway) = gateway.filter(|gateway| is_ours(*gateway)) else {
                continue;
            };
            let Ok(dst) = route.dst.parse::<IpNetwork>() else {
                continue;
            };
            self.expect(present.contains(&(dst, Some(gateway))), || {
                format!("the container lacks the route to {dst} via {gateway}")
            });
        }
        Ok(())
    }
}

fn is_ours(gateway: IpAddr) -> bool {
    gateway == IpAddr::from(GATEWAY_V4) || gateway == IpAddr::from(GATEWAY_V6)
}

fn gateways(addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    let v4 = addresses
        .iter()
        .any(IpAddr::is_ipv4)
        .then_some(IpAddr::from(GATEWAY_V4));
    let v6 = addresses
        .iter()
        .any(IpAddr::is_ipv6)
        .then_some(IpAddr::from(GATEWAY_V6));
    v4.into_iter().chain(v6)
}
