//! What an ADD asks of the agent, from configuration, runtime and `CNI_ARGS`.

use super::{Config, invalid, spelling};
use crate::{
    Attachment, CniError, Mac, code,
    environment::Arguments,
    rpc::{Allocate, Bandwidth, Shaping},
};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Runtime {
    ips: Option<Vec<String>>,
    mac: Option<String>,
    bandwidth: Option<Rates>,
    #[serde(rename = "portMappings")]
    port_mappings: Option<Vec<Value>>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
struct Rates {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Labelled {
    cni: Option<Runtime>,
}

impl Config {
    /// The request for one attachment. Here a configuration is checked to its last key.
    pub fn allocate(
        &self,
        attachment: &Attachment,
        netns: &str,
        args: &Arguments,
    ) -> Result<Allocate, CniError> {
        spelling::check(self.fields.keys())?;
        self.expedite()?;
        let runtime: Runtime = self.field("runtimeConfig")?.unwrap_or_default();
        let labelled: Runtime = self
            .field::<Labelled>("args")?
            .and_then(|args| args.cni)
            .unwrap_or_default();
        if let Some(mappings) = runtime.port_mappings.filter(|mappings| !mappings.is_empty()) {
            return Err(CniError::new(code::UNSUPPORTED_FIELD, "runtimeConfig.portMappings is not supported")
                .with_details(format!(
                    "portMappings is {}; take the capability portMappings from the millrace-cni section, chain the \
                     portmap plugin after it and set \"viaStack\": true",
                    Value::Array(mappings)
                )));
        }
        let ips = runtime.ips.or(labelled.ips);
        let ips = ips.unwrap_or_else(|| args.get("IP").map(|ip| vec![ip.to_owned()]).unwrap_or_default());
        let mac = runtime
            .mac
            .or(labelled.mac)
            .or_else(|| args.get("MAC").map(str::to_owned));
        let mtu: Option<u32> = self.field("mtu")?.filter(|mtu| *mtu != 0);
        // 1280 is the least that IPv6 works with, 65535 the most that a veth takes.
        if let Some(mtu) = mtu.filter(|mtu| !(1280..=65535).contains(mtu)) {
            return Err(invalid(
                "mtu",
                &format!("is {mtu}; it must be within 1280 to 65535"),
            ));
        }
        Ok(Allocate {
            network: self.name.clone(),
            container_id: attachment.container_id.clone(),
            ifname: attachment.ifname.clone(),
            netns: netns.to_owned(),
            cni_version: Some(self.version.to_string()),
            pod: args.pod(),
            requested_ips: addresses(&ips)?,
            requested_mac: mac
                .filter(|mac| !mac.is_empty())
                .map(|mac| assignable(&mac))
                .transpose()?,
            delegated_ips: Vec::new(),
            via_stack: self.field("viaStack")?.unwrap_or(false),
            mtu,
            bandwidth: runtime
                .bandwidth
                .or(labelled.bandwidth)
                .map(limits)
                .unwrap_or_default(),
        })
    }
}

fn addresses(texts: &[String]) -> Result<Vec<IpNetwork>, CniError> {
    let parse = |text: &String| {
        text.parse().map_err(|_| {
            invalid(
                "runtimeConfig.ips",
                &format!("has \"{text}\", which is no address"),
            )
        })
    };
    texts.iter().map(parse).collect()
}

fn assignable(text: &str) -> Result<Mac, CniError> {
    let mac: Mac = text
        .parse()
        .map_err(|error| invalid("runtimeConfig.mac", &format!("is wrong: {error}")))?;
    match mac.is_assignable() {
        true => Ok(mac),
        false => Err(invalid(
            "runtimeConfig.mac",
            &format!("is {mac}, which no interface can have"),
        )),
    }
}

fn limits(rates: Rates) -> Bandwidth {
    let limit = |rate, burst| (rate != 0).then_some(Shaping { rate, burst });
    Bandwidth {
        ingress: limit(rates.ingress_rate, rates.ingress_burst),
        egress: limit(rates.egress_rate, rates.egress_burst),
    }
}
