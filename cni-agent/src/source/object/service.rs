use std::{collections::BTreeMap, net::IpAddr};

use ipnetwork::IpNetwork;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::{FieldError, Known, address, described, name_of, nullable, padded_range, resource};
use crate::{
    compile::service::maglev,
    config::{Algorithm, Mode},
    model::{NamespacedName, Object, ObjectKey, Protocol, Service, ServicePort, TrafficPolicy, Unserved},
};

const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// What the label may say so that a Service is this agent's.
const PROXY_NAME: &str = "millrace";

/// How an endpoint is chosen for a connection from outside: `random` or `maglev`.
pub(super) const ALGORITHM_ANNOTATION: &str = "millrace.dev/lb-algorithm";
/// By whom a client from outside is answered: `snat` or `dsr`.
pub(super) const MODE_ANNOTATION: &str = "millrace.dev/lb-mode";
/// How many places the Service's Maglev tables have; 0: by the number of endpoints.
pub(super) const TABLE_ANNOTATION: &str = "millrace.dev/maglev-table-size";

/// Where the object says nothing: three hours.
const AFFINITY_SECONDS: u32 = 10_800;
/// A day, the most that Kubernetes admits.
const LONGEST_AFFINITY: u32 = 86_400;

#[derive(Clone, Debug, Deserialize)]
pub(in crate::source) struct ServiceObject {
    #[serde(deserialize_with = "described")]
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "nullable")]
    spec: Spec,
    #[serde(default, deserialize_with = "nullable")]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default, deserialize_with = "nullable")]
    r#type: String,
    #[serde(default, rename = "clusterIP", deserialize_with = "nullable")]
    cluster_ip: String,
    #[serde(default, rename = "clusterIPs", deserialize_with = "nullable")]
    cluster_ips: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    ip_families: Vec<String>,
    #[serde(default, rename = "externalIPs", deserialize_with = "nullable")]
    external_ips: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    load_balancer_source_ranges: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    ports: Vec<Port>,
    #[serde(default, deserialize_with = "nullable")]
    external_traffic_policy: String,
    #[serde(default, deserialize_with = "nullable")]
    internal_traffic_policy: String,
    #[serde(default, deserialize_with = "nullable")]
    session_affinity: String,
    #[serde(default, deserialize_with = "nullable")]
    session_affinity_config: AffinityConfig,
    #[serde(default, deserialize_with = "nullable")]
    health_check_node_port: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    #[serde(default, deserialize_with = "nullable")]
    name: String,
    #[serde(default, deserialize_with = "nullable")]
    protocol: String,
    port: u16,
    #[serde(default, deserialize_with = "nullable")]
    node_port: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AffinityConfig {
    #[serde(default, rename = "clientIP", deserialize_with = "nullable")]
    client_ip: ClientIp,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientIp {
    timeout_seconds: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default, deserialize_with = "nullable")]
    load_balancer: LoadBalancer,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct LoadBalancer {
    #[serde(default, deserialize_with = "nullable")]
    ingress: Vec<Ingress>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ingress {
    #[serde(default, deserialize_with = "nullable")]
    ip: String,
    #[serde(default, deserialize_with = "nullable")]
    ip_mode: String,
}

resource!(
    ServiceObject,
    NamespaceResourceScope,
    "",
    "v1",
    "Service",
    "services"
);

impl Known for ServiceObject {
    fn key(meta: &ObjectMeta) -> ObjectKey {
        ObjectKey::Service(name_of(meta))
    }

    fn into_object(self) -> Result<Object, FieldError> {
        let name = name_of(&self.metadata).into();
        let created = self.metadata.creation_timestamp.as_ref();
        let created = created.map_or(0, |time| time.0.as_second());
        let labels = self.metadata.labels.unwrap_or_default();
        let annotations = self.metadata.annotations.unwrap_or_default();
        let unserved = unserved(&self.spec, &labels);
        let service = if unserved.is_some() {
            Service {
                name,
                unserved,
                ..Service::default()
            }
        } else {
            let mut misread = Vec::new();
            let algorithms = [("random", Algorithm::Random), ("maglev", Algorithm::Maglev)];
            let modes = [("snat", Mode::Snat), ("dsr", Mode::Dsr)];
            Service {
                algorithm: word(
                    &name,
                    &annotations,
                    ALGORITHM_ANNOTATION,
                    algorithms,
                    &mut misread,
                ),
                maglev_size: maglev_size(&name, &annotations, &mut misread),
                mode: word(&name, &annotations, MODE_ANNOTATION, modes, &mut misread),
                load_balancer_ips: ingress(&name, &self.status.load_balancer.ingress, &mut misread)?.into(),
                misread: misread.into(),
                name,
                created,
                uid: self.metadata.uid.unwrap_or_default().into(),
                ..self.spec.read()?
            }
        };
        Ok(Object::Service(Box::new(service)))
    }
}

fn unserved(spec: &Spec, labels: &BTreeMap<String, String>) -> Option<Unserved> {
    if spec.r#type == "ExternalName" {
        return Some(Unserved::ExternalName);
    }
    if spec.cluster_ip.is_empty() || spec.cluster_ip == "None" {
        return Some(Unserved::Headless);
    }
    unserved_by_label(labels)
}

