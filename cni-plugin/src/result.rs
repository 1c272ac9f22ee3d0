//! CNI results: read from the plugin before us or from a delegated one, printed in the configuration's version.
//!
//! Keys that we do not know are carried along, for a result passes through us on its way to the next plugin.

use crate::{CniError, SpecVersion, code};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The result of an ADD in the newest version's shape; older versions have fewer fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AddResult {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub interfaces: Vec<Interface>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub ips: Vec<Ip>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub routes: Vec<Route>,
    #[serde(default)]
    pub dns: Option<Value>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The namespace as `CNI_NETNS` names it; empty for an interface of the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ip {
    pub address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// An index into all of `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Route {
    pub dst: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<String>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl AddResult {
    /// Reads a result of any served version; `whose` says where it came from.
    pub fn parse(value: Value, whose: &str) -> Result<Self, CniError> {
        serde_json::from_value(value).map_err(|error| {
            CniError::new(code::DECODE, format!("{whose} is not a CNI result")).with_details(error)
        })
    }

    /// The result as `version` has it.
    pub fn render(&self, version: SpecVersion) -> Value {
        let interfaces: Vec<Value> = self
            .interfaces
            .iter()
            .map(|entry| trimmed(entry, &["mtu", "socketPath", "pciID"], version))
            .collect();
        let ips: Vec<Value> = self.ips.iter().map(|ip| render_ip(ip, version)).collect();
        let routes: Vec<Value> = self
            .routes
            .iter()
            .map(|route| trimmed(route, &["mtu", "advmss", "priority", "table", "scope"], version))
            .collect();
        let mut result = self.other.clone();
        result.insert("cniVersion".into(), json!(version.as_str()));
        result.insert("interfaces".into(), interfaces.into());
        result.insert("ips".into(), ips.into());
        result.insert("routes".into(), routes.into());
        result.insert("dns".into(), self.dns.clone().unwrap_or_else(|| json!({})));
        Value::Object(result)
    }
}

fn render_ip(ip: &Ip, version: SpecVersion) -> Value {
    let mut value = serde_json::to_value(ip).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("version");
        if version < SpecVersion::V1_0_0 {
            let family = if ip.address.contains(':') { "6" } else { "4" };
            fields.insert("version".into(), json!(family));
        }
    }
    value
}

/// `entry` without the fields that came with 1.1.0, where `version` is older.
fn trimmed(entry: &impl Serialize, newer: &[&str], version: SpecVersion) -> Value {
    let mut value = serde_json::to_value(entry).unwrap_or_default();
    if let (true, Some(fields)) = (version < SpecVersion::V1_1_0, value.as_object_mut()) {
        fields.retain(|key, _| !newer.contains(&key.as_str()));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> AddResult {
        let value = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1450, "sandbox": "/n", "pciID": "0:1", "x": 1}],
            "ips": [{"address": "10.0.0.7/32", "gateway": "169.254.1.1", "interface": 0}, {"address": "fd00::7/128"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1400, "priority": 5}],
            "dns": {"nameservers": ["10.0.0.10"]},
            "example.org/extra": true
        });
        AddResult::parse(value, "prevResult").unwrap()
    }

    #[test]
    fn ips_carry_a_version_only_before_1_0_0() {
        for version in SpecVersion::ALL {
            let rendered = result().render(version);
            let families: Vec<_> = rendered["ips"]
                .as_array()
                .unwrap()
                .iter()
                .map(|ip| ip.get("version"))
                .collect();
            let expected = if version < SpecVersion::V1_0_0 {
                vec![Some(json!("4")), Some(json!("6"))]
            } else {
                vec![None, None]
            };
            assert_eq!(
                families,
                expected.iter().map(Option::as_ref).collect::<Vec<_>>(),
                "{version}"
            );
            assert_eq!(rendered["cniVersion"], version.as_str());
        }
    }

    #[test]
    fn what_1_1_0_added_is_left_out_before_it() {
        for version in SpecVersion::ALL {
            let rendered = result().render(version);
            let newest = version == SpecVersion::V1_1_0;
            for field in ["mtu", "pciID"] {
                assert_eq!(
                    rendered["interfaces"][0].get(field).is_some(),
                    newest,
                    "{field} {version}"
                );
            }
            for field in ["mtu", "priority"] {
                assert_eq!(
                    rendered["routes"][0].get(field).is_some(),
                    newest,
                    "{field} {version}"
                );
            }
            assert_eq!(rendered["interfaces"][0]["mac"], "02:00:00:00:00:01");
            assert_eq!(rendered["routes"][0]["gw"], "169.254.1.1");
        }
    }

    #[test]
    fn unknown_keys_pass_through() {
        let rendered = result().render(SpecVersion::V1_0_0);
        assert_eq!(rendered["example.org/extra"], true);
        assert_eq!(rendered["interfaces"][0]["x"], 1);
        assert_eq!(rendered["dns"]["nameservers"][0], "10.0.0.10");
    }

    #[test]
    fn nulls_are_empty_lists_and_nonsense_is_a_decode_error() {
        let parsed = AddResult::parse(json!({"interfaces": null, "ips": null, "routes": null}), "x").unwrap();
        assert_eq!(parsed, AddResult::default());
        assert_eq!(
            AddResult::parse(json!({"ips": 4}), "x").unwrap_err().code,
            code::DECODE
        );
        assert_eq!(AddResult::parse(json!([1]), "x").unwrap_err().code, code::DECODE);
    }
}
