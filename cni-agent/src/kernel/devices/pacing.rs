//! Queueing disciplines that hold packets back until their departure time: `fq`, alone or below `mq`.
//!
//! Only what the kernel put there by itself is replaced; a discipline that somebody chose stays, and limits are policed
//! there. Ours is known by its handle.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcHeader, TcMessage},
};

use super::super::netlink::{Mode, Netlink};

/// The major number of the root that we put there.
const HANDLE: u16 = 0x4d52;
const FQ: &str = "fq";
const MQ: &str = "mq";
/// What kernels and distributions put on a device unasked.
const DEFAULTS: [&str; 5] = ["noqueue", "pfifo_fast", "pfifo", "fq_codel", MQ];

/// The disciplines of one device.
#[derive(Default)]
struct Disciplines {
    root: Option<(TcHandle, String)>,
    /// Below the root, by the last part of the parent's handle.
    leaves: BTreeMap<u16, String>,
}

impl Disciplines {
    fn kind(&self) -> &str {
        self.root.as_ref().map_or("noqueue", |(_, kind)| kind)
    }

    fn pace(&self) -> bool {
        match self.kind() {
            FQ => true,
            MQ => !self.leaves.is_empty() && self.leaves.values().all(|kind| kind == FQ),
            _ => false,
        }
    }

    fn ours(&self) -> bool {
        self.root
            .as_ref()
            .is_some_and(|(handle, _)| handle.major == HANDLE)
    }
}

fn list(netlink: &mut Netlink) -> io::Result<BTreeMap<u32, Disciplines>> {
    let mut devices: BTreeMap<u32, Disciplines> = BTreeMap::new();
    for answer in netlink.dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))? {
        let RouteNetlinkMessage::NewQueueDiscipline(message) = answer else {
            continue;
        };
        let kind = message.attributes.iter().find_map(|attribute| match attribute {
            TcAttribute::Kind(kind) => Some(kind.clone()),
            _ => None,
        });
        let Some(kind) = kind else { continue };
        let device = devices.entry(message.header.index.cast_unsigned()).or_default();
        let parent = message.header.parent;
        if parent == TcHandle::ROOT {
            device.root = Some((message.header.handle, kind));
        } else if parent.major != TcHandle::ROOT.major {
            device.leaves.insert(parent.minor, kind);
        }
    }
    Ok(devices)
}

/// The devices on which packets wait for their departure time.
pub fn pacing(netlink: &mut Netlink) -> io::Result<BTreeSet<u32>> {
    let found = list(netlink)?.into_iter().filter(|(_, device)| device.pace());
    Ok(found.map(|(ifindex, _)| ifindex).collect())
}

fn discipline(ifindex: u32, parent: TcHandle, major: u16, kind: &str) -> RouteNetlinkMessage {
    let header = TcHeader {
        index: ifindex.cast_signed(),
        parent,
        handle: TcHandle { major, minor: 0 },
        ..TcHeader::default()
    };
    let attributes = vec![TcAttribute::Kind(kind.to_owned())];
    RouteNetlinkMessage::NewQueueDiscipline(TcMessage::from_parts(header, attributes))
}

/// Has a device pace.
pub fn pace(netlink: &mut Netlink, ifindex: u32) -> io::Result<()> {
    let device = list(netlink)?.remove(&ifindex).unwrap_or_default();
    if device.pace() {
        return Ok(());
    }
    if !DEFAULTS.contains(&device.kind()) && !device.ours() {
        let chosen = device.kind();
        return Err(io::Error::other(format!(
            "somebody chose the queueing discipline {chosen}"
        )));
    }
    let queues = match device.kind() {
        MQ => device.leaves.len(),
        _ => 0,
    };
    if queues == 0 {
        return netlink.change(discipline(ifindex, TcHandle::ROOT, HANDLE, FQ), Mode::Replace);
    }
    // The kernel's own `mq` has no number, and so its leaves have no parent that could be named.
    if !device.ours() {
        netlink.change(discipline(ifindex, TcHandle::ROOT, HANDLE, MQ), Mode::Replace)?;
    }
    for minor in device.leaves.keys() {
        let parent = TcHandle {
            major: HANDLE,
            minor: *minor,
        };
        netlink.change(discipline(ifindex, parent, 0, FQ), Mode::Replace)?;
    }
    Ok(())
}

/// Gives devices that we had pace their usual discipline back; their indices.
pub fn stop_pacing(netlink: &mut Netlink) -> io::Result<Vec<u32>> {
    let ours: Vec<u32> = list(netlink)?
        .into_iter()
        .filter(|(_, device)| device.ours())
        .map(|(ifindex, _)| ifindex)
        .collect();
    for ifindex in &ours {
        let mut message = TcMessage::default();
        message.header.index = ifindex.cast_signed();
        message.header.parent = TcHandle::ROOT;
        netlink.change(RouteNetlinkMessage::DelQueueDiscipline(message), Mode::Change)?;
    }
    Ok(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_paces_if_every_queue_does() {
        let device = |root: &str, leaves: &[&str]| Disciplines {
            root: Some((TcHandle::default(), root.to_owned())),
            leaves: (1..).zip(leaves.iter().map(|kind| (*kind).to_owned())).collect(),
        };
        assert!(device("fq", &[]).pace());
        assert!(device("mq", &["fq", "fq"]).pace());
        assert!(!device("mq", &["fq", "pfifo_fast"]).pace());
        assert!(!device("fq_codel", &[]).pace());
        assert!(!Disciplines::default().pace());
    }
}
