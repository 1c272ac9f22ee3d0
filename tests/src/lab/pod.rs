//! A pod.

use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    frames::Ends,
    netns::{Namespace, parse_mac},
};

#[derive(Debug)]
pub struct Pod {
    pub name: String,
    /// The id under which the plugin knows it.
    pub container: String,
    pub namespace: Namespace,
    /// At most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The host's end of its veth.
    pub host_device: String,
    pub mac: [u8; 6],
    /// Where its frames go: the host's end.
    pub host_mac: [u8; 6],
    pub result: Value,
}

impl Pod {
    pub(super) fn from_result(
        name: &str,
        container: String,
        namespace: Namespace,
        result: Value,
    ) -> Result<Self> {
        let interfaces = result["interfaces"]
            .as_array()
            .context("a result without interfaces")?;
        let end = |inside: bool| {
            let is_it = |interface: &&Value| {
                interface["sandbox"]
                    .as_str()
                    .is_some_and(|sandbox| !sandbox.is_empty())
                    == inside
            };
            interfaces
                .iter()
                .find(is_it)
                .with_context(|| format!("a result without both ends: {result}"))
        };
        let (host, pod) = (end(false)?, end(true)?);
        let mac = |end: &Value| parse_mac(end["mac"].as_str()?);
        let ips = result["ips"].as_array().context("a result without addresses")?;
        let address = |ip: &Value| {
            let text = ip["address"].as_str()?;
            text.split('/').next()?.parse().ok()
        };
        Ok(Self {
            name: name.to_owned(),
            container,
            addresses: ips.iter().filter_map(address).collect(),
            host_device: host["name"].as_str().context("a name")?.to_owned(),
            mac: mac(pod).context("the pod's MAC")?,
            host_mac: mac(host).context("the host's MAC")?,
            namespace,
            result,
        })
    }

    /// A frame of this pod to `dst`, from one of its own addresses and port 4000 to port 4000.
    pub fn towards(&self, dst: IpAddr) -> Ends {
        Ends {
            src_mac: self.mac,
            dst_mac: self.host_mac,
            src: self.ip(dst.is_ipv4()),
            dst,
            src_port: 4000,
            dst_port: 4000,
            ttl: 64,
        }
    }

    /// The address of a family, if it has one.
    pub fn find(&self, v4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|ip| ip.is_ipv4() == v4)
    }

    /// The address of a family that it must have.
    pub fn ip(&self, v4: bool) -> IpAddr {
        self.find(v4)
            .unwrap_or_else(|| panic!("pod {} has no address of this family: {}", self.name, self.result))
    }
}