/// Labels that keep proxies away.
fn unserved_by_label(labels: &BTreeMap<String, String>) -> Option<Unserved> {
    if is_headless(labels) {
        return Some(Unserved::HeadlessLabel);
    }
    let other = labels.get(PROXY_LABEL).filter(|proxy| *proxy != PROXY_NAME);
    other.map(|proxy| Unserved::OtherProxy(proxy.clone()))
}

/// Of a Service and of its slices.
pub(super) fn is_headless(labels: &BTreeMap<String, String>) -> bool {
    labels.contains_key(HEADLESS_LABEL)
}

/// A Service is served whatever its annotations say.
fn misread(name: &NamespacedName, annotation: &str, text: &str, advice: &str) -> String {
    format!("Service {name}: the annotation {annotation} is `{text}`; {advice}")
}

/// Which of two words the annotation is.
fn word<T: Copy>(
    name: &NamespacedName,
    annotations: &BTreeMap<String, String>,
    annotation: &str,
    words: [(&str, T); 2],
    problems: &mut Vec<String>,
) -> Option<T> {
    let text = annotations.get(annotation)?.trim();
    let found = words.iter().find(|(word, _)| *word == text);
    if found.is_none() {
        let [(one, _), (other, _)] = words;
        problems.push(misread(name, annotation, text, &format!("use {one} or {other}")));
    }
    found.map(|(_, meaning)| *meaning)
}

fn maglev_size(
    name: &NamespacedName,
    annotations: &BTreeMap<String, String>,
    problems: &mut Vec<String>,
) -> Option<u32> {
    let text = annotations.get(TABLE_ANNOTATION)?.trim();
    let size = text
        .parse()
        .ok()
        .filter(|size| *size == 0 || maglev::is_size(*size));
    if size.is_none() {
        problems.push(misread(name, TABLE_ANNOTATION, text, &maglev::advice()));
    }
    size
}

impl Spec {
    fn read(self) -> Result<Service, FieldError> {
        let mut cluster_ips = addresses("spec.clusterIPs", &self.cluster_ips)?;
        let first = address("spec.clusterIP", &self.cluster_ip)?;
        if !cluster_ips.contains(&first) {
            cluster_ips.insert(0, first);
        }
        families(&self.ip_families, &cluster_ips)?;
        let ports = self.ports.into_iter().enumerate();
        let balanced = self.r#type == "LoadBalancer";
        let affinity = || {
            let asked = self.session_affinity_config.client_ip.timeout_seconds;
            asked.unwrap_or(AFFINITY_SECONDS).clamp(1, LONGEST_AFFINITY)
        };
        Ok(Service {
            cluster_ips: cluster_ips.into(),
            external_ips: addresses("spec.externalIPs", &self.external_ips)?.into(),
            source_ranges: ranges(&self.load_balancer_source_ranges)?.into(),
            ports: ports.map(|(i, port)| port.read(i)).collect::<Result<_, _>>()?,
            external_policy: policy("spec.externalTrafficPolicy", &self.external_traffic_policy)?,
            internal_policy: policy("spec.internalTrafficPolicy", &self.internal_traffic_policy)?,
            affinity_seconds: by_client(&self.session_affinity)?.then(affinity),
            health_check_node_port: (balanced && self.health_check_node_port != 0)
                .then_some(self.health_check_node_port),
            ..Service::default()
        })
    }
}

