//! Services and slices that are not what they seem, or not everything that they could be.

use cni_tests::lab::cluster_ip;
use serde_json::{Value, json};

use super::services::{
    Definition,
    Part::{Service, Slices},
    TARGET,
};

/// One that another proxy takes while it is served.
pub(super) const TAKEN: u8 = 172;
/// Those whose external addresses are not served, or not in each family, or not for long.
pub(super) const NOBODYS: [u8; 6] = [101, 102, 103, 104, 115, TAKEN];

const HEADLESS: &str = "service.kubernetes.io/headless";
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// Another proxy's.
pub(super) fn others(definition: Definition) -> Definition {
    definition.label(Service, PROXY_NAME, "other")
}

/// Ports of a slice: name, protocol and number.
fn ports(ports: &[(&str, &str, Option<u16>)]) -> Value {
    let port =
        |(name, protocol, port): &(_, _, _)| json!({ "name": name, "protocol": protocol, "port": port });
    ports.iter().map(port).collect()
}

pub(super) fn services() -> Vec<Definition> {
    let new = Definition::new;
    let of_a = |number| new(number, &["a"]);
    let mut headless = of_a(101).external();
    headless.with("clusterIP", json!("None"));
    headless.with("clusterIPs", json!(["None"]));
    let mut name = of_a(104).external();
    name.with("type", json!("ExternalName"));
    name.with("externalName", json!("lab.example"));
    for key in ["clusterIP", "clusterIPs", "ipFamilyPolicy"] {
        name.with(key, Value::Null);
    }
    let port = |name, protocol, target| json!({ "name": name, "protocol": protocol, "port": 80, "targetPort": target });
    let mut named = new(109, &["a", "b"])
        .edit(Slices(0), "/ports", ports(&[("t", "TCP", Some(TARGET))]))
        .edit(Slices(1), "/ports", ports(&[("u", "UDP", Some(TARGET))]));
    named.with("ports", json!([port("t", "TCP", "web"), port("u", "UDP", "dns")]));
    let wrong = ports(&[("web", "TCP", Some(TARGET)), ("", "UDP", Some(TARGET))]);
    let unnumbered = ports(&[("t", "TCP", None), ("u", "UDP", None)]);
    let crossed = ports(&[("t", "UDP", Some(TARGET)), ("u", "TCP", Some(TARGET))]);
    let nameless = ports(&[("", "TCP", Some(TARGET)), ("u", "UDP", Some(TARGET))]);
    let mut unnamed = of_a(114).edit(Slices(0), "/ports", nameless);
    unnamed.with("ports", json!([{ "protocol": "TCP", "port": 80 }]));
    let mut single = of_a(115).node_ports("Cluster").external();
    single.with("clusterIPs", json!([cluster_ip(115, true)]));
    single.with("ipFamilies", json!(["IPv4"]));
    single.with("ipFamilyPolicy", json!("SingleStack"));
    vec![
        headless,
        of_a(102).external().label(Service, HEADLESS, ""),
        others(of_a(103).node_ports("Cluster").external()),
        name,
        new(105, &["a", "b"]).label(Slices(1), HEADLESS, ""),
        new(110, &["a", "b"]).label(Slices(1), PROXY_NAME, "other"),
        new(106, &["a", "a"]),
        Definition::with_conditions(107, &[("a", json!({ "ready": false, "terminating": true }))]),
        Definition::with_conditions(108, &[("a", json!({ "ready": false, "serving": true }))]),
        named,
        of_a(111).edit(Slices(0), "/ports", wrong),
        new(112, &["a", "b"]).edit(Slices(0), "/ports", unnumbered),
        of_a(113).edit(Slices(0), "/ports", crossed),
        unnamed,
        single,
        of_a(116).load_balancer("Cluster").ranges(&["203.0.113.2/32"]),
    ]
}
