//! `millrace conntrack`.

use std::{
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use cni_ebpf::{
    abi::{self, Alias, Flow, FlowKey, Tuple, flow_flags, tcp_state},
    datapath::conntrack,
};
use ipnetwork::IpNetwork;
use serde::Serialize;

use super::{Context, Failure, Outcome, print_json, table};
use crate::{
    kernel::{Pins, maps},
    observe::{
        event::{protocol_name, protocol_number},
        tables::now,
    },
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Connections that this node's programs know
    List(Filter),
    /// Forget connections: established ones are decided anew, translated ones are cut
    Flush {
        #[command(flatten)]
        filter: Filter,
        /// Without a filter: yes, all of them
        #[arg(long)]
        all: bool,
    },
}

/// Which connections. Everything that is given must agree.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Filter {
    /// The originator is in this range
    #[arg(long, value_name = "CIDR")]
    src: Option<IpNetwork>,
    /// The destination (after translation) is in this range
    #[arg(long, value_name = "CIDR")]
    dst: Option<IpNetwork>,
    /// Either side is this address
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<IpAddr>,
    /// Either side has this port
    #[arg(long)]
    port: Option<u16>,
    /// tcp, udp, sctp, icmp, icmpv6 or a number
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol_number)]
    proto: Option<u8>,
    /// This pod is one of the sides
    #[arg(long, value_name = "ID")]
    endpoint: Option<u32>,
}

/// A connection as it is shown.
#[derive(Clone, Debug, Serialize)]
struct Connection {
    protocol: String,
    state: &'static str,
    src: SocketAddr,
    dst: SocketAddr,
    /// What the originator dialled, if it was translated.
    dialled: Option<SocketAddr>,
    /// What the destination sees, if it was translated.
    seen_as: Option<SocketAddr>,
    /// The backend's node answers the originator itself, past this one.
    direct_return: bool,
    replied: bool,
    /// Its idle time is over: the programs take it for absent, and the kernel gives its room away when it is needed.
    #[serde(skip)]
    over: bool,
    /// Seconds since the last packet.
    idle: u64,
    packets: u64,
    bytes: u64,
    packets_reply: u64,
    bytes_reply: u64,
    source_endpoint: u32,
    destination_endpoint: u32,
}

impl Filter {
    fn is_empty(&self) -> bool {
        self.src.is_none()
            && self.dst.is_none()
            && self.ip.is_none()
            && self.port.is_none()
            && self.proto.is_none()
            && self.endpoint.is_none()
    }

    fn wants(&self, connection: &Connection) -> bool {
        let (src, dst) = (connection.src, connection.dst);
        let endpoints = [connection.source_endpoint, connection.destination_endpoint];
        self.src.is_none_or(|range| range.contains(src.ip()))
            && self.dst.is_none_or(|range| range.contains(dst.ip()))
            && self.ip.is_none_or(|ip| ip == src.ip() || ip == dst.ip())
            && self
                .port
                .is_none_or(|port| port == src.port() || port == dst.port())
            && self
                .proto
                .is_none_or(|proto| protocol_name(proto) == connection.protocol)
            && self.endpoint.is_none_or(|endpoint| endpoints.contains(&endpoint))
    }
}

pub(crate) fn run(context: &Context, command: Command) -> Outcome {
    match command {
        Command::List(filter) => list(context, &filter),
        Command::Flush { filter, all } => flush(context, &filter, all),
    }
}

/// Both tables: connections that were answered, and those that were not yet.
const FLOWS: [&str; 2] = ["conntrack", "conntrack_new"];
const ALIASES: [&str; 2] = ["nat", "nat_new"];

