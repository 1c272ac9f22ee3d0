//! `millrace services` and `millrace backends`.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::SocketAddr,
    process::ExitCode,
};

use clap::Args;
use cni_ebpf::abi::{self, Dialled, Flow, FlowKey};
use serde::Serialize;

use super::{Context, Failure, Outcome, ask, print_json, table};
use crate::{
    compile::service::HintsUsed,
    config::Algorithm,
    kernel::{Pins, maps},
    observe::{
        admin::{Request, Response},
        counters,
    },
    services::{Answer, Back, Clients, Description, Front},
};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// NAMESPACE/NAME, or NAME in any namespace; all Services if it is left out
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// How much there is for each number of a Service, or of a backend.
type Count = BTreeMap<u32, u64>;

/// Those whose packets are translated, and sockets that dialled: no packet of those is, so that no connection bears the
/// Service's number.
#[derive(Default)]
struct Connections {
    of_service: Count,
    of_backend: Count,
    sockets_of_service: Count,
    sockets_of_backend: Count,
    /// All that have begun, of both kinds.
    opened: Count,
}

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    service: Description,
    /// To all of its frontends.
    connections: u64,
    sockets: u64,
    opened: u64,
}

#[derive(Serialize)]
struct BackRow {
    #[serde(flatten)]
    backend: Back,
    services: Vec<String>,
    connections: u64,
    sockets: u64,
}

