//! `millrace dump`.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use cni_ebpf::abi::{self, Addr, LAYOUTS, Layout, MapType, Port, Prefix};
use serde_json::{Map as Object, Value, json};

use super::{Context, Outcome, print_json};
use crate::{desired::is_vacant, kernel::maps};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The map's name, as the pins have it without the version
    map: String,
}

/// What is in a key or a value.
type Shape = &'static str;

/// The types of each map's key and value.
fn shapes(map: &str) -> Option<(Shape, Shape)> {
    Some(match map {
        "addresses" => ("Addr", "u32"),
        "endpoints" => ("u32", "Endpoint"),
        "peers" => ("Addr", "Peer"),
        "routes" => ("Prefix", "Route"),
        "devices" => ("u32", "Device"),
        "conntrack" | "conntrack_new" => ("FlowKey", "Flow"),
        "nat" | "nat_new" => ("Tuple", "Alias"),
        "buckets" => ("u32", "Bucket"),
        "fragments" => ("FragmentKey", "Fragment"),
        "rule_sets" => ("u32", "RuleSet"),
        "rules" => ("RuleKey", "RuleList"),
        "rule_groups" => ("GroupKey", "GroupChunk"),
        "classes" => ("ClassKey", "ClassBits"),
        "cidrs" => ("Prefix", "u32"),
        "grants" => ("GrantKey", "Grant"),
        "services" => ("ServiceKey", "Service"),
        "service_slots" => ("u32", "Slot"),
        "service_members" => ("MemberKey", "u32"),
        "backends" => ("u32", "Backend"),
        "maglev" => ("MaglevKey", "MaglevChunk"),
        "service_ranges" => ("SourceRange", "u32"),
        "affinity" => ("AffinityKey", "Affinity"),
        "sockets" => ("SocketKey", "Dialled"),
        "service_opened" => ("u32", "u64"),
        "settings" => ("u32", "Settings"),
        "secrets" => ("u32", "Secrets"),
        "exhausted" => ("u32", "u64"),
        "counters" => ("u32", "Counter"),
        "events_lost" => ("u32", "u64"),
        "listeners" | "programs" => ("u32", "u32"),
        _ => return None,
    })
}

pub(crate) fn run(context: &Context, options: &Options) -> Outcome {
    let spec = maps::spec(&options.map)?;
    let Some((key_shape, value_shape)) = shapes(spec.name).filter(|_| spec.map_type != MapType::RingBuf)
    else {
        return Err(format!("map {} has no entries to show; use `millrace monitor`", spec.name).into());
    };
    let map = maps::open_existing(&context.pins(), spec.name)?;
    let mut entries = Vec::new();
    if spec.map_type == MapType::PerCpuArray {
        for number in 0..map.capacity() {
            let cpus = map.get_per_cpu_bytes(number)?;
            if cpus.iter().flatten().any(|byte| *byte != 0) {
                let values: Vec<Value> = cpus.iter().map(|bytes| decode(value_shape, bytes)).collect();
                entries.push((json!(number), json!(values)));
            }
        }
    } else {
        let array = spec.map_type == MapType::Array;
        for (key, value) in map.dump()? {
            if array && is_vacant(&value) {
                continue;
            }
            entries.push((decode(key_shape, &key), decode(value_shape, &value)));
        }
    }
    if context.json {
        let entries: Vec<Value> = entries
            .iter()
            .map(|(key, value)| json!({"key": key, "value": value}))
            .collect();
        print_json(&entries)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = io::stdout().lock();
    for (key, value) in &entries {
        writeln!(out, "{}  =>  {}", words(key), words(value))?;
    }
    writeln!(out, "{} entries, room for {}", entries.len(), map.capacity())?;
    Ok(ExitCode::SUCCESS)
}

/// `name value` pairs instead of braces.
fn words(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(name, value)| format!("{name} {}", words(value)))
                .collect();
            fields.join(", ")
        }
        Value::Array(items) => format!("[{}]", items.iter().map(words).collect::<Vec<_>>().join("; ")),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Bytes of a map by the name of their type; bytes of a type that is not known as hex digits.