fn list(context: &Context, filter: &Filter) -> Outcome {
    let mut connections = Vec::new();
    for name in FLOWS {
        let map = maps::open_existing(&context.pins(), name)?;
        each(&map, |_, connection| {
            if filter.wants(&connection) && !connection.over {
                connections.push(connection);
            }
        })?;
    }
    connections.sort_by_key(|connection| (connection.src, connection.dst));
    if context.json {
        print_json(&connections)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = connections.iter().map(row).collect();
    let header = [
        "PROTO",
        "STATE",
        "SOURCE",
        "DESTINATION",
        "DIALLED",
        "SEEN AS",
        "IDLE",
        "PACKETS",
        "BYTES",
    ];
    let mut out = io::stdout().lock();
    out.write_all(table::text(&header, &rows).as_bytes())?;
    writeln!(out, "{} connections", rows.len())?;
    Ok(ExitCode::SUCCESS)
}

fn each(map: &maps::Map, mut each: impl FnMut(FlowKey, Connection)) -> Result<(), Failure> {
    let now = now()?;
    map.for_each(|key, value| {
        if let (Some(key), Some(flow)) = (abi::from_bytes::<FlowKey>(key), abi::from_bytes::<Flow>(value)) {
            each(key, connection(&key, &flow, now));
        }
    })?;
    Ok(())
}

fn connection(key: &FlowKey, flow: &Flow, now: u64) -> Connection {
    let flags = flow.flags.get();
    let a = SocketAddr::new(key.a.into(), key.a_port.get());
    let b = SocketAddr::new(key.b.into(), key.b_port.get());
    let (src, dst) = if flags & flow_flags::ORIGIN_A != 0 {
        (a, b)
    } else {
        (b, a)
    };
    let dialled = SocketAddr::new(flow.dnat.into(), flow.dnat_port.get());
    let seen_as = SocketAddr::new(flow.snat.into(), flow.snat_port.get());
    Connection {
        protocol: protocol_name(key.proto),
        state: match flow.state.get() {
            tcp_state::NEW => "new",
            tcp_state::ESTABLISHED => "established",
            tcp_state::FIN_WAIT => "fin-wait",
            tcp_state::TIME_WAIT => "time-wait",
            tcp_state::CLOSED => "closed",
            _ => "unknown",
        },
        src,
        dst,
        dialled: (flags & flow_flags::DNAT != 0).then_some(dialled),
        seen_as: (flags & flow_flags::SNAT != 0).then_some(seen_as),
        direct_return: flags & flow_flags::DSR != 0,
        replied: flags & flow_flags::REPLIED != 0,
        over: conntrack::expired(key.proto, flow, now),
        idle: now.saturating_sub(flow.seen.get()) / 1_000_000_000,
        packets: flow.packets_forward.get(),
        bytes: flow.bytes_forward.get(),
        packets_reply: flow.packets_reply.get(),
        bytes_reply: flow.bytes_reply.get(),
        source_endpoint: flow.source_endpoint,
        destination_endpoint: flow.destination_endpoint,
    }
}

fn row(connection: &Connection) -> Vec<String> {
    let or_dash =
        |address: Option<SocketAddr>| address.map_or_else(|| "-".to_owned(), |address| address.to_string());
    vec![
        connection.protocol.clone(),
        connection.state.to_owned(),
        connection.src.to_string(),
        connection.dst.to_string(),
        or_dash(connection.dialled),
        match connection.seen_as {
            None if connection.direct_return => "dsr".to_owned(),
            seen_as => or_dash(seen_as),
        },
        format!("{}s", connection.idle),
        format!("{}/{}", connection.packets, connection.packets_reply),
        format!("{}/{}", connection.bytes, connection.bytes_reply),
    ]
}

fn flush(context: &Context, filter: &Filter, all: bool) -> Outcome {
    if filter.is_empty() && !all {
        return Err(
            "this would cut every translated connection of the node; name some with filters, or say --all"
                .into(),
        );
    }
    let flows = forget(&context.pins(), filter)?;
    if context.json {
        print_json(&serde_json::json!({"flushed": flows}))?;
    } else {
        writeln!(io::stdout(), "{flows} connections forgotten")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Deletes connections and every alias of them.
fn forget(pins: &Pins, filter: &Filter) -> Result<u64, Failure> {
    let (mut gone, mut flows) = (std::collections::BTreeSet::new(), 0);
    for name in FLOWS {
        let map = maps::open_existing(pins, name)?;
        let mut keys = Vec::new();
        each(&map, |key, connection| {
            if filter.wants(&connection) {
                keys.push(abi::as_bytes(&key).to_vec());
                gone.insert(key);
            }
        })?;
        flows += map.remove_all(&keys)?;
    }
    for name in ALIASES {
        let map = maps::open_existing(pins, name)?;
        let mut keys = Vec::new();
        map.for_each(|key, value| {
            let points_to = abi::from_bytes::<Alias>(value).map(|alias| alias.flow);
            if abi::from_bytes::<Tuple>(key).is_some() && points_to.is_some_and(|flow| gone.contains(&flow)) {
                keys.push(key.to_vec());
            }
        })?;
        map.remove_all(&keys)?;
    }
    Ok(flows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni_ebpf::abi::{Addr, Port, Racy};

    fn example() -> Connection {
        let key = FlowKey {
            a: Addr::v4([10, 0, 0, 1]),
            b: Addr::v4([10, 0, 0, 2]),
            a_port: Port::new(80),
            b_port: Port::new(4000),
            proto: 6,
            pad: 0,
            reserved: 0,
        };
        let flow = Flow {
            flags: Racy::new(flow_flags::SNAT),
            snat: Addr::v4([192, 0, 2, 1]),
            snat_port: Port::new(33000),
            seen: Racy::new(1_000_000_000),
            ..Flow::default()
        };
        connection(&key, &flow, 4_500_000_000)
    }

    #[test]
    fn a_connection_that_was_silent_too_long_is_over() {
        let mut key = FlowKey::default();
        let flow = Flow::default();
        for (proto, timeout) in [(6, 60), (17, 60), (1, 30)] {
            key.proto = proto;
            let at = |seconds: u64| connection(&key, &flow, seconds * 1_000_000_000).over;
            assert_eq!((at(timeout), at(timeout + 1)), (false, true), "{proto}");
        }
    }

    #[test]
    fn the_originator_comes_first() {
        let connection = example();
        assert_eq!(connection.src.to_string(), "10.0.0.2:4000");
        assert_eq!(connection.seen_as.unwrap().to_string(), "192.0.2.1:33000");
        assert_eq!(
            (connection.dialled, connection.idle, connection.protocol.as_str()),
            (None, 3, "tcp")
        );
    }

    #[test]
    fn filters_must_agree() {
        let range = |text: &str| Some(text.parse().unwrap());
        let good = Filter {
            src: range("10.0.0.2/32"),
            proto: Some(6),
            port: Some(80),
            ..Filter::default()
        };
        assert!(good.wants(&example()) && Filter::default().wants(&example()));
        for bad in [
            Filter {
                dst: range("10.0.0.2/32"),
                ..Filter::default()
            },
            Filter {
                proto: Some(17),
                ..good.clone()
            },
            Filter {
                endpoint: Some(3),
                ..good.clone()
            },
            Filter {
                ip: Some("10.0.0.3".parse().unwrap()),
                ..good
            },
        ] {
            assert!(!bad.wants(&example()), "{bad:?}");
        }
    }
}