pub(crate) fn run(context: &Context, options: &Options) -> Outcome {
    let wanted = options.name.clone().unwrap_or_default();
    let services = services(context, &wanted)?;
    if services.is_empty() && !wanted.is_empty() {
        return Err(format!(
            "no Service {wanted} is served here; `millrace services` shows all, and headless ones are not served by anybody"
        )
        .into());
    }
    let connections = connections(&context.pins())?;
    if context.json {
        let rows = services.into_iter().map(|service| Row {
            connections: of_service(&service, &connections.of_service),
            sockets: of_service(&service, &connections.sockets_of_service),
            opened: of_service(&service, &connections.opened),
            service,
        });
        print_json(&rows.collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = services
        .iter()
        .flat_map(|service| {
            service
                .frontends
                .iter()
                .map(|front| cells(service, front, &connections))
        })
        .collect();
    let header = [
        "SERVICE",
        "FRONTEND",
        "PROTOCOL",
        "CLIENTS",
        "ANSWER",
        "BACKENDS",
        "ALGORITHM",
        "MODE",
        "HINTS",
        "AFFINITY",
        "CONNECTIONS",
        "SOCKETS",
        "OPENED",
    ];
    let mut out = io::stdout();
    out.write_all(table::text(&header, &rows).as_bytes())?;
    for problem in services.iter().flat_map(|service| &service.problems) {
        writeln!(out, "{problem}")?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn run_backends(context: &Context) -> Outcome {
    let connections = connections(&context.pins())?;
    let mut rows: BTreeMap<u32, BackRow> = BTreeMap::new();
    for service in services(context, "")? {
        for backend in service.backends {
            rows.entry(backend.number)
                .or_insert_with(|| BackRow {
                    backend,
                    services: Vec::new(),
                    connections: of(&connections.of_backend, backend.number),
                    sockets: of(&connections.sockets_of_backend, backend.number),
                })
                .services
                .push(service.name.to_string());
        }
    }
    let rows: Vec<BackRow> = rows.into_values().collect();
    if context.json {
        print_json(&rows)?;
    } else {
        let cells: Vec<Vec<String>> = rows.iter().map(back_cells).collect();
        let header = [
            "NUMBER",
            "BACKEND",
            "PROTOCOL",
            "STATE",
            "WHERE",
            "CONNECTIONS",
            "SOCKETS",
            "SERVICES",
        ];
        io::stdout().write_all(table::text(&header, &cells).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Names are the agent's knowledge; `millrace dump services` shows the kernel's part without one.
fn services(context: &Context, name: &str) -> Result<Vec<Description>, Failure> {
    let mut conversation = ask::Conversation::begin(&context.config.paths.admin_socket)?;
    conversation.ask(Request::Services {
        name: name.to_owned(),
    })?;
    let mut services: Vec<Description> = Vec::new();
    loop {
        match conversation.answer()? {
            // A large one comes in parts.
            Some(Response::Service { service }) => match services.last_mut() {
                Some(last) if last.name == service.name => last.join(*service),
                _ => services.push(*service),
            },
            Some(Response::End) => return Ok(services),
            Some(_) => {
                return Err("the agent answered something else; use the command line of its release".into());
            }
            None => return Err("the agent ended the connection; see its log".into()),
        }
    }
}

fn connections(pins: &Pins) -> Result<Connections, Failure> {
    let mut connections = Connections {
        opened: counters::opened(pins)?,
        ..Connections::default()
    };
    for map in ["conntrack", "conntrack_new"] {
        maps::open_existing(pins, map)?.for_each(|key, value| {
            let flow = abi::from_bytes::<FlowKey>(key).and_then(|_| abi::from_bytes::<Flow>(value));
            if let Some(flow) = flow.filter(|flow| flow.service != 0) {
                *connections.of_service.entry(flow.service).or_default() += 1;
                *connections.of_backend.entry(flow.backend).or_default() += 1;
            }
        })?;
    }
    maps::open_existing(pins, "sockets")?.for_each(|_, value| {
        if let Some(dialled) = abi::from_bytes::<Dialled>(value) {
            *connections.sockets_of_service.entry(dialled.service).or_default() += 1;
            *connections.sockets_of_backend.entry(dialled.backend).or_default() += 1;
        }
    })?;
    Ok(connections)
}

fn of(count: &Count, number: u32) -> u64 {
    count.get(&number).copied().unwrap_or(0)
}

fn of_service(service: &Description, count: &Count) -> u64 {
    let mut numbers: Vec<u32> = service.frontends.iter().map(|front| front.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.iter().map(|number| of(count, *number)).sum()
}

fn cells(service: &Description, front: &Front, connections: &Connections) -> Vec<String> {
    vec![
        service.name.to_string(),
        SocketAddr::new(front.address, front.port).to_string(),
        front.protocol.to_string(),
        match front.clients {
            Clients::Inside => "inside",
            Clients::Outside => "outside",
        }
        .to_owned(),
        match front.answer {
            Answer::Forward => "forward",
            Answer::Refuse => "refuse",
            Answer::Drop => "drop",
        }
        .to_owned(),
        front.backends.len().to_string(),
        match front.algorithm {
            Algorithm::Random => "random".to_owned(),
            Algorithm::Maglev => format!("maglev {}", front.table_size),
        },
        match (front.direct_return, front.masquerade) {
            (true, _) => "dsr",
            (false, true) => "snat",
            (false, false) => "-",
        }
        .to_owned(),
        match front.hints {
            HintsUsed::Anywhere => "-",
            HintsUsed::SameZone => "zone",
            HintsUsed::SameNode => "node",
        }
        .to_owned(),
        front
            .affinity_seconds
            .map_or_else(|| "-".to_owned(), |seconds| format!("{seconds}s")),
        of(&connections.of_service, front.number).to_string(),
        of(&connections.sockets_of_service, front.number).to_string(),
        of(&connections.opened, front.number).to_string(),
    ]
}

fn back_cells(row: &BackRow) -> Vec<String> {
    let backend = &row.backend;
    vec![
        backend.number.to_string(),
        SocketAddr::new(backend.address, backend.port).to_string(),
        backend.protocol.to_string(),
        if backend.terminating {
            "terminating"
        } else {
            "ready"
        }
        .to_owned(),
        if backend.local { "here" } else { "elsewhere" }.to_owned(),
        row.connections.to_string(),
        row.sockets.to_string(),
        row.services.join(","),
    ]
}