fn decode(shape: &str, bytes: &[u8]) -> Value {
    let shape = shape.trim_start_matches("super::");
    let known = match shape {
        "u8" => bytes.first().map(|byte| json!(byte)),
        "u16" => abi::from_bytes::<u16>(bytes).map(|number| json!(number)),
        "u32" => abi::from_bytes::<u32>(bytes).map(|number| json!(number)),
        "u64" => abi::from_bytes::<u64>(bytes).map(|number| json!(number)),
        "Port" => abi::from_bytes::<Port>(bytes).map(|port| json!(port.get())),
        "Addr" => abi::from_bytes::<Addr>(bytes).map(|addr| json!(addr.to_string())),
        "Prefix" => abi::from_bytes::<Prefix>(bytes).map(|prefix| {
            let (ip, length) = prefix.parts();
            json!(format!("{ip}/{length}"))
        }),
        "[u8; 6]" => <[u8; 6]>::try_from(bytes)
            .ok()
            .map(|mac| json!(cni_plugin::Mac(mac).to_string())),
        _ => None,
    };
    if let Some(value) = known {
        return value;
    }
    if let Some(inner) = shape
        .strip_prefix("Racy<")
        .and_then(|rest| rest.strip_suffix('>'))
    {
        return decode(inner, bytes);
    }
    if let Some((inner, count)) = array(shape) {
        let items = bytes
            .chunks_exact((bytes.len() / count.max(1)).max(1))
            .map(|item| decode(inner, item));
        return Value::Array(items.collect());
    }
    match LAYOUTS
        .iter()
        .find(|layout| layout.name == shape && layout.size == bytes.len())
    {
        Some(layout) => record(layout, bytes),
        None => json!(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    }
}

fn array(shape: &str) -> Option<(&str, usize)> {
    let (inner, count) = shape.strip_prefix('[')?.strip_suffix(']')?.rsplit_once(';')?;
    Some((inner.trim(), count.trim().parse().ok()?))
}

fn record(layout: &Layout, bytes: &[u8]) -> Value {
    let mut fields = Object::new();
    for field in layout.fields {
        if matches!(field.name, "pad" | "reserved") {
            continue;
        }
        if let Some(bytes) = bytes.get(field.offset..field.offset + field.size) {
            fields.insert(field.name.to_owned(), decode(&field.type_name(), bytes));
        }
    }
    Value::Object(fields)
}

/// Maps that have entries.
#[cfg(test)]
fn names() -> impl Iterator<Item = &'static abi::MapSpec> {
    abi::MAPS.iter().filter(|spec| spec.map_type != MapType::RingBuf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni_ebpf::abi::{Flow, FlowKey, GroupChunk, Racy, as_bytes};

    /// The size of a type by its name.
    fn size(shape: &str) -> usize {
        match shape {
            "u32" => 4,
            "u64" => 8,
            _ => LAYOUTS.iter().find(|layout| layout.name == shape).unwrap().size,
        }
    }

    #[test]
    fn every_map_has_a_shape_of_its_size() {
        for spec in names() {
            let (key, value) = shapes(spec.name).unwrap_or_else(|| panic!("{}", spec.name));
            assert_eq!((size(key), size(value)), (spec.key, spec.value), "{}", spec.name);
        }
    }

    #[test]
    fn every_field_has_a_readable_type() {
        for layout in LAYOUTS {
            for field in layout.fields {
                let value = decode(&field.type_name(), &vec![0; field.size]);
                let hex = value
                    .as_str()
                    .is_some_and(|text| !text.is_empty() && text.bytes().all(|byte| byte == b'0'));
                assert!(!hex, "{}.{}: {}", layout.name, field.name, field.ty);
            }
        }
    }

    #[test]
    fn connections_are_shown_field_by_field() {
        let key = FlowKey {
            a: Addr::v4([10, 0, 0, 1]),
            a_port: Port::new(80),
            ..FlowKey::default()
        };
        let flow = Flow {
            seen: Racy::new(7),
            ..Flow::default()
        };
        let key = decode("FlowKey", as_bytes(&key));
        assert_eq!((&key["a"], &key["a_port"]), (&json!("10.0.0.1"), &json!(80)));
        assert_eq!(decode("Flow", as_bytes(&flow))["seen"], json!(7));
        assert_eq!(
            decode("GroupChunk", as_bytes(&GroupChunk::default()))["groups"]
                .as_array()
                .unwrap()
                .len(),
            4
        );
        assert!(words(&key).contains("a 10.0.0.1, "));
    }
}
