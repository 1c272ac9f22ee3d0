//! How a release reads the connections that another release wrote.
//!
//! Beside each map that must survive an upgrade stands a description of its key and value: every field with offset and
//! size. A release that has another layout, newer or older, copies fields by their names: it need not know the
//! other release. Fields that one side lacks are zero. A key that lacks a field cannot be converted, and then the layout
//! is unknown and refused.

use std::{io, path::Path};

use cni_ebpf::abi::{
    Affinity, AffinityKey, Alias, Dialled, Flow, FlowKey, Grant, GrantKey, Layout, MapSpec, SocketKey, Tuple,
};
use serde::{Deserialize, Serialize};

use super::{
    super::{KernelError, bpf, pins::remove},
    pin_error,
};

/// Room for a description in its map.
const ROOM: usize = 8192;
const BPF_MAP_TYPE_ARRAY: u32 = 2;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Field {
    name: String,
    offset: usize,
    size: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    size: usize,
    fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Description {
    key: Record,
    value: Record,
}

impl From<Layout> for Record {
    fn from(layout: Layout) -> Self {
        let field = |field: &cni_ebpf::abi::Field| Field {
            name: field.name.to_owned(),
            offset: field.offset,
            size: field.size,
        };
        Self {
            size: layout.size,
            fields: layout.fields.iter().map(field).collect(),
        }
    }
}

/// The maps that are kept, with the types in them.
fn description(map: &str) -> Option<Description> {
    let (key, value) = match map {
        "conntrack" | "conntrack_new" => (FlowKey::LAYOUT, Flow::LAYOUT),
        "nat" | "nat_new" => (Tuple::LAYOUT, Alias::LAYOUT),
        "grants" => (GrantKey::LAYOUT, Grant::LAYOUT),
        "affinity" => (AffinityKey::LAYOUT, Affinity::LAYOUT),
        "sockets" => (SocketKey::LAYOUT, Dialled::LAYOUT),
        _ => return None,
    };
    Some(Description {
        key: key.into(),
        value: value.into(),
    })
}

/// Pins the description of a map.
pub(super) fn publish(spec: &MapSpec, path: &Path) -> Result<(), KernelError> {
    let Some(description) = description(spec.name) else {
        return Err(KernelError::new(
            format!("describe map {}", spec.name),
            "its types are not known",
        ));
    };
    write(&description, path).map_err(|error| pin_error(path, &error))
}

fn write(description: &Description, path: &Path) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(description)?;
    if bytes.len() > ROOM {
        return Err(io::Error::other("the description is too long"));
    }
    bytes.resize(ROOM, b' ');
    let map = bpf::create_map("layout", BPF_MAP_TYPE_ARRAY, 4, ROOM as u32, 1, 0)?;
    bpf::update(&map, &[0; 4], &bytes, 0)?;
    remove(path)?;
    bpf::pin(&map, path)
}

fn read(path: &Path) -> io::Result<Description> {
    let map = bpf::get(path)?;
    let info = bpf::map_info(&map)?;
    if (info.map_type, info.key) != (BPF_MAP_TYPE_ARRAY, 4) {
        return Err(io::Error::other("not a description"));
    }
    let bytes = bpf::lookup(&map, &[0; 4], info.value.next_multiple_of(8) as usize)?.unwrap_or_default();
    let text = bytes.get(..info.value as usize).unwrap_or_default();
    Ok(serde_json::from_slice(text)?)
}

/// Copies of byte ranges: from, to, length.
type Moves = Vec<(usize, usize, usize)>;

/// How an entry of another layout becomes one of this release.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    from: Description,
    to: Description,
    key: Moves,
    value: Moves,
}

/// The way from the layout that is described at `path` to that of `spec`.
pub(super) fn plan(path: &Path, spec: &MapSpec) -> Result<Plan, KernelError> {
    let unknown = |cause: String| {
        KernelError::new(format!("read the layout of {}", path.display()), cause).with_remedy(format!(
            "map {} has a layout that is unknown to this release: run the release that wrote it, or `millrace \
             uninstall` first (connections on this node are cut)",
            spec.name
        ))
    };
    let from = read(path).map_err(|error| unknown(error.to_string()))?;
    let to = description(spec.name).ok_or_else(|| unknown("it is not a map that is kept".to_owned()))?;
    Plan::new(from, to).map_err(unknown)
}