impl Port {
    fn read(self, i: usize) -> Result<ServicePort, FieldError> {
        let field = |field: &str, reason: String| FieldError::new(format!("spec.ports[{i}].{field}"), reason);
        let protocol = Protocol::from_name(&self.protocol)
            .ok_or_else(|| field("protocol", format!("`{}` is not TCP, UDP or SCTP", self.protocol)))?;
        if self.port == 0 {
            return Err(field("port", "0 is no port".to_owned()));
        }
        Ok(ServicePort {
            name: self.name.into(),
            protocol,
            port: self.port,
            node_port: (self.node_port != 0).then_some(self.node_port),
        })
    }
}

fn policy(field: &str, text: &str) -> Result<TrafficPolicy, FieldError> {
    match text {
        "" | "Cluster" => Ok(TrafficPolicy::Cluster),
        "Local" => Ok(TrafficPolicy::Local),
        other => Err(FieldError::new(
            field,
            format!("`{other}` is not Cluster or Local"),
        )),
    }
}

/// Whether clients stay with their endpoints.
fn by_client(affinity: &str) -> Result<bool, FieldError> {
    match affinity {
        "" | "None" => Ok(false),
        "ClientIP" => Ok(true),
        other => Err(FieldError::new(
            "spec.sessionAffinity",
            format!("`{other}` is not None or ClientIP"),
        )),
    }
}

/// Each is the family of the ClusterIP in its place.
fn families(texts: &[String], cluster_ips: &[IpAddr]) -> Result<(), FieldError> {
    for (i, (text, ip)) in texts.iter().zip(cluster_ips).enumerate() {
        if text != if ip.is_ipv4() { "IPv4" } else { "IPv6" } {
            let reason = format!("`{text}` is not the family of {ip}");
            return Err(FieldError::new(format!("spec.ipFamilies[{i}]"), reason));
        }
    }
    Ok(())
}

fn addresses(field: &str, texts: &[String]) -> Result<Vec<IpAddr>, FieldError> {
    let texts = texts.iter().enumerate();
    texts
        .map(|(i, text)| address(&format!("{field}[{i}]"), text))
        .collect()
}

/// Spaces around one are as old as the field.
fn ranges(texts: &[String]) -> Result<Vec<IpNetwork>, FieldError> {
    let texts = texts.iter().enumerate();
    texts
        .map(|(i, text)| {
            let field = || {
                FieldError::new(
                    format!("spec.loadBalancerSourceRanges[{i}]"),
                    format!("`{text}` is not a range like 10.1.0.0/24"),
                )
            };
            let text = text.trim();
            let range: IpNetwork = text
                .parse()
                .ok()
                .or_else(|| padded_range(text))
                .ok_or_else(field)?;
            IpNetwork::new(range.network(), range.prefix()).map_err(|_| field())
        })
        .collect()
}

/// The addresses whose packets come as they were sent, and are for us. A mode that a later Kubernetes may know is no reason to serve
/// nothing of the Service.
fn ingress(
    name: &NamespacedName,
    all: &[Ingress],
    problems: &mut Vec<String>,
) -> Result<Vec<IpAddr>, FieldError> {
    let mut captured = Vec::new();
    for (i, Ingress { ip, ip_mode }) in all.iter().enumerate() {
        match &**ip_mode {
            _ if ip.is_empty() => {}
            "" | "VIP" => captured.push(address(&format!("status.loadBalancer.ingress[{i}].ip"), ip)?),
            "Proxy" => {}
            other => problems.push(format!(
                "Service {name}: status.loadBalancer.ingress[{i}].ipMode is `{other}`, so that {ip} is not served; use VIP or Proxy"
            )),
        }
    }
    Ok(captured)
}
