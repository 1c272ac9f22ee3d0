//! Filters on the clsact qdisc, for kernels without tcx.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption},
};

use super::{
    super::{
        netlink::{Mode, Netlink},
        routes::absent_is_fine,
    },
    LoadedProgram, parse_key,
};
use crate::desired::{LinkKey, Program};

/// Where our filters stand: a handle and a priority that no other tool hands out by itself.
pub const HANDLE: u32 = 0x4d52;
pub const PRIORITY: u16 = 77;

/// Our filters' names begin so.
const NAME: &str = "millrace:";

/// `ETH_P_ALL`, as it stands in a filter's header.
const ALL_PROTOCOLS: u32 = 0x0003_u16.to_be() as u32;

/// A filter of ours.
pub(super) struct Filter {
    pub(super) key: LinkKey,
    pub(super) ifindex: u32,
    pub(super) program_id: u32,
}

fn parent(ingress: bool) -> TcHandle {
    TcHandle {
        major: TcHandle::CLSACT.major,
        minor: if ingress {
            TcHandle::MIN_INGRESS
        } else {
            TcHandle::MIN_EGRESS
        },
    }
}

fn filter(ifindex: u32, program: Program) -> TcMessage {
    TcMessage::from_parts(
        TcHeader {
            index: ifindex.cast_signed(),
            parent: parent(program.ingress()),
            handle: TcHandle::from(HANDLE),
            info: u32::from(PRIORITY) << 16 | ALL_PROTOCOLS,
            ..TcHeader::default()
        },
        vec![TcAttribute::Kind(TcFilterBpf::KIND.to_owned())],
    )
}

/// Adds the filter, or exchanges its program: the kernel swaps the two under its readers.
pub(super) fn attach(
    netlink: &mut Netlink,
    program: &LoadedProgram,
    key: &LinkKey,
    ifindex: u32,
) -> io::Result<()> {
    ensure_qdisc(netlink, ifindex)?;
    // The handle is ours alone on this device and side, so the name of the owner may change with the program.
    let mut message = filter(ifindex, key.program);
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(
            program.as_fd().as_raw_fd().unsigned_abs(),
        )),
        TcOption::Bpf(TcFilterBpfOption::ProgName(format!("{NAME}{key}"))),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    netlink.change(RouteNetlinkMessage::NewTrafficFilter(message), Mode::Ensure)
}

fn ensure_qdisc(netlink: &mut Netlink, ifindex: u32) -> io::Result<()> {
    let message = TcMessage::from_parts(
        TcHeader {
            index: ifindex.cast_signed(),
            parent: TcHandle::CLSACT,
            handle: TcHandle {
                major: TcHandle::CLSACT.major,
                minor: 0,
            },
            ..TcHeader::default()
        },
        vec![TcAttribute::Kind("clsact".to_owned())],
    );
    match netlink.change(RouteNetlinkMessage::NewQueueDiscipline(message), Mode::Create) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
        _ => Ok(()),
    }
}

/// Removes the filter if it is ours; the qdisc stays if somebody else uses it.
pub(super) fn detach(netlink: &mut Netlink, ifindex: u32, key: &LinkKey) -> io::Result<()> {
    if find(netlink, ifindex, key)?.is_none() {
        return Ok(());
    }
    absent_is_fine(netlink.change(
        RouteNetlinkMessage::DelTrafficFilter(filter(ifindex, key.program)),
        Mode::Change,
    ))?;
    let mut used = false;
    for ingress in [true, false] {
        used |= !dump(netlink, ifindex, ingress)?.is_empty();
    }
    if used {
        Ok(())
    } else {
        remove_qdisc(netlink, ifindex)
    }
}

fn remove_qdisc(netlink: &mut Netlink, ifindex: u32) -> io::Result<()> {
    let message = TcMessage::from_parts(
        TcHeader {
            index: ifindex.cast_signed(),
            parent: TcHandle::CLSACT,
            handle: TcHandle {
                major: TcHandle::CLSACT.major,
                minor: 0,
            },
            ..TcHeader::default()
        },
        Vec::new(),
    );
    absent_is_fine(netlink.change(RouteNetlinkMessage::DelQueueDiscipline(message), Mode::Change))
}

fn dump(netlink: &mut Netlink, ifindex: u32, ingress: bool) -> io::Result<Vec<TcMessage>> {
    let query = TcMessage::from_parts(
        TcHeader {
            index: ifindex.cast_signed(),
            parent: parent(ingress),
            ..TcHeader::default()
        },
        Vec::new(),
    );
    let answers = match netlink.dump(RouteNetlinkMessage::GetTrafficFilter(query)) {
        // No clsact qdisc, or no device.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::ENODEV | libc::ENOENT)
            ) =>
        {
            Vec::new()
        }
        other => other?,
    };
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            // A dump also tells of the chain itself, with handle 0.
            RouteNetlinkMessage::NewTrafficFilter(filter) if u32::from(filter.header.handle) != 0 => {
                Some(filter)
            }
            _ => None,
        })
        .collect())
}

fn ours(message: &TcMessage) -> Option<Filter> {
    if u32::from(message.header.handle) != HANDLE || message.header.info >> 16 != u32::from(PRIORITY) {
        return None;
    }
    let (mut key, mut program_id) = (None, None);
    for attribute in &message.attributes {
        let TcAttribute::Options(options) = attribute else {
            continue;
        };
        for option in options {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => {
                    key = name.strip_prefix(NAME).and_then(parse_key);
                }
                TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program_id = Some(*id),
                _ => {}
            }
        }
    }
    Some(Filter {
        key: key?,
        ifindex: message.header.index.cast_unsigned(),
        program_id: program_id?,
    })
}

pub(super) fn find(netlink: &mut Netlink, ifindex: u32, key: &LinkKey) -> io::Result<Option<Filter>> {
    let filters = dump(netlink, ifindex, key.program.ingress())?;
    Ok(filters.iter().filter_map(ours).find(|filter| filter.key == *key))
}

/// Our filters on all devices.
pub(super) fn list(netlink: &mut Netlink) -> io::Result<Vec<Filter>> {
    let mut devices = Vec::new();
    for answer in netlink.dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))? {
        if let RouteNetlinkMessage::NewQueueDiscipline(qdisc) = answer
            && qdisc.attributes.contains(&TcAttribute::Kind("clsact".to_owned()))
        {
            devices.push(qdisc.header.index.cast_unsigned());
        }
    }
    let mut filters = Vec::new();
    for ifindex in devices {
        for ingress in [true, false] {
            filters.extend(dump(netlink, ifindex, ingress)?.iter().filter_map(ours));
        }
    }
    Ok(filters)
}
