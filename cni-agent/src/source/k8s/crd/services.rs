//! What a `MillraceConfig` says of Services.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    compile::service::maglev,
    config::{Algorithm, Mode, NodePortAddresses},
    model::ServiceSettings,
    source::object::{FieldError, range},
};

/// How Services are served. Who serves them is decided when an agent starts, and so by its own configuration.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServicesSpec {
    /// Ranges of Service addresses, beside those of the cluster's ServiceCIDR objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(max = 49)))]
    #[x_kube(validation = Rule::new("self.all(range, isCIDR(range) && cidr(range) == cidr(range).masked())").message("write ranges like 10.96.0.0/16, without bits behind the prefix"))]
    cidrs: Option<Vec<String>>,
    /// Ranges whose addresses are the stack's business in any case.
    #[serde(default, rename = "viaStackCIDRs", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(max = 49)))]
    #[x_kube(validation = Rule::new("self.all(range, isCIDR(range) && cidr(range) == cidr(range).masked())").message("write ranges like 10.96.0.0/16, without bits behind the prefix"))]
    via_stack_cidrs: Option<Vec<String>>,
    /// Where NodePorts answer: the word primary alone (the addresses of the Node object), or ranges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(max = 49)))]
    #[x_kube(validation = Rule::new("self == ['primary'] || self.all(range, isCIDR(range) && cidr(range) == cidr(range).masked())").message("write [primary], or ranges like 192.0.2.0/24, without bits behind the prefix"))]
    node_port_addresses: Option<Vec<String>>,
    /// NodePorts answer on 127.0.0.1 and ::1 too, to processes of the node alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    localhost_node_ports: Option<bool>,
    /// Serve addresses that Services claim by themselves (spec.externalIPs). Whoever may write Services can then take over
    /// any address outside of the cluster.
    #[serde(default, rename = "externalIPs", skip_serializing_if = "Option::is_none")]
    external_ips: Option<bool>,
    /// Translate the source of everything that is sent to a ClusterIP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    masquerade_all: Option<bool>,
    /// How an endpoint is chosen for a connection from outside of the cluster, where the Service does not say (annotation
    /// millrace.dev/lb-algorithm): any (random), or the same on every node for the same client (maglev).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    algorithm: Option<AlgorithmSpec>,
    /// How many places a Maglev table has, a prime; 0: by the number of endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == 0 || (self >= 251 && self <= 131071)").message("use a prime from 251 to 131071, or 0"))]
    maglev_table_size: Option<i32>,
    /// By whom a client from outside of the cluster is answered whose endpoint is on another node than it asked, where the
    /// Service does not say (annotation millrace.dev/lb-mode): by the node that it asked (snat), or by the endpoint's (dsr, with
    /// routing vxlan).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<ModeSpec>,
}

#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AlgorithmSpec {
    Random,
    Maglev,
}

#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModeSpec {
    Snat,
    Dsr,
}

const PRIMARY: &str = "primary";

impl ServicesSpec {
    pub(super) fn into_model(self, at: &str) -> Result<ServiceSettings, FieldError> {
        let ranges = |texts: Option<Vec<String>>, name: &str| {
            let field = format!("{at}.{name}");
            let read = |texts: Vec<String>| texts.iter().map(|text| range(&field, text)).collect();
            texts.map(read).transpose()
        };
        let primary = |texts: &Vec<String>| texts.is_empty() || *texts == [PRIMARY];
        let node_port_addresses = match self.node_port_addresses {
            Some(texts) if primary(&texts) => Some(NodePortAddresses::Primary),
            texts => ranges(texts, "nodePortAddresses")?.map(NodePortAddresses::Ranges),
        };
        let maglev_table_size = self.maglev_table_size.map(|size| {
            let usable = u32::try_from(size)
                .ok()
                .filter(|size| *size == 0 || maglev::is_size(*size));
            usable.ok_or_else(|| {
                let reason = format!("{size} is no size of a table; {}", maglev::advice());
                FieldError::new(format!("{at}.maglevTableSize"), reason)
            })
        });
        Ok(ServiceSettings {
            cidrs: ranges(self.cidrs, "cidrs")?,
            via_stack_cidrs: ranges(self.via_stack_cidrs, "viaStackCIDRs")?,
            node_port_addresses,
            localhost_node_ports: self.localhost_node_ports,
            external_ips: self.external_ips,
            masquerade_all: self.masquerade_all,
            algorithm: self.algorithm.map(|algorithm| match algorithm {
                AlgorithmSpec::Random => Algorithm::Random,
                AlgorithmSpec::Maglev => Algorithm::Maglev,
            }),
            maglev_table_size: maglev_table_size.transpose()?,
            mode: self.mode.map(|mode| match mode {
                ModeSpec::Snat => Mode::Snat,
                ModeSpec::Dsr => Mode::Dsr,
            }),
        })
    }
}