impl Plan {
    fn new(from: Description, to: Description) -> Result<Self, String> {
        let (key, missing) = moves(&from.key, &to.key)?;
        if let Some(field) = missing.iter().find(|name| **name != "pad") {
            return Err(format!("its key has no field {field}"));
        }
        let (value, _) = moves(&from.value, &to.value)?;
        Ok(Self { from, to, key, value })
    }

    pub(super) fn key_size(&self) -> usize {
        self.from.key.size
    }

    pub(super) fn value_size(&self) -> usize {
        self.from.value.size
    }

    /// `None` for bytes that are not of the other layout.
    pub(super) fn convert(&self, key: &[u8], value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        Some((
            rearrange(&self.key, self.to.key.size, key)?,
            rearrange(&self.value, self.to.value.size, value)?,
        ))
    }
}

/// The moves, and the fields of `to` that `from` does not have. Padding carries nothing, and what is reserved need not be there.
fn moves<'a>(from: &Record, to: &'a Record) -> Result<(Moves, Vec<&'a str>), String> {
    let (mut moves, mut missing) = (Moves::new(), Vec::new());
    for field in &to.fields {
        if field.name == "pad" {
            continue;
        }
        match from.fields.iter().find(|other| other.name == field.name) {
            Some(other) if other.size == field.size => moves.push((other.offset, field.offset, field.size)),
            _ if field.name == "reserved" => {}
            Some(other) => return Err(format!("field {} has {} bytes", field.name, other.size)),
            None => missing.push(field.name.as_str()),
        }
    }
    Ok((moves, missing))
}

fn rearrange(moves: &Moves, size: usize, from: &[u8]) -> Option<Vec<u8>> {
    let mut to = vec![0; size];
    for (source, target, length) in moves {
        to.get_mut(*target..target + length)?
            .copy_from_slice(from.get(*source..source + length)?);
    }
    Some(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni_ebpf::abi::{MAPS, Racy, as_bytes, from_bytes};

    #[test]
    fn rel_29_every_kept_map_is_described_and_fits() {
        for spec in MAPS.iter().filter(|spec| spec.keep) {
            let description = description(spec.name).unwrap();
            assert_eq!(
                (description.key.size, description.value.size),
                (spec.key, spec.value),
                "{}",
                spec.name
            );
            assert!(serde_json::to_vec(&description).unwrap().len() <= ROOM);
        }
    }

    /// The layout of a later release: one field more in the middle, its size grown.
    fn newer() -> Description {
        let mut newer = description("conntrack").unwrap();
        for field in &mut newer.value.fields {
            if field.offset >= 8 {
                field.offset += 8;
            }
        }
        newer.value.fields.push(Field {
            name: "colour".into(),
            offset: 8,
            size: 8,
        });
        newer.value.size += 8;
        newer
    }

    #[test]
    fn rel_29_flows_survive_an_upgrade_and_the_way_back() {
        let ours = description("conntrack").unwrap();
        let flow = Flow {
            seen: Racy::new(7),
            created: 3,
            snat_port: cni_ebpf::abi::Port::new(99),
            ..Flow::default()
        };
        // Which of two flows of one tuple it is stands where nothing was before.
        let second = FlowKey {
            reserved: 7,
            ..FlowKey::default()
        };
        let key = as_bytes(&second).to_vec();
        let up = Plan::new(ours.clone(), newer()).unwrap();
        let (key, value) = up.convert(&key, as_bytes(&flow)).unwrap();
        assert_eq!(from_bytes::<FlowKey>(&key), Some(second));
        assert_eq!(value.len(), size_of::<Flow>() + 8);
        let down = Plan::new(newer(), ours).unwrap();
        let (_, value) = down.convert(&key, &value).unwrap();
        assert_eq!(from_bytes::<Flow>(&value).unwrap(), flow);
    }

    #[test]
    fn rel_29_a_layout_that_cannot_be_converted_is_refused() {
        let ours = description("nat").unwrap();
        let mut lacking = ours.clone();
        lacking.key.fields.retain(|field| field.name != "src_port");
        assert!(Plan::new(lacking, ours.clone()).unwrap_err().contains("src_port"));
        let mut wider = ours.clone();
        wider.value.fields.iter_mut().for_each(|field| field.size *= 2);
        assert!(Plan::new(wider, ours).is_err());
    }
}
